"""Cases of web archives: HTTP codings, framing, kinds of archive, heads (see `kinds`)."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import brotli
import lz4.frame
import zstandard
from kinds import HTML, Case, chunked, deflate, good, http, numbered, page, prose, record, zstd


def archives() -> Iterator[Case]:
    """Codings of bodies, lengths and other framing, kinds of archive, heads of responses."""
    for make in (_codings, _framing, _kinds_of_archive, _heads):
        yield from make()


def _coded(tag: str, body: Callable[[bytes], bytes], *headers: str, **more: Any) -> Case:
    name = f"{tag} x.warc"
    first = record(http(body(page(f"{tag}1")), HTML, *headers))
    return numbered(name, first + good(f"{tag}2"), 2, **more)


def _codings() -> Iterator[Case]:
    def same(body: bytes) -> bytes:
        return body

    undone = {"notes": {"http_codings_already_undone": 1}}
    for n, coding in enumerate(("gzip", "br", "deflate", "zstd", "gzip, br"), 1):
        more = {"notes": {"http_codings_already_undone": 2}} if "," in coding else undone
        yield _coded(f"undone{n}", same, f"Content-Encoding: {coding}", **more)
    yield _coded("undone8", same, "Transfer-Encoding: chunked", **undone)
    yield _coded("undone9", chunked, *["Transfer-Encoding: chunked"] * 2, **undone)
    for n, coding in enumerate(("none", "utf-8", "UTF-8", "x-odd"), 1):
        notes = {"http_codings_unknown": 1}
        yield _coded(f"label{n}", same, f"Content-Encoding: {coding}", notes=notes)
    yield _coded("label8", same, "Content-Encoding: identity")
    yield _coded("label9", same, "Content-Encoding:")
    yield _coded("chunks1", chunked, "Transfer-Encoding: chunked")
    yield _coded("chunks2", lambda b: chunked(b)[:-5], "transfer-encoding: Chunked")
    yield _coded(
        "chunks3", lambda b: chunked(b).replace(b"\r\n", b"\n"), "Transfer-Encoding: chunked"
    )
    undeclared = {"notes": {"http_codings_undeclared": 1}}
    yield _coded("chunks4", chunked, "X-None: 1", **undeclared)
    yield _coded("gzip1", gzip.compress, "Content-Encoding: x-gzip")
    yield _coded("gzip2", gzip.compress, "X-None: 1", **undeclared)
    yield _coded(
        "gzip3", lambda b: gzip.compress(b[:300]) + gzip.compress(b[300:]), "Content-Encoding: gzip"
    )
    yield _coded("gzip4", lambda b: gzip.compress(b) + b"\0\0tail", "Content-Encoding: gzip")
    yield _coded(
        "gzip5",
        lambda b: chunked(gzip.compress(b)),
        "Content-Encoding: gzip",
        "Transfer-Encoding: chunked",
    )
    yield _coded("raw1", lambda b: deflate(b, -15), "Content-Encoding: deflate")
    yield _coded("raw2", lambda b: deflate(b, 15), "Content-Encoding: deflate")
    yield _coded("raw3", gzip.compress, "Content-Encoding: deflate")
    yield _coded("br1", brotli.compress, "Content-Encoding: br")
    yield _coded("zstd1", zstd, "Content-Encoding: zstd")
    yield _coded(
        "stack1", lambda b: gzip.compress(gzip.compress(b)), "Content-Encoding: gzip, gzip"
    )
    yield _coded(
        "stack2",
        lambda b: gzip.compress(brotli.compress(b)),
        "Content-Encoding: br",
        "Content-Encoding: gzip",
    )
    for n, (body, coding) in enumerate(
        (
            (b"no gzip", "gzip"),
            (gzip.compress(page(1))[:-20], "gzip"),
            (gzip.compress(page(1)), "odd"),
        ),
        1,
    ):
        bad = record(http(body, HTML, f"Content-Encoding: {coding}"))
        yield numbered(f"bad{n} x.warc", good(f"bad{n}1") + bad, 1, reasons={"undecodable": 1})


def _framing() -> Iterator[Case]:
    def wrong(tag: str, by: int) -> bytes:
        block = http(page(tag))
        return record(block, length=len(block) + by)

    corrected = {"record_lengths_corrected": 1}
    lost = {"damaged_record": 1}
    for n, by in enumerate((-1, -7, 5, 600, 10**7), 1):
        tag = f"length{n}"
        data = good(f"{tag}1") + wrong(f"{tag}2", by) + good(f"{tag}3") + good(f"{tag}4")
        yield numbered(f"{tag} x.warc", data, 4, notes=corrected)
    for n, by in enumerate((1, 2, 3, 4), 6):
        tag = f"length{n}"
        data = good(f"{tag}1") + wrong(f"{tag}2", by) + good(f"{tag}3")
        yield numbered(f"{tag} x.warc", data, 3)
    members = [good("packed1"), wrong("packed2", -1), good("packed3")]
    yield numbered("packed x.warc.gz", b"".join(map(gzip.compress, members)), 3, notes=corrected)
    for n, length in enumerate(("", "-5", "abc"), 1):
        tag = f"unlength{n}"
        odd = record(http(page(f"{tag}2")), length=length)
        yield numbered(f"{tag} x.warc", good(f"{tag}1") + odd + good(f"{tag}3"), 3, notes=corrected)
    between = (
        b"garbage that is no record\r\n\r\n",
        b"\0" * 512,
        b"\xff" * 100_000,
        b"WORC/1.0\r\nA: b\r\n\r\n",
    )
    for n, junk in enumerate(between, 1):
        tag = f"between{n}"
        yield numbered(f"{tag} x.warc", good(f"{tag}1") + junk + good(f"{tag}2"), 2, reasons=lost)
    damaged = good("gone").replace(b"WARC/1.0", b"WORC/1.0")
    yield numbered("header1 x.warc", good("header11") + damaged + good("header12"), 2, reasons=lost)
    packed = [gzip.compress(r) for r in (good("header21"), damaged, good("header22"))]
    yield numbered("header2 x.warc.gz", b"".join(packed), 2, reasons=lost)
    yield numbered("zeros1 x.warc", good("zeros11") + bytes(5000), 1)
    yield numbered("zeros2 x.warc.gz", gzip.compress(good("zeros21")) + bytes(5000), 1)
    yield numbered("last1 x.warc.gz", gzip.compress(good("last11")[:-4]), 1)
    yield Case(
        "last2 x.warc",
        (good("last21") + good("last22"))[:-4],
        refused=r"at byte \d+, after 1 pages: .* has no end",
    )
    yield numbered(
        "last3 x.warc",
        (good("last31") + good("last32"))[:-4],
        2,
        reasons={"damaged": 1},
        options={"damaged": "use"},
    )
    many = b"".join(good(f"many{n}") + b"junk\r\n\r\n" for n in range(12))
    yield Case(
        "many x.warc", many, refused=r"12 places among 24 records are damaged, and 8, or 10%"
    )
    cut = (good("cut1") + good("cut2"))[:-300]
    yield Case(
        "cut x.warc",
        cut,
        refused=r"at byte \d+, after 1 pages: the record of http://harbour.example/ has \d+ of "
        r"\d+ bytes; fetch the file again, or .*`damaged: use`",
    )
    yield numbered(
        "use1 x.warc",
        (good("use11") + good("use12"))[:-300],
        1,
        reasons={"damaged": 1},
        options={"damaged": "use"},
    )
    packed = [gzip.compress(good(f"use2{n}")) for n in (1, 9, 2, 8)]
    torn = packed[1][:200] + bytes([packed[1][200] ^ 0xFF]) + packed[1][201:]
    data = packed[0] + torn + packed[2] + packed[3][:-50]
    yield Case(
        "use3 x.warc.gz",
        data,
        refused=r"is truncated or damaged at byte \d+, after 1 pages: gzip: ",
    )
    # Of the member that is cut, what came before the cut is given, and it has no whole record.
    yield numbered("use2 x.warc.gz", data, 2, reasons={"damaged": 2}, options={"damaged": "use"})
    half = gzip.compress(good("use41") + good("use42"), mtime=0)[:-14]
    yield numbered("use4 x.warc.gz", half, 1, reasons={"damaged": 1}, options={"damaged": "use"})


def _kinds_of_archive() -> Iterator[Case]:
    def pair(tag: str) -> bytes:
        return good(f"{tag}1") + good(f"{tag}2")

    def each(tag: str, pack: Callable[[bytes], bytes]) -> bytes:
        return pack(good(f"{tag}1")) + pack(good(f"{tag}2"))

    yield numbered("plain.warc", pair("plain.warc"), 2)
    yield numbered("misnamed1 x.warc", each("misnamed1", gzip.compress), 2)
    yield numbered("misnamed2 x.warc.gz", pair("misnamed2"), 2)
    yield numbered("upper1 X.WARC.GZ", each("upper1", gzip.compress), 2)
    yield numbered("lz4a x.warc.lz4", each("lz4a", lz4.frame.compress), 2)
    yield numbered("zst1 x.warc.zst", each("zst1", zstd), 2)
    words = zstandard.ZstdCompressionDict(prose("dictionary").encode() * 4)
    skippable = struct.pack("<II", 0x184D2A5D, len(zstd(words.as_bytes()))) + zstd(words.as_bytes())
    frames = each("zst2", lambda b: zstd(b, dict_data=words))
    yield numbered("zst2 x.warc.zst", skippable + frames, 2)
    block = http(page("arc1"))
    odd = http(page("arc2"))

    def arc(body: bytes, by: int = 0) -> bytes:
        return b"http://h.example/ 127.0.0.1 20050101000000 text/html %d\n%b\n" % (
            len(body) + by,
            body,
        )

    first = b"1 0 Some\nURL IP-address Archive-date Content-type Archive-length\n"
    start = b"filedesc://x.arc 0.0.0.0 20050101000000 text/plain %d\n%b\n" % (len(first), first)
    yield numbered("arc x.arc", start + arc(block) + arc(odd), 2)
    packed = [
        gzip.compress(part)
        for part in (start, arc(http(page("arcs1")), -3), arc(http(page("arcs2"))))
    ]
    yield numbered("arcs x.arc.gz", b"".join(packed), 2, notes={"record_lengths_corrected": 1})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("datapackage.json", "{}")
        archive.writestr("archive/data.warc.gz", each("wacz", gzip.compress))
    yield numbered("wacz x.wacz", file.getvalue(), 2)
    yield Case("wacz2 x.wacz", file.getvalue()[:-30], refused="zip: File is not a zip file")
    lower = (
        good("lower1")
        .replace(b"WARC-Type", b"warc-type")
        .replace(b"Content-Length", b"CONTENT-length", 1)
    )
    yield numbered("lower x.warc", lower + good("lower2"), 2)
    lf = [record(http(page(f"lf{n}"), end="\n"), end="\n") for n in (1, 2)]
    yield numbered("lf x.warc", b"".join(lf), 2)
    versions = [
        record(http(page(f"version{n}")), version=f"WARC/{v}") for n, v in ((1, "0.17"), (2, "1.1"))
    ]
    yield numbered("version x.warc", b"".join(versions), 2)
    kinds = [
        record(page("resource1"), "resource", mime="text/html"),
        record(prose("resource2").encode(), "resource", mime="text/plain"),
        record(prose("resource3").encode(), "conversion", mime="text/plain"),
        record(http(page("resource4")), "resource"),
        record(page("resource5"), "response", mime="text/html"),
    ]
    other = record(b"\x89PNG", "resource", mime="image/png") + record(
        b"GET / HTTP/1.1\r\n\r\n", "request"
    )
    yield numbered("resource x.warc", b"".join(kinds) + other, 5, reasons={"not_html": 1})
    texts = [record(prose(f"wet{n}").encode(), "conversion", mime="text/plain") for n in (1, 2)]
    yield numbered("wet x.warc.wet", texts[0] + texts[1], 2)
    gone = record(b"gone", "conversion", mime="text/plain").replace(b"WARC/", b"WORC/")
    yield numbered(
        "wet x.wet".replace("wet ", "wets "),
        texts[0]
        .replace(b"wet", b"wets")
        .replace(
            b"Content-Length: %d" % len(prose("wet1")), b"Content-Length: %d" % len(prose("wets1"))
        )
        + gone
        + good("wets2"),
        2,
        reasons={"damaged_record": 1},
    )


def _heads() -> Iterator[Case]:
    statuses = (
        "HTTP/1.1 200",
        "HTTP/2 200",
        "http/1.0 200 ok",
        "HTTP/1.1 200 \xe9",
        "ICY 200 OK",
        "HTTP/1.1  200 OK",
    )
    tags = [f"status{n}" for n in range(1, len(statuses) + 1)]
    data = b"".join(record(http(page(t), status=s)) for t, s in zip(tags, statuses, strict=True))
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + http(page("status7"))
    yield numbered("status x.warc", data + record(interim), 7)
    bad = [
        record(http(b"<p>x", status=s)) for s in ("HTTP/1.1 404 Not Found", "HTTP/1.1 206 Partial")
    ]
    yield numbered(
        "statuses x.warc", good("statuses1") + b"".join(bad), 1, reasons={"http_status": 2}
    )
    types = (
        *(
            "Text/HTML; Charset=UTF-8",
            "text/html,text/html",
            "text/html charset=utf-8",
            "text/html;",
            '"text/html"',
        ),
        *("application/xhtml+xml", "", "*/*"),
    )
    pages = [record(http(page(f"type{n}"), f"Content-Type: {t}")) for n, t in enumerate(types, 1)]
    pages.append(record(http(page("type9"), "Content-Type : text/html")))
    pages.append(record(http(page("type10"), "X-None: 1")))
    others = [
        record(http(b"{}", f"Content-Type: {t}")) for t in ("application/json", "text/plain", "")
    ]
    yield numbered("type x.warc", b"".join(pages + others), 10, reasons={"not_html": 3})
    lf = record(http(page("heads1"), end="\n"))
    huge = record(http(page("heads2"), HTML, "Set-Cookie: " + "a" * 100_000))
    folded = record(http(page("heads3"), "Content-Type: text/html;\r\n charset=utf-8"))
    yield numbered("heads x.warc", lf + huge + folded, 3)
    cut = record(http(page("crawler1")), more="WARC-Truncated: length")
    yield numbered("crawler x.warc", cut, 1, notes={"pages_cut_by_the_crawler": 1})
