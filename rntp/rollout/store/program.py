"""What `rntp sample` does: a sampler that looks again and again."""

import os
import platform
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from rntp.rollout import Check
from rntp.rollout.store.files import Files
from rntp.rollout.store.sampler import Sampler
from rntp.runtime import faults
from rntp.runtime.progress import hide_library_bars

FIRST_S, LONGEST_S = 0.02, 1.0  # between two looks without work: longer and longer


def own_name(wanted: str | None) -> str:
    """A name that no other start has, which says where it is: letters, digits, dots, dashes."""
    place = re.sub(r"[^\w.-]+", "-", wanted or platform.node() or "sampler").strip(".-")
    return f"{place or 'sampler'}-{uuid.uuid4().hex[:6]}"


def run_sampler(
    files: Files,
    name: str,
    *,
    say: Callable[[str], None],
    check: Check,
    device: str | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Sample until the run of the store is done. check: called often; raises to stop.

    Raises ConfigError where this machine cannot sample for the run, with the reason.
    """
    faults.arm(os.environ)
    hide_library_bars()
    if isinstance(files.where, Path):
        files.where.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(files, name, say=say, check=check, device=device)
    between, sampled = FIRST_S, 0
    try:
        while (did := sampler.once()) != "done":
            if did == "sampled":
                between, sampled = FIRST_S, sampled + 1
                continue
            pause(between)
            between = min(2 * between, LONGEST_S)
    finally:
        sampler.close()
    say(f"the run is done; {name} has sampled {sampled} parts")
