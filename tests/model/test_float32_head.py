"""A model in bfloat16: whoever asks for logits gets float32 ones, and all get the same."""

from pathlib import Path

import pytest
import torch
from test_static_batch import context, engine, place, thoughts_of

from rntp.model import LanguageModel, cast_parameters, load_model
from rntp.rollout.sampling import draw
from rntp.rollout.unshared import UnsharedEngine


def bfloat16(folder: Path, sharing: str = "tree") -> LanguageModel:
    model = load_model(str(folder), sharing=sharing)  # type: ignore[arg-type]
    cast_parameters(model.hf, torch.bfloat16)
    return model


def exact_logits(model: LanguageModel, hidden: torch.Tensor) -> torch.Tensor:
    return (hidden.double() @ model.head.double().T)[:, : model.vocabulary]


@torch.no_grad()
def test_logits_log_probs_and_collisions_are_those_of_float32(
    model_folders: dict[str, Path],
) -> None:
    model = bfloat16(model_folders["llama"])
    hidden = 20 * torch.randn(7, model.head.shape[1], generator=torch.Generator().manual_seed(0))
    hidden = hidden.bfloat16()
    exact = exact_logits(model, hidden)
    logits = model.logits(hidden)
    assert logits.dtype == torch.float32
    assert float(exact.abs().max()) > 1
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=5e-5)
    some = torch.tensor([3, 1, 40])
    torch.testing.assert_close(model.logits(hidden, of=some).double(), exact[:, some])
    targets = torch.arange(7)
    logprob, _, _ = model.logprob(hidden, targets)
    own = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprob, own, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        model.collision(hidden).double(), exact.softmax(-1).square().sum(-1), rtol=1e-5, atol=0
    )
    rounded = hidden @ model.head.T
    assert float((rounded.double() - exact).abs().max()) > 0.01


@pytest.mark.parametrize("way", ["compacting", "static", "unshared"])
def test_every_sampler_draws_from_float32_logits(way: str, model_folders: dict[str, Path]) -> None:
    model = bfloat16(model_folders["llama"], "none" if way == "unshared" else "tree")
    seen: list[torch.dtype] = []

    def spy(
        logits: torch.Tensor, uniforms: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(logits.dtype)
        return draw(logits, uniforms, temperature)

    if way == "unshared":
        sampler = UnsharedEngine(
            model, thoughts=2, budget=3, answer_tokens=2, temperature=1.0, seed=0, draw=spy
        )
    else:
        sampler = engine(model, budget=3, answer_tokens=2, fixed_shapes=way == "static", draw=spy)
    rollouts = sampler.sample([context(0)], place)
    assert len(thoughts_of(rollouts)) > 0
    assert len(seen) >= 3
    assert set(seen) == {torch.float32}
