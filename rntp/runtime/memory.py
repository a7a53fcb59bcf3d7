"""Memory: how much there is, how much was taken at most, and keeping what was freed.

By default glibc gives every large block back to the kernel at once, and a training step then
spends much of its time on page faults for memory it had a moment ago: measured on 2 CPU cores
with a 135M model, 18 s a step against 12 s.
"""

import contextlib
import ctypes
import os
import platform
import re
import resource
import sys
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB", re.MULTILINE)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Never unmap, never trim. For a program's entry point: it changes the whole process."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)


def reset_peak_bytes() -> None:
    """Let `peak_bytes` count from now on. Outside of Linux the process' own peak stays."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if _CLEAR.exists():
        with contextlib.suppress(OSError):  # some containers keep it read-only
            _CLEAR.write_text("5")  # proc(5): the peak resident set size becomes the current one


def peak_bytes() -> int:
    """Most memory since `reset_peak_bytes`, or so far: of the GPU where there is one in use, else
    resident in the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists() and (found := _PEAK.search(_STATUS.read_text())):
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def size(num_bytes: float) -> str:
    """Write a number of bytes for people: 0 B, 3.2 MB, 1.6 GB."""
    for unit, bytes_of_unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= bytes_of_unit:
            return f"{num_bytes / bytes_of_unit:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def total_bytes(device: torch.device) -> int:
    """Memory of the device: of the GPU, or of the machine, or of the container if that is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(machine, int(text)) if text.isdigit() else machine
