"""Pages of mixed charsets, labelled, mislabelled, not labelled and damaged: the share read right.

    python data_prep/benchmarks/charsets.py TEXT_FOLDER --out FILE

TEXT_FOLDER is gone through for .html, .txt and manual pages, plain or .gz, in UTF-8: Debian's
documentation in many languages does (installation-guide-amd64, aptitude-doc-*, debian-reference-*,
debian-faq-*, manpages-*; `apt-get download`, `dpkg -x`). Their paragraphs become pages; every page
is written in UTF-8 or in a charset of its script, and a response in a WARC file says what that is,
or its <meta> does, or nothing, or something else. A fifth of the pages is damaged, one byte in
2,000 on average, changed, dropped or put in.

What is counted is the characters of the pages as they were written that come out, by alignment of
lines and then of characters; what damage took counts as wrong. Beside rntp stand warcio with
charset_normalizer (alone, and with the response's label before it), and trafilatura's own decoding
of the same bodies, which takes no label; so the shares are given by label, too.
"""

import argparse
import difflib
import gzip
import html
import importlib.metadata
import json
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rntp_data_prep.extract import extract
from rntp_data_prep.sources import pages

PAGE_CHARS = (600, 8000)
DAMAGED, BYTES_A_FAULT = 0.2, 2000
UTF8 = 0.4
LABELS = {"response": 0.35, "meta": 0.25, "none": 0.25, "wrong": 0.1, "unknown": 0.05}
# By what a text is written in: charsets that pages of its kind come in, and wrong labels.
CHARSETS = {
    "hangul": ["euc-kr"],
    "kana": ["shift_jis", "euc-jp", "iso-2022-jp"],
    "han": ["gb18030", "gb2312", "big5"],
    "cyrillic": ["windows-1251", "koi8-r", "koi8-u", "iso-8859-5"],
    "greek": ["windows-1253", "iso-8859-7"],
    "latin": ["windows-1252", "iso-8859-15"],
    "central": ["windows-1250", "iso-8859-2"],
    "turkish": ["windows-1254", "iso-8859-9"],
}
PYTHON = {"euc-kr": "cp949", "shift_jis": "cp932", "gb2312": "gbk"}
SCRIPTS = {
    "hangul": "[\uac00-\ud7a3]",
    "kana": "[\u3040-\u30ff]",
    "han": "[\u4e00-\u9fff]",
    "cyrillic": "[\u0400-\u04ff]",
    "greek": "[\u0370-\u03ff]",
    "turkish": "[ğışĞİŞ]",
    "central": "[ąćęłńśźżěřůšžčďťňőűăâșțţş]",
}
_ROFF = re.compile(r"\\f(?:\(..|\[[^\]]*\]|.)|\\[&|^,/%:]|\\\*\(..|\\s[-+]?\d")


def texts(folder: Path) -> Iterator[list[str]]:
    """Paragraphs of every document in a folder, in the order of names."""
    for path in sorted(folder.rglob("*")):
        name = path.name.lower()
        if not path.is_file() or path.is_symlink():
            continue
        is_manual = "/man/" in path.as_posix()
        if not is_manual and not re.search(r"\.(html|txt)(\.[a-z-]+)?(\.gz)?$", name):
            continue
        data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if is_manual:
            kept = [line for line in text.split("\n") if line[:1] not in (".", "'", "")]
            text = _ROFF.sub("", "\n".join(kept)).replace("\\-", "-").replace("\\(aq", "'")
        elif ".html" in name:
            text = extract(text, main_content=False)[1]
        yield [line.strip()[:400] for line in text.split("\n") if len(line.strip()) > 20]


def script(text: str) -> str:
    """What a text is written in, by its letters."""
    counts = {name: len(re.findall(letters, text)) for name, letters in SCRIPTS.items()}
    for name in ("hangul", "kana", "cyrillic", "greek", "han"):
        if counts[name] > 0.05 * len(text):
            return name
    foreign = [name for name in ("turkish", "central") if counts[name] > 0.003 * len(text)]
    return max(foreign, key=counts.__getitem__) if foreign else "latin"


