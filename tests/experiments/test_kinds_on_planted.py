"""Kinds of attention that trees have learnt, trained: 20 steps on the planted corpus."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path[:0] = [str(EXPERIMENTS / "planted"), str(EXPERIMENTS / "models")]

import make_corpus  # noqa: E402
from tiny_models import tiny_model  # noqa: E402
from tokenizer import make_tokenizer, vocabulary  # noqa: E402

from rntp.config import Config  # noqa: E402
from rntp.run import checkpoint  # noqa: E402
from rntp.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.slow

STEPS = 20
# Windows of 24 positions on pages of 96; padded vocabularies; weights that decide little at first.
KINDS = {
    "latent attention": ("deepseek_v3", {}),
    "soft caps": ("gemma2", {"sliding_window": 24}),
    "sinks": (
        "gpt_oss",
        {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "shards"
    make_corpus.write_corpus(folder, seed=3, num_pages=60)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_are_finite_and_the_loss_falls(
    kind: str, planted: Path, tmp_path: Path
) -> None:
    name, fields = KINDS[kind]
    model = tiny_model(name, vocab_size=len(vocabulary()) + 30, **fields)
    with torch.no_grad():  # predictions that are wrong with confidence would fall by themselves
        model.get_output_embeddings().weight.mul_(0.1)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    config = {
        "run": {"steps": STEPS, "dir": str(tmp_path / "run"), "seed": 3},
        "model": {"spec": str(tmp_path / "model"), "dtype": "bfloat16", "device": "cpu"},
        "data": {
            "source": str(planted),
            "context_tokens": 96,
            "docs_per_step": 4,
            "heldout_fraction": make_corpus.HELDOUT_FRACTION,
        },
        "placement": {"positions_per_doc": 3, "min_prefix_tokens": 8},
        "thought": {"thoughts_per_position": 3, "thought_tokens": 6},
        "reward": {"horizon": 3},
        "objective": {"ntp_weight": 1.0},
        "optim": {"lr": 5e-3, "warmup_steps": 2},
        "checkpoint": {"every_steps": STEPS, "keep": 1},
        "evaluation": {"docs": 0},
        "parallel": {"tokens_per_microbatch": 500},
    }
    Trainer(Config.parse(config)).fit()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["skipped"] == 0
        assert all(math.isfinite(row[key]) for key in ("loss/total", "loss/ntp", "grad_norm"))
        assert abs(row["kl/sampler"]) < 0.02  # bfloat16: drawn and scored by the same weights
    losses = [row["loss/ntp"] for row in rows]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    weights = checkpoint.load(next((tmp_path / "run" / "checkpoints").glob("step_*20")), "weights")
    learnt = {"sinks": "sinks", "latent attention": "kv_b_proj", "soft caps": "k_proj"}[kind]
    own = [n for n in weights if learnt in n]
    assert own
    for parameter in own:
        assert not torch.equal(weights[parameter], model.state_dict()[parameter])
