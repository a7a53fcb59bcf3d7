"""The whole fault matrix: `make faults`, or `python tests/faults/matrix.py [WORD …] [--out FILE]`.

WORDs run the cases whose names contain one of them, and write a table only where --out says; those
of samplers: `… matrix.py samplers --out experiments/faults/SAMPLERS.md`. Exits with 1 if a case did
not end as it has to.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
# The fork server and its children find the tests and the program there.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
)
sys.path.insert(0, str(ROOT / "tests"))

from faults.cases import MATRIX  # noqa: E402
from faults.lab import Lab, Row  # noqa: E402
from faults.rank_cases import RANK_MATRIX, RANKS  # noqa: E402
from faults.sampler_cases import SAMPLER_MATRIX  # noqa: E402

from rntp.run.log import duration  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cases = {**MATRIX, **RANK_MATRIX, **SAMPLER_MATRIX}
    names = [n for n in cases if not arguments.words or any(w in n for w in arguments.words)]
    start = time.monotonic()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        alone, together = Lab(Path(folder) / "alone"), Lab(Path(folder) / "together", RANKS)
        for done, name in enumerate(names):
            rows[name] = _run(cases[name], together if name in RANK_MATRIX else alone, name)
            took = time.monotonic() - start
            left = duration(took / (done + 1) * (len(names) - done - 1))
            verdict = "ok" if _good(rows[name]) else "FAILED"
            print(f"{done + 1:>3}/{len(names)}  {verdict:<6}  {name}  eta {left}", flush=True)
            for problem in rows[name].problems:
                print("     " + problem.replace("\n", "\n     "), flush=True)
    failed = [name for name, row in rows.items() if not _good(row)]
    out = arguments.out or (None if arguments.words else ROOT / "experiments/faults/RESULTS.md")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = report(rows, time.monotonic() - start, arguments.words)
        out.write_text(text, encoding="utf-8")
        print(f"written to {out}")
    print(f"{len(rows) - len(failed)} of {len(rows)} cases ended as they have to")
    sys.exit(1 if failed else 0)


def _run(case: Callable[[Lab], Row], lab: Lab, name: str) -> Row:
    try:
        return case(lab)
    except Exception:
        # One broken case is a line of the table; the others still have something to say.
        trace = traceback.format_exc()
        return Row(name, "", "", "the case itself broke", 0, None, None, None, False, (trace,))


def _good(row: Row) -> bool:
    return row.passed and row.fired


def report(rows: dict[str, Row], seconds: float, words: Sequence[str] = ()) -> str:
    """RESULTS.md: where the table comes from, and the table."""
    good = sum(map(_good, rows.values()))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    head = [
        "# The fault matrix",
        "",
        f"{good} of {len(rows)} cases ended as they have to. A tiny run (6 steps, saved after 2, 4 "
        "and 6) is made to fail, started again with the same command, and compared with the run "
        "that nothing happened to. *Metrics equal*: `metrics.jsonl` to the bit, but for times and "
        "memory; with it rollouts, evaluations, weights and moments were compared. *Once*: every "
        "ordinal was trained exactly once (after a rollback: but for those set aside). *Fired*: "
        "the fault left its proof. *Exit code*: of the rank it fired on; torchrun itself says 1. A "
        "dash: the case has no say in it.",
        "",
        f"Command `{' '.join(['python tests/faults/matrix.py', *words])}`, commit {_commit()}, "
        f"{datetime.now(UTC):%Y-%m-%d}, Python "
        f"{platform.python_version()}, {versions}, CPU ranks over gloo, {duration(seconds)}.",
        "",
        "| point | action | rank | what happened | exit code | resumed at | metrics equal | once "
        "| fired | as it has to |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows.values()), ""])


def _line(row: Row) -> str:
    cells = (
        row.point,
        row.action,
        row.rank,
        row.happened,
        row.exit_code,
        row.resumed_at,
        row.metrics_equal,
        row.once,
        row.fired,
        _good(row),
    )
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return str(value).replace("|", "\\|")


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


if __name__ == "__main__":
    main()
