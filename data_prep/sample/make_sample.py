"""Build sample.warc.gz and LICENSES.md from documentation packages of Debian 12.

    python data_prep/sample/make_sample.py [--debs FOLDER] [--out FOLDER]

FOLDER holds the .deb files; without it they are downloaded with apt-get. Needs Debian 12 (or the
files from it) and `pip install 'rntp[prep]'`. The same packages give the same bytes.

Of every package, English pages that are mostly running prose are taken in the order of a hash of
their address until the package's share of the sample is full. Pages are stored as they are.
"""

import argparse
import gzip
import hashlib
import re
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rntp_data_prep.clean import clean
from rntp_data_prep.extract import extract

PAGE_BYTES = (4_000, 48_000)
MIN_TEXT_CHARS = 1_500
MIN_PROSE_SHARE = 0.6
MIN_EXTRACTED_SHARE = 0.6
PROSE_LINE_CHARS = 100
SKIPPED_STEMS = ("index", "genindex", "search", "toc", "print", "sitemap", "copyright", "license")
DECLARED_LANGUAGE = re.compile(rb'<html[^>]*\slang="([^"]*)"')
FIXED_DATE = "2024-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Package:
    """One source of pages. `root` and `copyright` are paths inside the package.

    licence_lines: first and last+1 line of the notice in the copyright file, by their beginning.
    """

    name: str
    title: str
    upstream: str
    root: str
    base_url: str
    patterns: tuple[str, ...]
    skipped_prefixes: tuple[str, ...]
    share_bytes: int
    licence: str
    notice: str
    copyright: str
    licence_lines: tuple[str, str] | None