def encodable(text: str, label: str) -> tuple[str, float]:
    """A text without what a charset does not have, and the share of it that was left out."""
    name = PYTHON.get(label, label)
    kept = text.encode(name, "ignore").decode(name, "ignore")
    return kept, 1 - len(kept) / max(1, len(text))


def made_pages(folder: Path, characters: int, seed: int) -> Iterator[dict[str, Any]]:
    """Pages of about so many characters in all: see the module."""
    draw = random.Random(seed)
    documents = list(texts(folder))
    draw.shuffle(documents)
    total = number = 0
    for lines in documents:
        while lines and total < characters:
            size, wanted, some = 0, draw.randrange(*PAGE_CHARS), list[str]()
            while lines and size < wanted:
                some.append(lines.pop(0))
                size += len(some[-1])
            if size < PAGE_CHARS[0]:
                continue
            made = make_page("\n".join(some), number, draw)
            number, total = number + 1, total + len(made["text"])
            yield made


def make_page(text: str, number: int, draw: random.Random) -> dict[str, Any]:
    """One page: its text, its bytes, its response's Content-Type, and how it was made."""
    kind = script(text)
    label = "utf-8"
    if draw.random() >= UTF8:
        fitting = [(encodable(text, name), name) for name in CHARSETS[kind]]
        fitting = [found for found in fitting if found[0][1] < 0.01]
        if fitting:
            (text, _), label = draw.choice(fitting)
    said = draw.choices(list(LABELS), list(LABELS.values()))[0]
    wrong = draw.choice(["iso-8859-1", "windows-1252"] if label == "utf-8" else ["utf-8"])
    in_meta = label if said in ("meta", "unknown") else ""
    in_response = {"response": label, "wrong": wrong, "unknown": "none"}.get(said, "")
    meta = f'<meta charset="{in_meta}">' if in_meta else ""
    body = "\n".join(f"<p>{html.escape(line, quote=False)}</p>" for line in text.split("\n"))
    head = f"<!DOCTYPE html>\n<html><head>{meta}<title>{number}</title></head>"
    page = f"{head}<body>\n{body}\n</body></html>"
    data = page.encode(PYTHON.get(label, label))
    is_damaged = draw.random() < DAMAGED
    if is_damaged:
        data = damage(data, draw, data.index(b"<body>") + 7)
    mime = "text/html" + (f"; charset={in_response}" if in_response else "")
    facts = {"charset": label, "label": said, "damaged": is_damaged, "script": kind}
    return {"text": page, "data": data, "mime": mime, "number": number, **facts}


def damage(data: bytes, draw: random.Random, begin: int) -> bytes:
    """One byte in BYTES_A_FAULT, on average, is another, is gone, or is one too many."""
    changed = bytearray(data)
    for _ in range(max(1, round((len(data) - begin) / BYTES_A_FAULT))):
        place = draw.randrange(begin, len(changed))
        fault = draw.randrange(3)
        if fault == 0:
            changed[place] = draw.randrange(256)
        elif fault == 1:
            del changed[place]
        else:
            changed.insert(place, draw.randrange(256))
    return bytes(changed)


def write_warc(path: Path, made: list[dict[str, Any]]) -> None:
    with open(path, "wb") as file:
        for page in made:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {page['mime']}\r\n\r\n".encode()
            fields = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://e.org/{page['number']}"
                "\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nContent-Type: application/http; "
                f"msgtype=response\r\nContent-Length: {len(head) + len(page['data'])}\r\n\r\n"
            )
            file.write(fields.encode() + head + page["data"] + b"\r\n\r\n")


def by_rntp(path: Path) -> Iterator[str]:
    for page in pages(str(path)):
        yield page.html or ""


def bodies(path: Path) -> Iterator[bytes]:
    from warcio.archiveiterator import ArchiveIterator

    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            yield record.content_stream().read()


def by_charset_normalizer(path: Path) -> Iterator[str]:
    import charset_normalizer

    for body in bodies(path):
        best = charset_normalizer.from_bytes(body).best()
        yield str(best) if best else ""


def by_trafilatura(path: Path) -> Iterator[str]:
    from trafilatura.utils import decode_file

    for body in bodies(path):
        yield decode_file(body)


