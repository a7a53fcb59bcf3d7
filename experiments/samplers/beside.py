"""Two samplers beside a trainer on one machine, against the trainer that samples itself.

    python experiments/samplers/beside.py [--turns 2] [--steps 12] [--corpus build/planted]

The planted run of ../planted/config.yaml, in turns: in-process on all cores; with two samplers of
one thread each, whose trainer waits for them (age 0) or trains meanwhile (age 1). Medians over the
steps after the first 3. Run it on a machine that does nothing else. Writes results/beside.json and
BESIDE.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rntp.run.log import read_metrics
from rntp.runtime.provenance import environment

HERE = Path(__file__).parent
FIRST = 3  # steps that are not counted: what starts up
CORES = os.cpu_count() or 1
ARMS = {  # age of the rollouts, and threads of the trainer
    "in-process": (None, CORES),
    "2 samplers, age 0": (0, CORES),
    "2 samplers, age 1": (1, 1),
    "2 samplers, age 1, trainer on all cores": (1, CORES),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--corpus", type=Path, default=Path("build/planted"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    options = [f"data.source={arguments.corpus.absolute()}", f"run.steps={arguments.steps}"]
    options += ["evaluation.docs=0", "evaluation.controls=[]", *arguments.overrides]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    load = [os.getloadavg()[0]]
    for _ in range(arguments.turns):
        for name, (age, threads) in ARMS.items():
            rows[name].append(timed(age, threads, options))
            print(name, rows[name][-1], flush=True)
    load.append(os.getloadavg()[0])
    found = {"environment": environment("cpu"), "cores": CORES, "load": load, "turns": rows}
    (HERE / "results" / "beside.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "BESIDE.md").write_text(page(rows, load), encoding="utf-8")


def timed(age: int | None, threads: int, options: list[str]) -> dict[str, float]:
    """One run: medians of its steps, seconds, and what its last step says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rntp"]
        more = [f"run.dir={folder}/run"]
        samplers = []
        if age is not None:
            more += [f"rollout.samplers={{store: {folder}/store, max_age: {age}, contexts: 4}}"]
            samplers = [
                subprocess.Popen([*command, "sample", f"{folder}/store"], env=of_threads(1))
                for _ in range(2)
            ]
        sets = [word for option in [*options, *more] for word in ("--set", option)]
        config = str(HERE.parent / "planted" / "config.yaml")
        try:
            subprocess.run([*command, "train", config, *sets], env=of_threads(threads), check=True)
        finally:
            for sampler in samplers:
                sampler.terminate()
            for sampler in samplers:
                sampler.wait()
        steps = read_metrics(Path(folder) / "run")
    counted = steps[FIRST:]
    names = ("time/step_s", "time/rollout_s")
    found = {name: statistics.median(row[name] for row in counted) for name in names}
    return {**found, "age": counted[-1].get("rollout/age_mean", 0.0), "nll": steps[0]["nll/think"]}


def of_threads(number: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(number)}


def page(rows: dict[str, list[dict[str, float]]], load: list[float]) -> str:
    alone = statistics.median(row["time/step_s"] for row in rows["in-process"])
    lines = [
        "# Samplers beside the trainer",
        "",
        "`python experiments/samplers/beside.py`: the planted run (../planted/config.yaml: a step "
        f"of 15 pages, 20 positions each, 2 thoughts each) on {CORES} cores, in turns; a sampler "
        "has one thread; medians over the steps after the first 3, and over turns. "
        f"Load average {load[0]:.1f} before and {load[1]:.1f} after.",
        "",
        "| | step, s | by turn | of it waiting for thoughts, s | of in-process |",
        "|---|---|---|---|---|",
    ]
    for name, turns in rows.items():
        steps = [row["time/step_s"] for row in turns]
        waits = statistics.median(row["time/rollout_s"] for row in turns)
        each = ", ".join(f"{step:.2f}" for step in steps)
        middle = statistics.median(steps)
        lines += [f"| {name} | {middle:.2f} | {each} | {waits:.2f} | {middle / alone:.2f} |"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
