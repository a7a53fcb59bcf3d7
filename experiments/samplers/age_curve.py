"""What age costs on the planted corpus: gain after equal steps, by how old rollouts are.

    python experiments/samplers/age_curve.py [--seeds 3] [--ages 0 1 4 16] [--corpus build/planted]

Every run goes through a store, with its sampler in the same process: it samples whatever is open as
soon as the trainer opens it, as a sampler does that is quicker than the trainer. So from step
S + 1 on every rollout is exactly S updates old, and a run is the same on every machine of one kind.
Runs that are done are not done again. Writes results/age.json and RESULTS.md.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from rntp.config import Config
from rntp.rollout.store.desk import Desk
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.sampler import Sampler
from rntp.run.log import read_metrics
from rntp.trainer import Trainer

HERE = Path(__file__).parent
OFF = "objective.algorithm={policy_gradient: {importance_cap: 0, importance_mask: [0, 0]}}"
LAST = 10  # steps that the rates of a table are means over
RATES = ("kl/sampler", "policy/ess_frac", "policy/truncated_frac", "policy/masked_frac")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ages", type=int, nargs="+", default=[0, 1, 4, 16])
    parser.add_argument("--corpus", type=Path, default=Path("build/planted"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    path = HERE / "results" / "age.json"
    path.parent.mkdir(exist_ok=True)
    done = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(arguments.seeds):
        for age in arguments.ages:
            for corrected in (True, False) if age else (True,):
                name = f"age {age}, {'corrected' if corrected else 'plain'}, seed {seed}"
                if name in done:
                    continue
                options = [f"run.seed={seed}", f"data.source={arguments.corpus}"]
                options += [f"rollout.samplers.max_age={age}", *([] if corrected else [OFF])]
                done[name] = run(age, options + arguments.overrides)
                path.write_text(json.dumps(done, indent=1) + "\n")
                print(name, done[name], flush=True)
    (HERE / "RESULTS.md").write_text(page(done), encoding="utf-8")


def run(age: int, options: list[str]) -> dict[str, float]:
    """One run; what it gained on held-out pages, and what its last steps say."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        store.mkdir()
        sampler = Sampler(FolderFiles(store), "beside", say=lambda line: None)
        offer = Desk.offer

        def offer_and_sample(self: Desk, *given: object) -> None:
            offer(self, *given)  # type: ignore[arg-type]
            while sampler.once() == "sampled":
                pass

        Desk.offer = offer_and_sample  # type: ignore[method-assign]
        try:
            more = [f"run.dir={folder}/run", f"rollout.samplers.store={store}"]
            config = Config.load(HERE / "age.yaml", [*options, *more])
            comparison = Trainer(config).fit()
        finally:
            Desk.offer = offer  # type: ignore[method-assign]
            sampler.close()
        assert comparison is not None
        rows = read_metrics(config.run.dir)
        after = sorted((config.run.dir / "eval").glob("step_*.json"))[-1]
        measured = json.loads(after.read_text())
    assert {row["rollout/age_max"] for row in rows[age:]} == {age}
    found = {"gain": measured["gain/mean"], "nll/no_think": measured["nll/no_think"]}
    for key in ("gain/mean", *RATES):
        values = [row[key] for row in rows[-LAST:] if key in row]
        if values:
            found[key] = statistics.fmean(values)
    return found


def page(done: dict[str, dict[str, float]]) -> str:
    """The table, with standard errors over seeds."""
    arms: dict[str, list[dict[str, float]]] = {}
    for name, found in done.items():
        arms.setdefault(name.rpartition(", ")[0], []).append(found)
    columns = ("gain", "nll/no_think", *RATES)
    lines = [
        "# What age costs",
        "",
        "`python experiments/samplers/age_curve.py`: the planted corpus, "
        f"{Config.load(HERE / 'age.yaml').run.steps} steps of age.yaml, gain on held-out pages "
        "(nats a token, mean ± standard error over seeds), and means over the last "
        f"{LAST} steps. `plain` is without importance weights and mask.",
        "",
        "The run is short and its rate high: these are the steps in which thoughts begin to pay, "
        "and a seed that has not got there by the end has a gain near 0.",
        "",
        "| rollouts | gain by seed | " + " | ".join(columns) + " |",
        "|" + "---|" * (2 + len(columns)),
    ]
    for arm, rows in arms.items():
        cells = [_cell([row[c] for row in rows if c in row]) for c in columns]
        seeds = ", ".join(f"{row['gain']:.2f}" for row in rows)
        lines.append(f"| {arm} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(values) / len(values) ** 0.5:.1g}"


if __name__ == "__main__":
    sys.exit(main())
