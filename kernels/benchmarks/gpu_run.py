"""A real run on this GPU, in pieces of a few minutes: `make gpu-run`.

    python kernels/benchmarks/gpu_run.py --seconds 440

Evaluates, trains, and evaluates again: SmolLM2-135M on prepared shards, with as many documents a
step as the card takes. After the seconds the run is asked to stop and saves; the same command goes
on. FOLDER/gpu_run.json is written after every piece: steps, tokens a second, memory, and in the end
the comparison. Exit codes: 0 done, 5 not yet: the same command goes on, others as of `rntp train`.
Runs from a checkout that is not installed, with torch and transformers there.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "data_prep")]
sys.path[:0] = SOURCES

import torch  # noqa: E402

from rntp.config import Config  # noqa: E402
from rntp.model import pick_device  # noqa: E402
from rntp.run.log import read_metrics  # noqa: E402
from rntp.runtime.files import write_json  # noqa: E402
from rntp.runtime.memory import total_bytes  # noqa: E402
from rntp.runtime.provenance import environment  # noqa: E402
from rntp.training.estimate import Shape, Tokens, peak_memory  # noqa: E402

MOST_DOCS = 64
SHARE = 0.7  # of the memory: the estimate is no proof
PREEMPTED = 5
SAVES_S = 40.0  # that a stop takes: of the seconds


def main() -> int:
    """Do a piece, and write down what there is."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    while True:
        overrides = chosen(options)
        code, said = piece(options, overrides, options.seconds - (time.monotonic() - began))
        docs = json.loads((options.out / "batch.json").read_text())["docs"]
        if code == 1 and "not enough memory" in said and docs > 1:
            print(f"gpu-run: {docs} documents a step are too many; {docs // 2} now", flush=True)
            shutil.rmtree(options.out / "run", ignore_errors=True)
            write_json(options.out / "batch.json", {"docs": docs // 2})
            continue
        report(options, code, docs, said)
        return code


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--out", type=Path, default=Path("build/gpu-run"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=440, help="of this piece")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[str]:
    """Overrides of the run: the documents of a step are chosen once, and stay for a resume."""
    kept = options.out / "batch.json"
    if not kept.exists():
        config = Config.load(options.config, options.overrides)
        shape = Shape.of_spec(config.model.spec, config.model.sharing)
        write_json(kept, {"docs": documents(config, shape)})
    docs = json.loads(kept.read_text())["docs"]
    return [*options.overrides, *sized(docs), f"run.dir={options.out / 'run'}"]


def documents(config: Config, shape: Shape) -> int:
    """The most documents that one microbatch may have on this device, a power of 2."""
    device = pick_device(config.model.device)
    room = SHARE * total_bytes(device)
    docs = 1
    while docs < MOST_DOCS:
        larger = config_of(config, 2 * docs)
        if peak_memory(larger, shape) > room:
            break
        docs *= 2
    return docs


def config_of(config: Config, docs: int) -> Config:
    """The same config with so many documents, all in one microbatch."""
    tokens = Tokens.of(config).tree // config.data.docs_per_step
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"docs_per_step": docs}),
            "rollout": config.rollout.model_copy(update={"docs_per_batch": docs}),
            "parallel": config.parallel.model_copy(update={"tokens_per_microbatch": docs * tokens}),
        }
    )


def sized(docs: int) -> list[str]:
    """Overrides for so many documents a step; a microbatch may have all of them."""
    return [
        f"data.docs_per_step={docs}",
        f"rollout.docs_per_batch={docs}",
        "parallel.tokens_per_microbatch=100000000",
    ]


def piece(options: argparse.Namespace, overrides: list[str], seconds: float) -> tuple[int, str]:
    """Train for so many seconds; exit code, and the end of what was said."""
    sets = [f"--set={override}" for override in overrides]
    log = options.out / "log.txt"
    path = os.pathsep.join([*SOURCES, os.environ.get("PYTHONPATH", "")])
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rntp", "train", str(options.config), *sets],
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            code = process.wait(max(1.0, seconds - SAVES_S))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(SAVES_S)
                if code == -signal.SIGTERM:  # it came before the program could listen
                    code = PREEMPTED
            except subprocess.TimeoutExpired:
                process.kill()  # costs the steps since the last checkpoint, no more
                process.wait()
                code = PREEMPTED
    return code, log.read_bytes()[begin:].decode("utf-8", "replace")[-4000:]


def report(options: argparse.Namespace, code: int, docs: int, said: str) -> None:
    """Write gpu_run.json, and say the state."""
    run = options.out / "run"
    rows = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    found: dict[str, Any] = {
        **environment("cuda" if torch.cuda.is_available() else "cpu"),
        "command": "make gpu-run",
        "exit code": code,
        "documents a step": docs,
        "steps": len(rows),
        "evaluations": {
            path.stem: json.loads(path.read_text()) for path in sorted(run.glob("eval/*.json"))
        },
    }
    if len(rows) > 2:
        last = rows[2:]
        step = statistics.median(row["time/step_s"] for row in last)
        found |= {
            "step, s": step,
            "tree tokens a second": statistics.median(r["tokens/tree"] for r in last) / step,
            "thought tokens a second of rollout": statistics.median(
                r["tokens/thought"] / r["time/rollout_s"] for r in last
            ),
            "TFLOP/s": statistics.median(row["compute/tflop"] for row in last) / step,
            "peak memory, GB": max(row["memory/peak_gb"] for row in last),
            "gain, first ten steps": statistics.mean(r["gain/mean"] for r in rows[:10]),
            "gain, last ten steps": statistics.mean(r["gain/mean"] for r in rows[-10:]),
        }
    if code not in (0, PREEMPTED):
        found["said"] = said
        print(said)
    write_json(options.out / "gpu_run.json", found)
    state = {0: "done", PREEMPTED: "not done yet; the same command goes on"}.get(code, "FAILED")
    print(f"gpu-run: {len(rows)} steps of {docs} documents, {state}; {options.out}/gpu_run.json")


if __name__ == "__main__":
    sys.exit(main())
