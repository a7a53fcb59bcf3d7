"""The process that makes pages to texts for `rntp_data_prep.cleaner`, which says why."""

import json
import os
import resource
import signal
import sys

from rntp.errors import ConfigError
from rntp_data_prep.clean import cleaned
from rntp_data_prep.extract import Unextractable, extractors
from rntp_data_prep.frames import receive, send

_MAX_BYTES = 4 << 30


def main() -> None:
    """Take pages in and give [title, text, neutralised markers, reason] out, until the
    input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    try:
        extractor = extractors(sys.argv[1])
    except ConfigError as error:
        send(answers, json.dumps(["", "", 0, str(error)]).encode())
        return
    send(answers, json.dumps(["", "", 0, ""]).encode())
    while head := receive(sys.stdin.buffer):
        is_html, title, limit_s = json.loads(head)
        raw = receive(sys.stdin.buffer).decode("utf-8", "surrogatepass")
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # nothing handles its signal, which ends this
        try:
            answer = [*cleaned(raw, is_html=is_html, title=title, extractor=extractor), ""]
        except Unextractable as error:
            answer = ["", "", 0, error.reason]
        except Exception:  # of a library, over a page that nobody has seen
            answer = ["", "", 0, "extraction_failed"]
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(answers, json.dumps(answer).encode())


if __name__ == "__main__":
    main()
