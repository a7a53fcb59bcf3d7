"""Code in the whole of CPython, behind namespaces of the kernel: bubblewrap.

Every call is a new process in new namespaces: no net, no process beside itself, no file but a
read-only standard library, no place to write, no environment, no capability, system calls filtered.
Limits are set inside, where they cannot be raised (`inside.py`). Seconds are the host's to count.
Unlike in monty, clock and os.urandom can be reached: the outcome is a function of the code only
where the code asks for neither.
"""

import contextlib
import os
import platform
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rntp.errors import ConfigError
from rntp.tools.sandbox import Limits, Ran
from rntp.tools.sandbox.seccomp import program

REMEDY = (
    "`runtime: bubblewrap` of the tool `python` needs the program bwrap (apt install bubblewrap) "
    "and a kernel that gives user namespaces; or take `runtime: monty`"
)
# Whom the code runs as; nothing belongs to nobody.
_USER = 65534
# What the interpreter maps before the first line of the code.
_INTERPRETER_MB = 96
_KINDS = {3: "code_error", 4: "out_of_memory"}


class Bubblewrap:
    """One process a call. Raises ConfigError where bubblewrap is not there or does not hold."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        found = shutil.which("bwrap")
        if found is None:
            raise ConfigError(REMEDY)
        self.digest = f"bubblewrap python {platform.python_version()} {limits}"
        # A file without a name: descriptors of one file share a position, and each call opens its
        # own.
        with tempfile.NamedTemporaryFile(prefix="rntp-seccomp-", delete=False) as file:
            file.write(program())
        self._filter = file.name
        self._command = [found, *_walls()]
        self._inside = (Path(__file__).parent / "inside.py").read_text()
        probe = self.run("import os; (6 * 7, os.getuid() != 0)")
        if probe != Ran("(42, True)"):
            self.close()
            raise ConfigError(f"bubblewrap does not start ({probe.text[:200]}); {REMEDY}")

    def run(self, code: str) -> Ran:
        """Run code in a process of its own, which nothing outlives."""
        limits = self._limits
        memory = (limits.memory_mb + _INTERPRETER_MB) << 20
        numbers = [str(memory), str(int(limits.seconds) + 1), str(_USER)]
        rules = os.open(self._filter, os.O_RDONLY)
        try:
            process = subprocess.Popen(
                [
                    *(*self._command, "--seccomp", str(rules), "--", *_interpreter()),
                    *("-c", self._inside, *numbers),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(rules,),
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(rules)
        with process:
            try:
                said, overran = _exchange(process, code, limits)
            finally:
                process.kill()  # the namespace's first process: all in it end with it
        text = said.decode("utf-8", "replace")[: limits.output_chars].rstrip("\n")
        if overran == "out_of_time":
            return Ran("out of time", overran)
        if overran:
            return Ran(text, overran)
        if process.returncode < 0 or process.returncode >= 128:
            return Ran("crashed", "crashed")
        return Ran(text, _KINDS.get(process.returncode, ""))

    def close(self) -> None:
        """Take the filter's file away."""
        Path(self._filter).unlink(missing_ok=True)


def _exchange(process: subprocess.Popen[bytes], code: str, limits: Limits) -> tuple[bytes, str]:
    """Give the code and take what is printed: (bytes, why it was ended)."""
    assert process.stdin is not None
    assert process.stdout is not None
    end = time.monotonic() + limits.seconds
    # At most so many bytes are as many characters.
    most = 4 * limits.output_chars + 16
    to_write, said = memoryview(code.encode("utf-8", "replace")), b""
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return said, "out_of_time"
            for key, _ in selector.select(left):
                if key.fileobj is process.stdin:
                    with contextlib.suppress(BlockingIOError, BrokenPipeError):
                        to_write = to_write[os.write(key.fd, to_write[:65536]) :]
                        if to_write:
                            continue
                    if not to_write or process.poll() is not None:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                found = os.read(key.fd, 65536)
                said += found
                if len(said) > most:
                    return said, "too_much_output"
                if not found:
                    process.wait(max(left, 0.1))
                    return said, ""


def _interpreter() -> list[str]:
    """CPython without site packages, user folders or the current one; hashes as always."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [f"/python/bin/{version}", "-s", "-S", "-P", "-B", "-X", "utf8"]


def _walls() -> list[str]:
    """Arguments of bubblewrap."""
    root = os.geteuid() == 0
    walls = ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    walls += [f"--unshare-{name}" for name in ("ipc", "pid", "net", "uts", "cgroup-try")]
    if root:
        # In a user namespace root would stay root outside, whom the limit of processes does not
        # bind: it changes to nobody inside, and needs two capabilities until then.
        walls += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        walls += ["--unshare-user", "--uid", str(_USER), "--gid", str(_USER), "--cap-drop", "ALL"]
    base = Path(sys.base_prefix)
    walls += ["--ro-bind", str(base), "/python"]
    for folder in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if Path(folder).is_dir():
            walls += ["--ro-bind", folder, folder]
    if Path("/etc/ld.so.cache").is_file():
        walls += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    walls += ["--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null"]
    walls += ["--dev-bind", "/dev/urandom", "/dev/urandom", "--chdir", "/", "--remount-ro", "/"]
    return [*walls, "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8"]
