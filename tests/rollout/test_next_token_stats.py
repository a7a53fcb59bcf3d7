"""What the model expects of a page is computed where somebody looks, and only then."""

from pathlib import Path

import pytest
import torch
from test_config import minimal
from test_static_batch import context, engine, thoughts_of

from rntp.config import Config
from rntp.model import LanguageModel, load_model
from rntp.placement import ANYWHERE, Bands
from rntp.placement.placer import placer
from rntp.types import Context, NextTokenStats, Rollout

POSITIONS = 3, 10, 15


def sampled(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, place
) -> tuple[list[Rollout], list[int]]:
    """Rollouts of two pages, and the rows of each call of the head before decoding."""
    rows: list[int] = []
    logprob = LanguageModel.logprob

    def counting(self: LanguageModel, hidden: torch.Tensor, *more):
        rows.append(len(hidden))
        return logprob(self, hidden, *more)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "logprob", counting)
        rollouts = engine(model).sample([context(0, 24), context(1, 20)], place)
    return rollouts, rows


def test_who_does_not_look_does_not_pay(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(model_folders["llama"]))
    looked: list[torch.Tensor] = []

    def looking(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        looked.extend([next_token.entropy_L, next_token.nll_L])
        return POSITIONS

    blind, few = sampled(model, monkeypatch, lambda context, next_token: POSITIONS)
    seeing, many = sampled(model, monkeypatch, looking)
    assert (few, many) == ([3, 3], [23, 19])
    assert [len(x) for x in looked] == [24, 24, 20, 20]
    assert all(x[0] == 0 and x[1:].gt(0).all() for x in looked)
    for own, other, entropy, nll in zip(blind, seeing, looked[::2], looked[1::2], strict=True):
        assert torch.equal(other.entropy, entropy[list(POSITIONS)])
        torch.testing.assert_close(own.entropy, other.entropy, rtol=1e-5, atol=0)
        torch.testing.assert_close(own.nll, nll[list(POSITIONS)], rtol=1e-5, atol=0)
    for mine, theirs in zip(thoughts_of(blind), thoughts_of(seeing), strict=True):
        assert torch.equal(mine.sampled_ids, theirs.sampled_ids)


@pytest.mark.parametrize(
    ("policy", "bands", "looks"),
    [
        ("random", [], False),
        ("even", [], False),
        ("entropy", [], True),
        ("surprise", [], True),
        ("tiers", [], True),
        ("random", ["placement.band={entropy: [0.1, 9.0]}"], True),
    ],
)
def test_which_policies_look(policy: str, bands: list[str], looks: bool) -> None:
    class Watched:
        looked = False

        @property
        def entropy_L(self) -> torch.Tensor:
            self.looked = True
            return torch.arange(100.0)

        nll_L = entropy_L

    ramp = "placement.policy={tiers: {ramp_steps: 4}}"
    config = Config.parse(minimal(), ["data.context_tokens=100", ramp, *bands])
    watched = Watched()
    chosen = placer(config, policy, "placement")(context(0, 100), watched)
    assert len(chosen) == config.placement.positions_per_doc
    assert watched.looked == looks
    band = config.placement.band
    assert (Bands(band.entropy, band.surprise) == ANYWHERE) is not bool(bands)