PACKAGES = (
    Package(
        name="python3.11-doc",
        title="Python 3.11 documentation",
        upstream="https://docs.python.org/3.11/",
        root="usr/share/doc/python3.11/html",
        base_url="https://docs.python.org/3.11/",
        patterns=("howto/*", "tutorial/*", "faq/*", "using/*", "extending/*", "library/*"),
        skipped_prefixes=(),
        share_bytes=950_000,
        licence="Python Software Foundation License Version 2",
        notice="Copyright © 2001-2026 Python Software Foundation; All Rights Reserved.",
        copyright="usr/share/doc/python3.11-doc/copyright",
        licence_lines=("A. HISTORY OF THE SOFTWARE", "Licenses and Acknowledgements for"),
    ),
    Package(
        name="debian-handbook",
        title="The Debian Administrator's Handbook",
        upstream="https://debian-handbook.info/",
        root="usr/share/doc/debian-handbook/html/en-US",
        base_url="https://debian-handbook.info/browse/en-US/stable/",
        patterns=("*",),
        skipped_prefixes=(),
        share_bytes=650_000,
        licence="Creative Commons Attribution-ShareAlike 3.0 Unported (or GPL-2.0-or-later)",
        notice=(
            "Copyright © 2003-2022 Raphaël Hertzog, © 2006-2015 Roland Mas, © 2012-2022 Freexian "
            "SARL. These pages are redistributed, unchanged, under the Creative Commons "
            "Attribution-ShareAlike 3.0 Unported licence, whose text is at "
            "<https://creativecommons.org/licenses/by-sa/3.0/legalcode>. Documents made from them "
            "(shards) remain under that licence. The work is provided as is, without warranties."
        ),
        copyright="usr/share/doc/debian-handbook/copyright",
        licence_lines=None,
    ),
    Package(
        name="sqlite3-doc",
        title="SQLite documentation",
        upstream="https://www.sqlite.org/docs.html",
        root="usr/share/doc/sqlite3",
        base_url="https://www.sqlite.org/",
        patterns=("*",),
        skipped_prefixes=("changes", "chronology", "news", "download"),
        share_bytes=600_000,
        licence="Public domain",
        notice="Dedicated to the public domain by the authors of SQLite; no notice is required.",
        copyright="usr/share/doc/sqlite3-doc/copyright",
        licence_lines=None,
    ),
    Package(
        name="postgresql-doc-15",
        title="PostgreSQL 15 documentation",
        upstream="https://www.postgresql.org/docs/15/",
        root="usr/share/doc/postgresql-doc-15/html",
        base_url="https://www.postgresql.org/docs/15/",
        patterns=("*",),
        skipped_prefixes=("release", "bookindex", "biblio", "legalnotice", "sql-", "app-", "spi-"),
        share_bytes=600_000,
        licence="PostgreSQL License",
        notice=(
            "Portions Copyright © 1996-2026, The PostgreSQL Global Development Group. "
            "Portions Copyright © 1994, The Regents of the University of California."
        ),
        copyright="usr/share/doc/postgresql-doc-15/copyright",
        licence_lines=("License: PostgreSQL", "License: BSD-3-Clause"),
    ),
    Package(
        name="rust-doc",
        title="The Rust Programming Language (book)",
        upstream="https://doc.rust-lang.org/1.63.0/book/",
        root="usr/share/doc/rust-doc/html/book",
        base_url="https://doc.rust-lang.org/1.63.0/book/",
        patterns=("*",),
        skipped_prefixes=(),
        share_bytes=500_000,
        licence="MIT (or Apache-2.0)",
        notice=(
            "Copyright © 2006-2009 Graydon Hoare, © 2009-2012 Mozilla Foundation, "
            "© 2012-2017 The Rust Project Developers."
        ),
        copyright="usr/share/doc/rust-doc/html/LICENSE-MIT.txt",
        licence_lines=("Permission is hereby granted", ""),
    ),
    Package(
        name="apache2-doc",
        title="Apache HTTP Server 2.4 documentation",
        upstream="https://httpd.apache.org/docs/2.4/",
        root="usr/share/doc/apache2-doc/manual/en",
        base_url="https://httpd.apache.org/docs/2.4/en/",
        patterns=("*", "developer/*", "howto/*", "misc/*", "rewrite/*", "ssl/*", "vhosts/*"),
        skipped_prefixes=("new_features", "upgrading"),
        share_bytes=500_000,
        licence="Apache License 2.0",
        notice=(
            "Apache HTTP Server. Copyright © 2026 The Apache Software Foundation. This product "
            "includes software developed at The Apache Software Foundation "
            "(https://www.apache.org/). The licence text is the file LICENSE of this repository."
        ),
        copyright="usr/share/doc/apache2-doc/copyright",
        licence_lines=None,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--debs", type=Path, help="folder with the .deb files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    options = parser.parse_args()
    warc = bytearray(_member(_warcinfo()))
    facts = []
    with tempfile.TemporaryDirectory() as scratch:
        debs = options.debs or _download(Path(scratch))
        for package in PACKAGES:
            (deb,) = debs.glob(f"{package.name}_*.deb")
            folder = Path(scratch) / package.name
            subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
            version = subprocess.run(
                ["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True
            ).stdout.strip()
            pages = list(_choose(package, folder))
            for url, html in pages:
                warc += _member(_response(url, html))
            facts.append((package, version, len(pages), _licence_text(package, folder)))
            print(
                f"{package.name} {version}: {len(pages)} pages, {sum(len(h) for _, h in pages)} B"
            )
    (options.out / "sample.warc.gz").write_bytes(warc)
    (options.out / "LICENSES.md").write_text(_licences(facts), encoding="utf-8")
    print(f"sample.warc.gz: {len(warc)} bytes")


def _download(folder: Path) -> Path:
    names = [package.name for package in PACKAGES]
    subprocess.run(["apt-get", "download", *names], cwd=folder, check=True)
    return folder


def _choose(package: Package, folder: Path) -> Iterator[tuple[str, bytes]]:
    """(address, bytes) of the chosen pages, in the order of the addresses' hashes."""
    root = folder / package.root
    files = {path for pattern in package.patterns for path in root.glob(f"{pattern}.html")}
    addresses = {package.base_url + path.relative_to(root).as_posix(): path for path in files}
    room = package.share_bytes
    for url in sorted(addresses, key=lambda url: hashlib.sha256(url.encode()).digest()):
        path = addresses[url]
        if path.stem.startswith((*SKIPPED_STEMS, *package.skipped_prefixes)):
            continue
        html = path.read_bytes()
        if PAGE_BYTES[0] <= len(html) <= min(PAGE_BYTES[1], room) and _is_prose(html):
            room -= len(html)
            yield url, html


def _is_prose(html: bytes) -> bool:
    """Whether the page is English in UTF-8, mostly long lines, and survives the extraction."""
    language = DECLARED_LANGUAGE.search(html)
    if language is not None and not language[1].startswith(b"en"):
        return False
    try:
        page = html.decode("utf-8")
    except UnicodeDecodeError:
        return False
    title, extracted = extract(page)
    text, _ = clean(extracted, title)
    everything = extract(page, main_content=False)[1]
    prose = sum(
        len(line)
        for line in text.split("\n")
        if len(line) >= PROSE_LINE_CHARS and not line.startswith(" ")
    )
    return len(text) >= max(
        MIN_TEXT_CHARS, MIN_EXTRACTED_SHARE * len(everything)
    ) and prose >= MIN_PROSE_SHARE * len(text)


def _response(url: str, html: bytes) -> bytes:
    http = (
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(html)}\r\n\r\n"
    ).encode("ascii") + html
    return _record("response", "application/http; msgtype=response", url, http)


def _warcinfo() -> bytes:
    text = "software: make_sample.py\r\nformat: WARC File Format 1.1\r\nlicences: LICENSES.md\r\n"
    return _record("warcinfo", "application/warc-fields", "", text.encode("ascii"))


def _record(kind: str, content_type: str, url: str, block: bytes) -> bytes:
    headers = [
        "WARC/1.1",
        f"WARC-Type: {kind}",
        f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url or kind)}>",
        f"WARC-Date: {FIXED_DATE}",
        *([f"WARC-Target-URI: {url}"] if url else []),
        f"Content-Type: {content_type}",
        f"Content-Length: {len(block)}",
    ]
    return "\r\n".join([*headers, "", ""]).encode("ascii") + block + b"\r\n\r\n"


