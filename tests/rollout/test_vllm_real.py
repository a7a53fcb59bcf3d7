"""vLLM itself, with a tiny model: `make vllm` first, else these are skipped and counted as such."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ARCHITECTURES, tiny_run, tiny_tokenizer
from rntp_kernels import TreeAttention, TreeLayout
from test_calling import MARKERS, called, thoughts_of
from test_vllm_engine import distances

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel, load_model
from rntp.rollout.vllm import environment
from rntp.rollout.vllm.engine import VllmEngine
from rntp.rollout.vllm.weights import write_weights
from rntp.run.log import read_metrics
from rntp.types import Context, NextTokenStats

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get(environment.NAMED_BY) or ROOT / environment.DEFAULT)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"there is no vLLM at {PYTHON}: make vllm"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random Llama whose heads are as wide as vLLM's kernels want them: 64."""
    config_class, model_class, _ = ARCHITECTURES["llama"]
    folder = tmp_path_factory.mktemp("vllm") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = model_class(
            config_class(
                vocab_size=320,
                hidden_size=128,
                intermediate_size=192,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=64,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0, 0.15)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(str(folder))


def test_a_run_whose_sampler_runs_vllm(model: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    """Trainer, sampler and vLLM are three processes; they meet in a store."""
    raw = tiny_run(Path(model.spec), corpus, tmp_path / "run")
    raw["model"]["dtype"] = "float32"
    raw["run"]["steps"] = 2
    raw["evaluation"] = {"docs": 0}
    raw["rollout"] = {
        "engine": {"vllm": {"python": str(PYTHON), "cache_gib": 0.25}},
        "samplers": {"start": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "data_prep")]
    ran = subprocess.run(
        [sys.executable, "-m", "rntp", "train", str(tmp_path / "config.yaml")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = read_metrics(tmp_path / "run")
    assert [row["rollout/refused"] for row in rows] == [0, 0]
    assert all(0 <= row["rollout/canary"] < 1e-4 for row in rows)
    assert all(abs(row["kl/sampler"]) < 1e-6 for row in rows)
    said = (tmp_path / "run" / "samplers" / "local-1.txt").read_text()
    assert "thoughts are sampled by vllm 0.32" in said


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (40, 70)


@torch.no_grad()
def test_vllm_samples_what_the_trainer_computes(model: LanguageModel, tmp_path: Path) -> None:
    """Log-probs, groups, seeds, answers; new weights; and old ones in their place."""
    raw = tiny_run(tmp_path, tmp_path, tmp_path / "run")
    raw["model"]["dtype"] = "float32"
    raw["data"]["context_tokens"] = 96
    raw["thought"] |= {"thought_tokens": 24, "temperature": 0.7}
    engine = f"rollout.engine={{vllm: {{python: {PYTHON}, cache_gib: 0.25}}}}"
    config = Config.parse(raw, [engine])
    generator = torch.Generator().manual_seed(1)
    contexts = [
        Context(n, f"doc{n}", torch.randint(1, 318, (90,), generator=generator)) for n in range(3)
    ]
    sampler = VllmEngine(model, config, thoughts=4, answer_tokens=3)
    sampler.open(tmp_path / "vllm.txt")
    try:
        for version in range(2):
            rollouts = sampler.sample(contexts, place, policy_version=version)
            assert 0 <= sampler.distance < 1e-4
            assert distances(model, rollouts, 0.7).max() < 1e-3
            thoughts = thoughts_of(rollouts)
            assert len({tuple(t.sampled_ids.tolist()) for t in thoughts}) == 24
            closed = [t for t in thoughts if t.closed]
            assert all(int(t.sampled_ids[-1]) == model.think_close_id for t in closed)
            assert all(len(t.sampled_ids) == 24 for t in thoughts if not t.closed)
            assert all(model.think_close_id not in t.content.tolist() for t in thoughts)
            model.hf.model.layers[1].mlp.down_proj.weight.mul_(1.2)
            # Tied to the head, which vLLM packs: a load of tied weights leaves the old head.
            model.hf.model.embed_tokens.weight.mul_(1.02)

        def old(model: LanguageModel, folder: Path) -> None:
            weight = model.hf.model.layers[1].mlp.down_proj.weight
            weight.div_(1.2)
            write_weights(model, folder)
            weight.mul_(1.2)

        sampler._write = old
        with pytest.raises(ConfigError, match="does not compute with the weights of version 2"):
            sampler.sample(contexts, place, policy_version=2)
    finally:
        sampler.close()


@torch.no_grad()
def test_vllm_goes_on_behind_results(model: LanguageModel, tmp_path: Path) -> None:
    """Log-probs are those of the trainer, before a call and behind what it gave."""
    caller = load_model(model.spec, tool_markers=MARKERS)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 318, (90,), generator=generator)
    page = TreeLayout((90,), (-1,), (0,))
    usual = caller.hidden(ids, torch.arange(90), TreeAttention(page, caller.device)).mean(dim=0)
    embeddings = caller.hf.model.embed_tokens.weight
    for marker in caller.tool_ids[:2]:  # likelier than others, so that there are calls
        embeddings[marker] += 5.0 * usual / usual.square().sum()
    raw = tiny_run(tmp_path, tmp_path, tmp_path / "run")
    raw["model"]["dtype"] = "float32"
    raw["data"]["context_tokens"] = 96
    raw["thought"] |= {
        "thought_tokens": 24,
        "tools": {"use": {"python": None}, "calls": 2, "result_tokens": 6},
    }
    engine = f"rollout.engine={{vllm: {{python: {PYTHON}, cache_gib: 0.25}}}}"
    config = Config.parse(raw, [engine])
    sampler = VllmEngine(caller, config, thoughts=4)
    sampler.open(tmp_path / "vllm.txt")
    try:
        with called(caller) as tools:
            sampler.tools = tools
            rollouts = sampler.sample([Context(0, "doc", ids)], place)
    finally:
        sampler.close()
    assert any(t.num_given for t in thoughts_of(rollouts))
    assert distances(caller, rollouts, 1.0).max() < 1e-3
