"""Small files of every kind that goes wrong in archives of pages, each with what should come out.

A case is a file name, its bytes, the texts of the pages that are kept, in order, the reasons of
those that are not, and what is noted on the way; or what the refusal says.
"""

import io
import json
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import Any

import zstandard

GERMAN = (
    "Die Fähre fährt früh über die Förde, „pünktlich“, sagt der Bäcker {tag}, größer wäre schöner."
)
RUSSIAN = "Паром уходит из гавани {tag} в семь часов и возвращается, когда позволяет прилив."
KOREAN = (
    "배는 일곱 시에 항구를 떠나고 물때가 허락하면 {tag} 돌아옵니다. 겨울에는 한 시간이 더 걸립니다."
)
CHINESE = "渡轮七点离开港口{tag}，潮水允许时返回。朱镕基、喆、瑀。"
JAPANESE = "船は七時に港を出ます{tag}。①②③㈱髙﨑、潮が許せば戻ります。"
TAIWANESE = "渡輪七點離開港口{tag}，潮水允許時返回。冬天要多花一個小時。"
FERRY = (
    "The ferry {tag} leaves the harbour at seven and comes back when the tide allows it. People on "
    "the far side plan their weeks around that boat, and the baker keeps two loaves back for "
    "whoever is late. In winter the crossing takes an hour longer, because the pilot waits. "
)


@dataclass
class Case:
    """See the module. options: of the source (`text_field`, `damaged`, …)."""

    name: str
    data: bytes
    texts: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    options: dict[str, str] = field(default_factory=dict)


def prose(tag: object, pattern: str = FERRY) -> str:
    """A text of about 500 characters that no other tag gives."""
    one = pattern.format(tag=re.sub(r"\W", "", str(tag)))
    return (one + " ").replace("  ", " ").strip() if len(one) > 450 else _times(one)


def _times(one: str) -> str:
    return " ".join([one.strip()] * (500 // len(one) + 1))


def html(text: str, head: str = "") -> str:
    """A page of one paragraph."""
    begin = f"<!DOCTYPE html><html><head>{head}<title>Harbour</title></head>"
    return f"{begin}<body><p>{text}</p></body></html>"


def page(tag: object) -> bytes:
    return html(prose(tag)).encode()


def record(
    payload: bytes,
    kind: str = "response",
    url: str = "http://harbour.example/",
    length: object = None,
    more: str = "",
    end: str = "\r\n",
    mime: str = "application/http; msgtype=response",
    version: str = "WARC/1.0",
) -> bytes:
    """A WARC record. length: None is the right one; "" leaves the field out."""
    given = len(payload) if length is None else length
    fields = [version, f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", f"Content-Type: {mime}"]
    fields += [f"Content-Length: {given}"] if given != "" else []
    head = end.join([*fields, *([more] if more else []), "", ""])
    return head.encode() + payload + (end * 2).encode()


HTML = "Content-Type: text/html; charset=utf-8"


def http(body: bytes, *headers: str, status: str = "HTTP/1.1 200 OK", end: str = "\r\n") -> bytes:
    """A response."""
    return end.join([status, *(headers or (HTML,)), "", ""]).encode("latin-1") + body


def chunked(body: bytes) -> bytes:
    half = len(body) // 2
    parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:])]
    return b"".join([*parts, b"0\r\n\r\n"])


def deflate(body: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(body) + packer.flush()


def good(tag: object) -> bytes:
    return record(http(page(tag)))


def zstd(data: bytes, **settings: Any) -> bytes:
    return zstandard.ZstdCompressor(**settings).compress(data)


def lines(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()) + b"\n"
        for row in rows
    )


def row(tag: object) -> dict[str, str]:
    return {"text": prose(tag), "url": f"http://harbour.example/{tag}"}


def tar(*members: tuple[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def bare(archive: bytes, blocks: int = 0) -> bytes:
    """A tar with so many empty blocks behind its last member."""
    data = archive.rstrip(b"\0")
    return data + bytes(-len(data) % 512 + 512 * blocks)


def numbered(name: str, data: bytes, count: int, **more: Any) -> Case:
    """Pages whose tags are the case's first word and 1, 2, …"""
    tag = name.split(" ")[0]
    return Case(name, data, [prose(f"{tag}{n}") for n in range(1, count + 1)], **more)