def by_label(path: Path) -> Iterator[str]:
    """What the response says, as Python knows it, and charset_normalizer where it says nothing."""
    import charset_normalizer
    from warcio.archiveiterator import ArchiveIterator

    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            body = record.content_stream().read()
            kind = record.http_headers.get_header("Content-Type", "")
            label = kind.partition("charset=")[2]
            try:
                yield body.decode(label or "none", "replace")
            except LookupError:
                best = charset_normalizer.from_bytes(body).best()
                yield str(best) if best else ""


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    "rntp": by_rntp,
    "warcio + charset_normalizer": by_charset_normalizer,
    "warcio + label, else charset_normalizer": by_label,
    "trafilatura": by_trafilatura,
}


def right(found: str, expected: str) -> tuple[int, int]:
    """How many characters of `expected` are in `found`, line ends aside, and how many of them
    are beyond ASCII."""
    if found == expected:
        return len(expected) - expected.count("\n"), beyond_ascii(expected)
    count = high = 0
    ours, theirs = expected.split("\n"), found.split("\n")
    lines = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    for kind, a, b, c, d in lines.get_opcodes():
        if kind == "equal":
            same = "".join(ours[a:b])
            count, high = count + len(same), high + beyond_ascii(same)
        elif kind == "replace":
            for one, other in aligned(ours[a:b], theirs[c:d]):
                pairs = difflib.SequenceMatcher(None, one, other, autojunk=False)
                for begin, _, size in pairs.get_matching_blocks():
                    count += size
                    high += beyond_ascii(one[begin : begin + size])
    return count, high


def aligned(ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    """Lines to compare, in pairs, or all at once where a line end was lost or put in."""
    if len(ours) != len(theirs) and sum(map(len, ours)) < 5000:
        return [("".join(ours), "".join(theirs)[:6000])]
    return [(one, other[:2000]) for one, other in zip(ours, theirs, strict=False)]


def beyond_ascii(text: str) -> int:
    return sum(character > "\x7f" for character in text)


def measure(made: list[dict[str, Any]], path: Path, name: str) -> dict[str, Any]:
    """Shares right of all, of what is beyond ASCII, and by label, charset and damage."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    begin, seconds = time.process_time(), 0.0
    for page, found in zip(made, READERS[name](path), strict=True):
        seconds += time.process_time() - begin
        ok, ok_high = right(found, page["text"])
        facts = {"characters": len(page["text"]) - page["text"].count("\n"), "right": ok}
        facts |= {"beyond ASCII": beyond_ascii(page["text"]), "right beyond ASCII": ok_high}
        groups = ["all", f"label: {page['label']}", f"charset: {page['charset']}"]
        groups.append("damaged" if page["damaged"] else "whole")
        for group in groups:
            sums[group].update(facts)
        begin = time.process_time()
    rows = {
        group: {
            "characters": found["characters"],
            "right": round(found["right"] / found["characters"], 6),
            "right_beyond_ascii": round(
                found["right beyond ASCII"] / max(1, found["beyond ASCII"]), 6
            ),
        }
        for group, found in sorted(sums.items())
    }
    return {"cpu_seconds": round(seconds, 1), "shares": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/bench-charsets"))
    parser.add_argument("--characters", type=int, default=20_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", choices=list(READERS), default=list(READERS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    made = list(made_pages(arguments.folder, arguments.characters, arguments.seed))
    path = arguments.work / "pages.warc"
    write_warc(path, made)
    facts: dict[str, Any] = {
        "command": "python data_prep/benchmarks/charsets.py TEXT_FOLDER --out FILE",
        "pages": len(made),
        "characters": sum(len(page["text"]) for page in made),
        "beyond_ascii": sum(beyond_ascii(page["text"]) for page in made),
        "scripts": dict(Counter(page["script"] for page in made).most_common()),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("chardetng_py", "charset_normalizer", "warcio", "trafilatura")
        },
        "readers": {},
    }
    for name in arguments.readers:
        facts["readers"][name] = found = measure(made, path, name)
        everything = found["shares"]["all"]
        print(
            f"{name:<30}{everything['right']:>10.4%} right, beyond ASCII "
            f"{everything['right_beyond_ascii']:.4%}, {found['cpu_seconds']} s",
            flush=True,
        )
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
