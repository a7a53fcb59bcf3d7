"""A corpus folder served on loopback, by a server that can be told how to misbehave."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[[BaseHTTPRequestHandler, int], bool]
"""Given the handler and the number of the request from 1; True if it has answered."""


class ShardServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fault: Fault = lambda handler, n: False
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, address: object) -> None:
        """Connections that a client has given up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ShardServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.fault(self, len(self.server.requests)):
            return
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            answer(self, 404, b"")
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            answer(self, 200, data)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        extra = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        answer(self, 206, data[first : last + 1], extra)

    def log_message(self, *_: object) -> None:
        pass


def answer(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    claim: int | None = None,
    pause_s: float = 0.0,
) -> None:
    """claim: Content-Length, where it is not the body's. pause_s: before every 200 bytes."""
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body) if claim is None else claim))
    handler.end_headers()
    if not pause_s:
        handler.wfile.write(body)
    else:
        for start in range(0, len(body), 200):
            time.sleep(pause_s)
            handler.wfile.write(body[start : start + 200])
            handler.wfile.flush()
    if claim is not None:
        handler.close_connection = True


@contextmanager
def served(folder: Path) -> Iterator[ShardServer]:
    with ShardServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
