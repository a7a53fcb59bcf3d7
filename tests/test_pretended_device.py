"""Whole runs on a device whose tensors do not mix with the CPU's: what a GPU would stumble over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run
from pretended import DEVICE, OtherLogprobs, Pretended, crossings, move
from torch.utils._python_dispatch import _disable_current_modes

import rntp.trainer
from rntp.config import Config
from rntp.model import load_model
from rntp.model.opening import open_model
from rntp.rollout.engine import InProcessEngine
from rntp.trainer import Trainer
from rntp.types import Context


def test_the_device_does_not_mix_with_the_cpu() -> None:
    with torch.no_grad(), Pretended():
        x = torch.ones(3, device=DEVICE)
        assert isinstance(x, OtherLogprobs)
        assert float((x * 2 + torch.tensor(1.0)).sum()) == 9
        assert type((x + 1).cpu()) is torch.Tensor
        assert torch.equal(torch.arange(3).to(DEVICE).cpu(), torch.arange(3))
        with pytest.raises(RuntimeError, match="on the device and on the CPU"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "fixed shapes, answers": {
        "thought": {"answer_tokens": 3},
        "reward": {"horizon": 4, "shadows": ["answer_exact", "brier_full", "ppl_rank"]},
    },
    "KL, a second epoch, next tokens": {
        "objective": {
            "kl_weight": 0.1,
            "epochs_per_rollout": 2,
            "algorithm": "clipped_ratio",
            "ntp_weight": 0.3,
            "entropy_weight": 0.01,
        },
    },
    "interleaved, by entropy": {"placement": {"interleaved": True, "policy": "entropy"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_puts_everything_where_it_belongs(
    case: str,
    model_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    for section, fields in CASES[case].items():
        raw[section] = {**raw.get(section, {}), **fields}
    raw["model"]["dtype"] = "float32"
    raw["run"]["steps"] = 2

    # transformers keeps some of torch's functions from its first load: those outside.
    load_model(str(model_folders["llama"]))

    def opened(config: Config):
        with _disable_current_modes():  # transformers loads by way of the real meta device
            model = open_model(config)
        move(model.hf)
        assert model.device == DEVICE
        return model

    monkeypatch.setattr(rntp.trainer, "open_model", opened)
    plain = InProcessEngine.__init__

    def fixed(self, *args, **more) -> None:
        plain(self, *args, **{**more, "fixed_shapes": case.startswith("fixed shapes")})

    monkeypatch.setattr(InProcessEngine, "__init__", fixed)
    with Pretended():
        comparison = Trainer(Config.parse(raw)).fit()
    assert comparison is not None
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 2
    assert '"skipped": 0' in metrics[-1]


def test_a_step_of_decoding_copies_nothing_from_or_to_the_host(
    model_folders: dict[str, Path],
) -> None:
    """A CUDA graph may not, from memory that is not pinned."""
    model = load_model(str(model_folders["qwen3"]))
    move(model.hf)
    engine = InProcessEngine(
        model, thoughts=3, budget=5, temperature=1.0, seed=5, slots=32, fixed_shapes=True
    )
    page = Context(0, "page", torch.arange(1, 21))
    with torch.no_grad(), Pretended():
        engine.sample([page], lambda *_: (3, 10))
        (decoder,) = engine._kept.values()
        decoder._attention.rewind(decoder._attention.lengths.zero_())
        lane = decoder._think._widest
        lane.begin(1, decoder._branches.position)
        crossings.clear()
        for _ in range(4):
            lane.advance()
        assert crossings == []
        assert decoder._think._notes.drawn.cpu()[:4].unique().numel() > 2
        assert crossings == ["aten._to_copy.default"]
