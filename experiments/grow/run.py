"""Does a corpus that grows where the model learns teach more a page than one that grows evenly?

    python experiments/grow/run.py --out experiments/grow/results

A run begins on planted pages and stops when thoughts have begun to pay. Then its corpus grows by
the planted web (`web.py`), once with `rntp data grow` as it is and once with every page from a
region drawn evenly among the open ones; traps, limits and closed regions are the same. From the
same checkpoint the run goes on over each segment alone, for as many steps, and is measured on other
pages that can be learnt from. The same command goes on after a kill.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import serve
import web
import yaml
from make_base import write_base

from rntp.run.log import provenance_of
from rntp.runtime.files import read_json_lines, write_json

HERE = Path(__file__).parent
CONFIG = HERE / "config.yaml"
ARMS = {"learnt": 0.1, "even": 1.0}  # random_share
START, MORE = 14, 12  # steps before the growth and after it


def rntp(*arguments: object) -> None:
    """Run the program; its lines go where ours go."""
    subprocess.run([sys.executable, "-m", "rntp", *map(str, arguments)], check=True)


def prepare_run(build: Path, seed: int) -> Path:
    """The run that the corpus grows for, trained up to START."""
    for region, count in (("base", 400), ("held", 600)):
        if not (build / region / "manifest.json").is_file():
            write_base(build / region, count, region)
    run = build / f"run-{seed}"
    if not (run / "eval" / f"step_{START:08d}.json").is_file():
        rntp("train", CONFIG, "--run-dir", run, *settings(build, seed, build / "base", START))
    return run


def settings(build: Path, seed: int, source: Path, steps: int) -> list[str]:
    """Overrides of the config."""
    pairs = {
        "run.seed": seed,
        "run.steps": steps,
        "data.source": source,
        "evaluation.source": build / "held",
    }
    return [part for key, value in pairs.items() for part in ("--set", f"{key}={value}")]


def grow(build: Path, run: Path, seed: int, arm: str, pages: int, port: int) -> Path:
    """Grow the corpus of the run; the folder that it grows in."""
    out = build / f"grown-{seed}-{arm}"
    if (out / "source.json").is_file():
        return out
    with serve.served(port) as (address, asked):
        frontier = {
            "output": str(out),
            "sites": {address: None},
            "pages": pages,
            "random_share": ARMS[arm],
            "positions": 6,
            "thoughts": 4,
            "seed": seed,
            "delay_s": 0,
            "page_s": 2.0,
            "page_bytes": 200_000,
            "prep": {"min_tokens": 40, "min_chars": 100, "workers": 1},
        }
        path = out.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(frontier, sort_keys=False))
        rntp("data", "grow", run, "--frontier", path)
        write_json(out / "asked.json", asked)
    return out


def go_on(build: Path, run: Path, grown: Path, seed: int, arm: str) -> dict[str, Any]:
    """Train on over what has grown, and measure."""
    folder = build / f"run-{seed}-{arm}"
    if not folder.is_dir():
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.html", ".lock"))
    done = folder / "eval" / f"step_{START + MORE:08d}.json"
    if not done.is_file():
        source = grown / "segments" / "0001"
        change = ["--accept-data-change", *settings(build, seed, source, START + MORE)]
        rntp("train", CONFIG, "--run-dir", folder, *change)
    return json.loads(done.read_text())


def measured(grown: Path, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What an arm fetched, what its traps cost, and what the run learnt from it."""
    rows = read_json_lines(grown / "grow.jsonl")
    pages = [row for row in rows if row["row"] == "page"]
    requests = Counter[str]()
    for row in pages:
        requests[row["region"].partition("/")[2] or "start"] += row["requests"]
    total = requests.total()
    return {
        "requests": total,
        "by_region": dict(sorted(requests.items())),
        "learnable": sum(requests[name] for name in web.LEARNABLE) / total,
        "traps": sum(requests[name] for name in (*web.TRAPS, "etc")) / total,
        "gain_before": before["gain/mean"],
        "gain_after": after["gain/mean"],
        "nll_before": before["nll/think"],
        "nll_after": after["nll/think"],
        "gain_a_page": (after["gain/mean"] - before["gain/mean"]) / total,
        "nats_a_page": (before["nll/think"] - after["nll/think"]) / total,
        "outside": sum("other.example" in path for path in _asked(grown)),
    }


def _asked(grown: Path) -> list[str]:
    path = grown / "asked.json"
    return json.loads(path.read_text()) if path.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of all arms."""
    head = (
        "| seed | frontier | requests | of learnable regions | of traps | gain before | after | "
        "loss with thoughts before | after | gain a 100 pages |"
    )
    lines = [head, "|" + " --- |" * 10]
    for row in rows:
        lines.append(
            f"| {row['seed']} | {row['arm']} | {row['requests']} | {row['learnable']:.0%} | "
            f"{row['traps']:.1%} | {row['gain_before']:+.3f} | {row['gain_after']:+.3f} | "
            f"{row['nll_before']:.3f} | {row['nll_after']:.3f} | {100 * row['gain_a_page']:+.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--build", type=Path, default=Path("build/grow"))
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--port", type=int, default=8023)
    arguments = parser.parse_args()
    arguments.build.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(arguments.seeds):
        run = prepare_run(arguments.build, seed)
        before = json.loads((run / "eval" / f"step_{START:08d}.json").read_text())
        for arm in ARMS:
            grown = grow(arguments.build, run, seed, arm, arguments.pages, arguments.port)
            after = go_on(arguments.build, run, grown, seed, arm)
            ran = provenance_of(arguments.build / f"run-{seed}-{arm}")
            found = measured(grown, before, after)
            rows.append({"seed": seed, "arm": arm, **found, "provenance": ran})
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "table.json", rows)
    (arguments.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
