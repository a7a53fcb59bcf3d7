"""Where numbers come from: versions, source, machine and command; and what must not be written.

`redact` is the one place that keeps secrets out of files: apply it to whatever a file will hold.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch

import rntp

T = TypeVar("T")

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
# Anything shorter ("1", "false", "rsa") is a setting, and would be cut out of ordinary text.
_MIN_SECRET_CHARS = 8


def secret_values(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of the environment variables whose names look secret, longest first.

    Values of fewer than 8 characters are left out: they cannot be told from ordinary words.
    """
    environ = os.environ if environ is None else environ
    found = {
        value
        for name, value in environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_CHARS
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def redact(obj: T, secrets: Sequence[str]) -> T:
    """`obj` with every occurrence of a secret in its strings replaced, in dicts and lists too."""
    return cast(T, _redact(obj, secrets)) if secrets else obj


def _redact(obj: object, secrets: Sequence[str]) -> object:
    if isinstance(obj, str):
        for secret in secrets:
            obj = obj.replace(secret, REDACTED)
        return obj
    if isinstance(obj, dict):
        return {_redact(key, secrets): _redact(value, secrets) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_redact(value, secrets) for value in obj]
    return obj


def environment(device: str) -> dict[str, object]:
    """Return what this process runs in. device: `model.device` of the config."""
    return {
        "versions": _versions(),
        "git": _git(Path(rntp.__file__).resolve().parent.parent),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy")
    return {
        "rntp": rntp.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def _git(checkout: Path) -> dict[str, object] | None:
    """Commit and whether files differ from it; None where the package is not in its checkout."""
    if not (checkout / ".git").exists():
        return None
    commit = _run_git(checkout, "rev-parse", "HEAD")
    # As `git describe --dirty` has it: results that nobody has added yet make nothing dirty.
    status = _run_git(checkout, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return None
    return {"commit": commit, "dirty": bool(status)}


def _run_git(checkout: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(checkout), *arguments]
    # Reading the state must not write to it: two runs may start at once.
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=quiet)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_name(device: str) -> str:
    """Return what computes for this process."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({_processor()}, {os.cpu_count()} cores)"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
