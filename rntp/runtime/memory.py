"""Memory: how much there is, how much was taken at most, and keeping what was freed.

By default glibc gives every large block back to the kernel at once, and a training step then
spends much of its time on page faults for memory it had a moment ago: measured on 2 CPU cores
with a 135M model, 18 s a step against 12 s. Where all of it is kept, blocks of many sizes leave
holes that nothing fits into, and a process that trains on documents of many lengths grows to 17 GB.
So what was freed is kept up to a share of the machine's memory.
"""

import contextlib
import ctypes
import os
import platform
import re
import resource
import sys
import threading
import time
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB", re.MULTILINE)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LOOKS_S = 1.0  # between two looks at what is kept


def keep_freed_memory(most_bytes: int | None = None) -> None:
    """Never unmap, and trim only where more than `most_bytes` are kept that nobody uses: by default
    a fifth of the machine's memory. For a program's entry point: it changes the whole process."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    if not hasattr(libc, "mallinfo2") or not _STATM.exists():  # glibc before 2.33
        return
    libc.mallinfo2.restype = _Mallinfo2
    most = most_bytes or total_bytes(torch.device("cpu")) // 5
    threading.Thread(target=_trim, args=(libc, most), name="memory", daemon=True).start()


class _Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2 returns; `uordblks` are bytes in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _trim(libc: ctypes.CDLL, most: int) -> None:
    """Give back what is resident and not in use, whenever it has grown by `most` bytes: what no
    trimming gives back is others', such as the interpreter's own blocks."""
    page = os.sysconf("SC_PAGE_SIZE")

    def unused() -> int:
        _, resident, shared, *_ = map(int, _STATM.read_text().split())
        return int((resident - shared) * page - libc.mallinfo2().uordblks)

    others = 0
    while True:
        time.sleep(_LOOKS_S)
        if unused() > others + most:
            libc.malloc_trim(0)
            others = max(unused(), 0)


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
