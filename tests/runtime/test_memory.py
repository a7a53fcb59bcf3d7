"""Memory that was freed: kept, but not without bound."""

import subprocess
import sys

import pytest

# Blocks of 8 MB with small ones between them, so that no end of the heap can be cut off.
PROGRAM = """
import sys, time
import torch
from rntp.runtime.memory import keep_freed_memory

def resident():
    pages = open("/proc/self/statm").read().split()
    return (int(pages[1]) - int(pages[2])) * 4096 / 2**20

keep_freed_memory(int(sys.argv[1]) * 2**20)
before = resident()
blocks, small = [], []
for n in range(60):
    blocks.append(torch.ones(2**21))
    small.append(torch.ones(50))
taken = resident() - before
del blocks
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end and resident() - before > 100:
    time.sleep(0.1)
print(taken, resident() - before, sum(float(s.sum()) for s in small))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("most_mb", "seconds", "left"), [(200, 30, (0, 100)), (4000, 3, (400, 600))]
)
def test_what_was_freed_is_given_back_only_beyond_a_bound(
    most_mb: int, seconds: int, left: tuple[int, int]
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(most_mb), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    taken, kept, small = map(float, done.stdout.split())
    assert taken > 450
    assert left[0] - 20 <= kept <= left[1]
    assert small == 60 * 50
