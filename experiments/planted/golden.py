"""The golden run: 20 steps at a fixed seed on one CPU thread, compared with what they once were.

    python experiments/planted/golden.py            compare
    python experiments/planted/golden.py --write    write golden.json anew, after a meant change

On the machine and versions that wrote golden.json every number must be equal to the bit.
OtherLogprobs sums round differently; a thought may then be sampled differently, and from there the
runs part. So the first step, which samples from the committed weights, must agree to FIRST_STEP,
and the mean of the last ten to MEAN_OF_LAST.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from make_corpus import write_corpus

from rntp.config import Config
from rntp.trainer import Trainer

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
KEYS = ("reward/mean", "nll/think", "nll/no_think", "loss/total", "grad_norm", "data/digest")
FIRST_STEP = 1e-3  # relative
MEAN_OF_LAST = 0.1  # nats per token, of nll/think and nll/no_think


def run(folder: Path) -> list[dict[str, Any]]:
    """The metrics of the 20 steps; writes corpus and run into `folder`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        write_corpus(folder / "corpus", seed=1, num_pages=200)
        overrides = {
            "run.steps": 20,
            "run.dir": folder / "run",
            "model.spec": HERE / "base",
            "data.source": folder / "corpus",
            "data.docs_per_step": 4,
            "evaluation.docs": 0,
        }
        sets = [f"{name}={value}" for name, value in overrides.items()]
        Trainer(Config.load(HERE / "short.yaml", sets)).fit()
    finally:
        torch.set_num_threads(threads)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: line[key] for key in KEYS} for line in map(json.loads, lines)]


def machine() -> dict[str, str]:
    """What the bits of a sum depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
        names = [value.strip() for key, value in fields if key.strip() in ("model name", "model")]
        cpu = " ".join([cpu, *names[:2]])
    return {
        "torch": torch.__version__,
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def differences(golden: dict[str, Any], lines: list[dict[str, Any]]) -> list[str]:
    """What is not as it was, one line each; empty if all is well."""
    wanted = golden["steps"]
    if golden["machine"] == machine():
        return [
            f"step {n}, {key}: {line[key]!r}, golden {old[key]!r}"
            for n, (line, old) in enumerate(zip(lines, wanted, strict=True), 1)
            for key in KEYS
            if line[key] != old[key]
        ]
    found = [
        f"step 1, {key}: {lines[0][key]!r}, golden {wanted[0][key]!r}"
        for key in KEYS[:-1]
        if abs(lines[0][key] - wanted[0][key]) > FIRST_STEP * abs(wanted[0][key])
    ]
    for key in ("nll/think", "nll/no_think"):
        new, old = (sum(line[key] for line in part[-10:]) / 10 for part in (lines, wanted))
        if abs(new - old) > MEAN_OF_LAST:
            found.append(f"{key}, mean of the last ten steps: {new}, golden {old}")
    if [line["data/digest"] for line in lines][:1] != [wanted[0]["data/digest"]]:
        found.append("step 1 saw other data")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write golden.json anew")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder))
    if arguments.write:
        facts = {"machine": machine(), "steps": lines}
        GOLDEN.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return
    found = differences(json.loads(GOLDEN.read_text(encoding="utf-8")), lines)
    print("\n".join(found) or "as golden")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
