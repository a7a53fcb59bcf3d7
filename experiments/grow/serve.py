"""Serve the planted web, with its traps, and keep count of what is asked for.

python experiments/grow/serve.py --port 8023
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import web

ROBOTS = "User-agent: *\nDisallow: /private/\n"


class Handler(BaseHTTPRequestHandler):
    """The pages of `web.site_page`, and what the links of `trap/` lead to."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer one request."""
        self.asked.append(self.path)
        if self.path == "/robots.txt":
            self._send(ROBOTS.encode(), "text/plain")
        elif self.path.startswith("/trap/loop"):
            self._redirect(f"/trap/loop{len(self.path)}x.html")
        elif self.path == "/trap/away.html":
            self._redirect("http://127.0.0.1:9/")
        elif self.path == "/trap/huge.html":
            self._drip(b"<p>" + b"huge " * 20_000, pause_s=0.0)
        elif self.path == "/trap/slow.html":
            self._drip(b"s", pause_s=0.2)
        elif self.path == "/trap/image.html":
            self._send(b"\x89PNG", "image/png")
        elif (page := web.site_page(self.path)) is not None:
            self._send(page.encode(), "text/html; charset=utf-8")
        else:
            self.send_error(404)

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def _drip(self, piece: bytes, pause_s: float) -> None:
        """A body without end."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(piece)
                time.sleep(pause_s)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """(address of the site, paths that were asked for so far) while the web is served."""
    handler = type("Counting", (Handler,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", handler.asked
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8023)
    with served(parser.parse_args().port) as (address, _), contextlib.suppress(KeyboardInterrupt):
        print(f"serving {address}")
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
