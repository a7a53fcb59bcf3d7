"""Requests to stop: what counts as one, and as a second."""

import os
import signal
import subprocess
import sys

import pytest

from rntp.errors import Preempted
from rntp.runtime.signals import SAME_REQUEST_S, StopRequest

pytestmark = pytest.mark.slow


def test_signals_of_one_request_stop_once() -> None:
    """As from a scheduler that signals the whole job, whose torchrun then hands it on."""
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Preempted, match="stopped by SIGTERM"):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_later_one_ends_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from rntp.runtime.signals import StopRequest\n"
        "with StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        f"    time.sleep({SAME_REQUEST_S})\n"
        "    print('before', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('after', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "before\n")
