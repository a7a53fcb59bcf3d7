"""Interpreters for code that nobody trusts: a function of the code, behind a wall."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may take. seconds: wall clock. memory_mb: MiB. output_chars: characters printed
    and shown, all together; more is cut."""

    seconds: float = 1.0
    memory_mb: int = 64
    output_chars: int = 2000


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a code. text: what it printed, and the value of its last line. failure: kind of
    `rntp.tools.Failure`, "" where there was none."""

    text: str
    failure: str = ""


class Sandbox(Protocol):
    """Runs code, from any thread. digest: of what decides about an outcome."""

    digest: str

    def run(self, code: str) -> Ran: ...

    def close(self) -> None: ...


def show(printed: str, value: str | None) -> str:
    """What was printed and the last line's value, as an interactive session shows both."""
    gap = "\n" if printed and value is not None and not printed.endswith("\n") else ""
    return (printed + gap + (value or "")).rstrip("\n")
