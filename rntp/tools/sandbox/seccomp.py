"""A filter of system calls for the sandbox: what Python needs passes, the rest of a list does not.

Namespaces and limits leave ways to take memory that no limit counts (shared memory segments, files
in memory, keys) and parts of the kernel that have had most of its holes. Code that computes needs
none of them. The filter is classic BPF, as bubblewrap takes it from a file descriptor.
"""

import errno
import platform
import struct

from rntp.errors import ConfigError

_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_X32 = 0x40000000  # x86-64's second table of calls

# name: (x86_64, aarch64); None where the architecture has no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "semget": (64, 190),
    "msgget": (68, 186),
    "ptrace": (101, 117),
    "personality": (135, 92),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "mq_open": (240, 180),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "unshare": (272, 97),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "memfd_secret": (447, 447),
    "fork": (57, None),
    "vfork": (58, None),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def denied_calls(machine: str = "") -> dict[str, int]:
    """Numbers of the calls that fail with EPERM, by name. Raises ConfigError for a machine whose
    numbers are not known here."""
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise ConfigError(
            f"the sandbox knows no system calls of {machine!r}, but of {', '.join(_MACHINES)}; "
            "take `runtime: monty` for the tool `python`"
        )
    column = _MACHINES[machine][0]
    found = {name: numbers[column] for name, numbers in _DENIED.items()}
    return {name: number for name, number in found.items() if number is not None}


def program(machine: str = "") -> bytes:
    """The filter: other architectures' calls kill, those of `denied_calls` fail, the rest pass."""
    machine = machine or platform.machine()
    numbers = sorted(denied_calls(machine).values())
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _MACHINES[machine][1]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_ABOVE, len(numbers) + 1, 0, _X32),
    ]
    for place, number in enumerate(numbers):
        code.append((_JUMP_EQUAL, len(numbers) - place, 0, number))
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
