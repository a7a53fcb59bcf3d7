"""Is vLLM right, and how fast is it: SmolLM2-135M on the CPU, beside the in-process engine.

    python experiments/samplers/vllm_check.py [--stages agreement planted speed runs] [--threads 1]

Writes results/vllm.json and VLLM.md. Needs `make vllm` and the quickstart's shards.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from vllm_page import page

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.errors import ConfigError
from rntp.model import LanguageModel
from rntp.model.language_model import cast_parameters
from rntp.model.opening import open_model
from rntp.model.thought_tree import ThoughtTree
from rntp.rollout.engine import open_engine
from rntp.rollout.sampling import greedy
from rntp.rollout.vllm.engine import VllmEngine
from rntp.rollout.vllm.environment import find_environment
from rntp.rollout.vllm.weights import canary_bound, write_weights
from rntp.run.log import read_metrics
from rntp.types import Context, NextTokenStats, Rollout

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = HERE / "vllm.yaml"
POSITIONS = (100, 120, 140, 160)
GROUP, BUDGET, CONTEXTS = 8, 16, 32
TURNS = 3
SMALL = (
    "run.steps=3",
    "data.docs_per_step=2",
    "placement.positions_per_doc=2",
    "thought.thoughts_per_position=2",
)
STEP = 1e-4  # how far an update of Adam moves a weight at the quickstart's rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", default=["agreement", "planted", "speed", "runs"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    path = HERE / "results" / "vllm.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for stage in arguments.stages:
        for dtype in arguments.dtypes if stage != "runs" else [""]:
            begun, load = time.time(), os.getloadavg()[0]
            found = STAGES[stage](dtype) if dtype else runs(arguments.threads)
            found["about"] = {
                **about(arguments.threads),
                "seconds": round(time.time() - begun),
                "load_before": load,
                "load_after": os.getloadavg()[0],
            }
            if path.exists():  # others may have written meanwhile
                done = json.loads(path.read_text())
            done[f"{stage} {dtype}".strip()] = found
            path.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
            print(stage, dtype, json.dumps(found), flush=True)
    (HERE / "VLLM.md").write_text(page(done), encoding="utf-8")


def about(threads: int) -> dict[str, Any]:
    """What was measured with what."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "command": "python experiments/samplers/vllm_check.py",
        "commit": commit.stdout.strip(),
        "vllm": find_environment().version,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": threads,
        "cores": os.cpu_count(),
    }


class Bench:
    """A model in a type, pages of the quickstart, and vLLM with it."""

    def __init__(self, dtype: str) -> None:
        self.config = Config.load(CONFIG, [f"model.dtype={dtype}", "evaluation.docs=1"])
        self.model = open_model(self.config)
        if dtype == "bfloat16":
            cast_parameters(self.model.hf, torch.bfloat16)
        corpus = open_corpus(self.config, open_data(self.config), self.model.tokenizer)
        found = (corpus.train[n] for n in range(10 * CONTEXTS))
        least = POSITIONS[-1] + self.config.reward.horizon
        self.contexts = [c for c in found if len(c) >= least][:CONTEXTS]
        corpus.close()
        self.log = Path(tempfile.mkdtemp()) / "vllm.txt"

    def vllm(self, thoughts: int = GROUP, **more: Any) -> VllmEngine:
        engine = VllmEngine(self.model, self.config, thoughts=thoughts, **more)
        engine.open(self.log)
        return engine


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return POSITIONS


@torch.no_grad()
def agreement(dtype: str) -> dict[str, Any]:
    """How far vLLM is from the trainer's own forward, and whether wrong weights are seen."""
    bench = Bench(dtype)
    begun = time.monotonic()
    engine = bench.vllm()
    found: dict[str, Any] = {
        "start_s": time.monotonic() - begun,
        "canary": engine.distance,
    }
    rollouts = engine.sample(bench.contexts, place)
    gaps = torch.cat([gap(bench.model, r) for r in rollouts])
    found |= {
        "thoughts": sum(len(g) for r in rollouts for g in r.thoughts),
        "tokens": len(gaps),
        "gap_mean": float(gaps.abs().mean()),
        "gap_max": float(gaps.abs().max()),
        "gap_signed": float(gaps.mean()),
        "kl": float((gaps.exp() - 1 - gaps).mean()),
    }
    some = bench.config.rollout.docs_per_batch  # the first batch: the same requests at a time
    again = engine.sample(bench.contexts[:some], place)
    found["same_twice"] = alike(rollouts[:some], again)
    engine.close()
    return found | greedily(bench)


def gap(model: LanguageModel, rollout: Rollout) -> Tensor:
    """Trainer's log-prob minus sampler's, of every drawn token."""
    tree = ThoughtTree.build(
        [rollout],
        think_open_id=model.think_open_id,
        think_close_id=model.think_close_id,
        horizon=1,
    )
    rows = tree.tree.hidden(model)[tree.thought_rows]
    trainer, _, _ = model.logprob(rows, tree.thought_targets)
    return trainer - torch.cat([t.drawn_logprobs for g in rollout.thoughts for t in g])


def tokens_of(rollouts: list[Rollout]) -> list[list[int]]:
    return [t.sampled_ids.tolist() for r in rollouts for g in r.thoughts for t in g]


