"""Pack the HTML files below a folder into WARC files, as a crawler would have written them.

python data_prep/benchmarks/pack_html.py FOLDER OUT [--warc-bytes N]
"""

import argparse
import gzip
from pathlib import Path

from rntp_data_prep.page import MAX_PAGE_BYTES


def record(url: str, body: bytes) -> bytes:
    """One response record, a gzip member of its own."""
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
    head = (
        "WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
        f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + block + b"\r\n\r\n", 5, mtime=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--warc-bytes", type=int, default=16 << 20, help="HTML bytes of a file")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    size, number, pages, total = 0, 0, 0, 0
    out = None
    for path in sorted(arguments.folder.rglob("*.htm*")):
        if path.is_symlink() or not path.is_file() or path.suffix not in (".html", ".htm"):
            continue
        body = path.read_bytes()
        if len(body) > MAX_PAGE_BYTES - 1024:
            continue
        if out is None or size > arguments.warc_bytes:
            if out is not None:
                out.close()
            out = (arguments.out / f"{number:04d}.warc.gz").open("wb")
            size, number = 0, number + 1
        out.write(record(f"file://{path.relative_to(arguments.folder)}", body))
        size, pages, total = size + len(body), pages + 1, total + len(body)
    assert out is not None, f"there is no HTML below {arguments.folder}"
    out.close()
    print(f"{pages} pages, {total / 1e6:.1f} MB of HTML in {number} WARC files")


if __name__ == "__main__":
    main()
