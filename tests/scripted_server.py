"""An OpenAI-compatible server whose replies a test writes."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"
Script = Callable[[dict[str, Any], int], "Said | str"]


class Said:
    """What the server sends. cut: bytes of the body that it sends before it hangs up."""

    def __init__(
        self, body: bytes, status: int = 200, cut: int | None = None, wait_s: float = 0.0
    ) -> None:
        self.body, self.status, self.cut, self.wait_s = body, status, cut, wait_s


def completion(text: str, model: str = MODEL, logprobs: dict[str, float] | None = None) -> bytes:
    choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": "stop"}
    if logprobs is not None:
        likely = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": likely}]}
    found = {"model": model, "choices": [choice], "usage": {"total_tokens": 50}}
    return json.dumps(found).encode()


class Server:
    """url: of the API. asked: requests so far, in order of arrival."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(length))
                with server._lock:
                    server.asked.append(request)
                    number = len(server.asked)
                said = server.script(request, number)
                if isinstance(said, str):
                    said = Said(completion(said))
                time.sleep(said.wait_s)
                self.send_response(said.status)
                self.send_header("Content-Length", str(len(said.body)))
                self.end_headers()
                self.wfile.write(said.body[: said.cut])

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def texts(self) -> list[str]:
        """User messages of all requests."""
        return [request["messages"][1]["content"] for request in self.asked]


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    server = Server(script)
    thread = threading.Thread(target=server._http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._http.shutdown()
        server._http.server_close()


def part(text: str, name: str) -> str:
    """What stands between the fences of a question: PAGE, ANSWER or TRUTH."""
    after = text.split(f"[{name} ")[1]
    key, _, rest = after.partition("]\n")
    return rest.partition(f"\n[/{name} {key}]")[0]


def honest(request: dict[str, Any], number: int) -> str:
    """Says yes where the truth begins with the answer, and the answer has a word."""
    text = request["messages"][1]["content"]
    answer, truth = part(text, "ANSWER").strip(), part(text, "TRUTH").strip()
    whole = (truth + " ").startswith(answer + " ")
    return "yes" if answer and whole else "no"