def _member(record: bytes) -> bytes:
    return gzip.compress(record, compresslevel=9, mtime=0)


def _licence_text(package: Package, folder: Path) -> str:
    if package.licence_lines is None:
        return ""
    first, end = package.licence_lines
    lines = (folder / package.copyright).read_text(encoding="utf-8").splitlines()
    # A Debian copyright file names a licence at the files it covers, and gives its text at the end.
    start = max(n for n, line in enumerate(lines) if line.startswith(first))
    stops = [n for n, line in enumerate(lines) if n > start and end and line.startswith(end)]
    stop = stops[0] if stops else len(lines)
    return "\n".join(line.removesuffix(" .") for line in lines[start:stop]).rstrip()


def _licences(facts: list[tuple[Package, str, int, str]]) -> str:
    parts = [
        "# Licences of the sample corpus",
        "",
        "`sample.warc.gz` holds unchanged pages of the documentation below, as Debian 12 packages",
        "it. Each page keeps its own licence; the address of a page (`WARC-Target-URI`) tells its",
        "source. `make_sample.py` wrote both files.",
        "",
        "| source | Debian package | version | pages | licence |",
        "|---|---|---|---|---|",
    ]
    parts += [
        f"| [{package.title}]({package.upstream}) | {package.name} | {version} | {num_pages} "
        f"| {package.licence} |"
        for package, version, num_pages, _ in facts
    ]
    for package, _, _, text in facts:
        parts += ["", f"## {package.title}", "", f"Licence: {package.licence}.", "", package.notice]
        if text:
            parts += ["", "```text", text, "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
