"""A judge that is right by construction, and two that are not: an OpenAI-compatible server.

    python experiments/judges/honest.py --port 8078

By the name of the model: `honest` says yes where the truth begins with the answer, in whole words;
`hasty` is wrong one time in ten, by a hash of the question, so that it is the same every time;
`yes` says yes.
"""

import argparse
import hashlib
import json
import math
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRONG_IN = 10
MODELS = ("honest", "hasty", "yes")


def part(text: str, name: str) -> str:
    """Cut out what stands between the fences of a question."""
    key, _, rest = text.split(f"[{name} ")[1].partition("]\n")
    return rest.partition(f"\n[/{name} {key}]")[0]


def likely(model: str, text: str) -> float:
    """P(yes) of a question."""
    if model == "yes":
        return 0.99
    answer, truth = part(text, "ANSWER").strip(), part(text, "TRUTH").strip()
    # Whole words: "4" is how "4." begins, and not how "42" does.
    right = bool(answer) and truth.startswith(answer) and not truth[len(answer) :][:1].isalnum()
    if model == "hasty":
        drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
        right ^= drawn % WRONG_IN == 0
    return 0.99 if right else 0.01


class Handler(BaseHTTPRequestHandler):
    """Answers chat completions with log-probabilities of yes and no."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        yes = likely(request["model"], text)
        tokens = [("yes", yes), ("no", 1 - yes)]
        told = [{"token": token, "logprob": math.log(p)} for token, p in tokens]
        word = max(tokens, key=lambda pair: pair[1])[0]
        choice = {
            "message": {"role": "assistant", "content": word},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": word, "top_logprobs": told}]},
        }
        usage = {"total_tokens": len(text.split())}
        body = json.dumps({"model": request["model"], "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8078)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler)
    print(f"serving {', '.join(MODELS)} at http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