def alike(one: list[Rollout], other: list[Rollout]) -> dict[str, float]:
    """Shares of thoughts that are equal, and of tokens before the first that is not."""
    pairs = list(zip(tokens_of(one), tokens_of(other), strict=True))
    before = [
        next(
            (n for n, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(map(len, (x, y)))
        )
        for x, y in pairs
    ]
    return {
        "thoughts": sum(x == y for x, y in pairs) / len(pairs),
        "tokens": sum(before) / sum(len(x) for x, _ in pairs),
    }


def greedily(bench: Bench) -> dict[str, Any]:
    """The most likely tokens by both."""
    cold = bench.config.thought.model_copy(update={"temperature": 0.0})
    config, model = bench.config.model_copy(update={"thought": cold}), bench.model
    engine = VllmEngine(model, config, thoughts=1)
    engine.open(bench.log)
    by_vllm = engine.sample(bench.contexts, place)
    engine.close()
    here = open_engine(model, bench.config, thoughts=1)
    here.draw = greedy  # type: ignore[union-attr]
    return {"greedy": alike(by_vllm, here.sample(bench.contexts, place))}


Write = Callable[[LanguageModel, Path], None]


def writers(bench: Bench, start: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Write]:
    """What is written for vLLM, by what it is."""

    def others(weights: dict[str, Tensor]) -> Write:
        def write(model: LanguageModel, folder: Path) -> None:
            kept = taken(bench)
            give(bench, weights)
            write_weights(model, folder)
            give(bench, kept)

        return write

    def changed(change: Callable[[Tensor], Tensor]) -> Write:
        def write(model: LanguageModel, folder: Path) -> None:
            one = dict(model.hf.named_parameters())["model.layers.3.self_attn.q_proj.weight"]
            kept = one.data
            one.data = change(kept)
            write_weights(model, folder)
            one.data = kept

        return write

    return {
        "the trainer's": write_weights,
        "of the step before": others(before),
        "of the start": others(start),
        "one matrix half as large again": changed(lambda weight: weight * 1.5),
        "one matrix's rows in another order": changed(lambda weight: weight.flip(0)),
    }


def taken(bench: Bench) -> dict[str, Tensor]:
    return {name: p.data.clone() for name, p in bench.model.hf.named_parameters()}


def give(bench: Bench, weights: dict[str, Tensor]) -> None:
    for name, p in bench.model.hf.named_parameters():
        p.data = weights[name].clone()


@torch.no_grad()
def planted(dtype: str) -> dict[str, Any]:
    """What the canary says of weights that are not the trainer's, each after an update."""
    bench = Bench(dtype)
    start, engine = taken(bench), bench.vllm()
    found: dict[str, Any] = {"bound": canary_bound(bench.config, bench.model.head.dtype)}
    for version, name in enumerate(writers(bench, {}, {}), start=1):
        if engine._child is None:  # a refusal has ended it: begin again, from the start
            give(bench, start)
            engine._write = write_weights
            engine.open(bench.log)
        before = taken(bench)
        generator = torch.Generator().manual_seed(version)
        for p in bench.model.hf.parameters():
            move = STEP * torch.randn(p.shape, generator=generator).sign()
            p.data = (p.data.float() + move).to(p.dtype)
        engine._write = writers(bench, start, before)[name]
        said = ""
        try:
            engine._take_weights(version, lambda: None)
        except ConfigError as error:
            said = str(error)
            engine.close()
        found[name] = {"distance": engine.distance, "refused": bool(said), "said": said}
    engine.close()
    return found


def speed(dtype: str) -> dict[str, Any]:
    """Tokens a second of both, in turns."""
    bench = Bench(dtype)
    engine = bench.vllm()
    here = open_engine(bench.model, bench.config, thoughts=GROUP)
    found: dict[str, Any] = {}
    for docs in (1, 8):
        rates: dict[str, list[float]] = {"vllm": [], "inprocess": []}
        for turn in range(TURNS):
            contexts = bench.contexts[turn * docs : (turn + 1) * docs]
            for name, one in (("vllm", engine), ("inprocess", here)):
                begun = time.monotonic()
                drawn = one.sample(contexts, place, policy_version=0)
                took = time.monotonic() - begun
                rates[name].append(sum(r.num_sampled for r in drawn) / took)
        branches = docs * len(POSITIONS) * GROUP
        found[f"{branches} branches"] = {
            name: {"tokens_per_s": statistics.median(of), "all": of} for name, of in rates.items()
        }
    begun = time.monotonic()
    engine.sample(bench.contexts[:1], place, policy_version=1)
    found["load_s"] = engine.metrics()["sampler/load_s"]
    engine.close()
    return found


def runs(threads: int) -> dict[str, Any]:
    """A short run in-process, with vLLM, and with vLLM in a sampler of a store."""
    found = {}
    settings = {
        "vllm": [],
        "vllm in a sampler": ["rollout.samplers.start=1"],
        "inprocess": ["rollout.engine=inprocess"],
    }
    for name, overrides in settings.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "rntp", "train", str(CONFIG), "--run-dir", folder]
            for override in [*SMALL, *overrides]:
                command += ["--set", override]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            begun = time.monotonic()
            ran = subprocess.run(command, capture_output=True, text=True, env=environment)
            rows = read_metrics(Path(folder)) if ran.returncode == 0 else []
            keys = ("kl/sampler", "sampler/canary", "sampler/load_s", "rollout/canary")
            keys += ("policy/ess_frac", "policy/masked_frac", "time/rollout_s", "time/step_s")
            found[name] = {
                "exit_code": ran.returncode,
                "seconds": time.monotonic() - begun,
                "metrics": [{k: row[k] for k in keys if k in row} for row in rows],
                "said": "" if ran.returncode == 0 else ran.stdout[-800:] + ran.stderr[-800:],
            }
            print(name, json.dumps(found[name]), flush=True)
    return found


STAGES: dict[str, Callable[[str], dict[str, Any]]] = {
    "agreement": agreement,
    "planted": planted,
    "speed": speed,
}

if __name__ == "__main__":
    main()
