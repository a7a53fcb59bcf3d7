"""The policy as a judge: its verdict against plain sequences, and what it gets to see."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64
from test_config import minimal

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel, load_model
from rntp.model.tokenizer import encode
from rntp.objective.judge_model import QUESTIONS, Judge, open_judge
from rntp.objective.reference_model import open_reference
from rntp.types import Context, Rollout, Thought

HORIZON = 3
POSITIONS = (5, 9)


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    loaded = load_model(str(model_folders["qwen3"]), dtype=torch.float64)
    compute_norms_in_float64(loaded.hf)
    return loaded


def make_rollouts(count: int = 2) -> list[Rollout]:
    """Two positions a page, three thoughts each; the last answer of a group is empty."""
    generator = torch.Generator().manual_seed(4)

    def ids(n: int) -> torch.Tensor:
        return torch.randint(1, 318, (n,), generator=generator)

    def thought(length: int) -> Thought:
        answer = torch.cat([ids(length), torch.tensor([0])])
        return Thought(ids(4), torch.zeros(4), False, answer, torch.zeros(length + 1), True)

    return [
        Rollout(
            context=Context(n, f"doc{n}", ids(20 - n)),
            positions=POSITIONS,
            thoughts=tuple(tuple(thought(a) for a in (1, 4, 0)) for _ in POSITIONS),
            entropy=torch.zeros(2),
            nll=torch.zeros(2),
        )
        for n in range(count)
    ]


def plain_verdict(model: LanguageModel, kind: str, page: list, answer: list, truth: list) -> float:
    """The same by the whole head on one plain sequence."""
    tokenizer = model.tokenizer
    ids = list(page)
    for piece in QUESTIONS[kind].replace("{answer}", "|A|").replace("{truth}", "|T|").split("|"):
        ids += {"A": answer, "T": truth}.get(piece) or encode(tokenizer, piece).tolist()
    yes, no = (encode(tokenizer, word).tolist() for word in (" yes", " no"))
    same = next(i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
    model.hf.set_attn_implementation("sdpa")
    logits = model.hf(torch.tensor([ids + yes[:same]])).logits[0, -1].detach()
    model.hf.set_attn_implementation("rntp")
    p = torch.softmax(logits, -1)
    return float(p[yes[same]] / (p[yes[same]] + p[no[same]]))


def test_verdicts_are_those_of_plain_sequences(model: LanguageModel) -> None:
    judge, rollouts = Judge(model, ["self", "gold"], horizon=HORIZON), make_rollouts()
    verdicts = judge(rollouts)
    assert not any(v.requires_grad for v in verdicts.values())
    for kind in ("self", "gold"):
        assert verdicts[kind].shape == (4, 3)
        assert (verdicts[kind][:, 2] == 0).all()  # an empty answer is not right
        place = 0
        for rollout in rollouts:
            page = rollout.context.token_ids.tolist()
            for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
                for g, thought in enumerate(group[:2]):
                    truth = page[position : position + HORIZON]
                    expected = plain_verdict(
                        model, kind, page[:position], thought.answer.tolist(), truth
                    )
                    assert float(verdicts[kind][place, g]) == pytest.approx(expected, rel=1e-5)
                place += 1
    assert verdicts["self"][:, :2].std() > 0.01
    assert (verdicts["self"][:, :2] - verdicts["gold"][:, :2]).abs().min() > 1e-4
    # One microbatch or several, alone or together.
    apart = [judge([r])["gold"] for r in rollouts]
    torch.testing.assert_close(torch.cat(apart), verdicts["gold"], rtol=1e-6, atol=0)
    alone = Judge(model, ["self"], horizon=HORIZON)(rollouts)
    assert list(alone) == ["self"]
    torch.testing.assert_close(alone["self"], verdicts["self"], rtol=1e-6, atol=0)


def test_only_the_gold_judge_sees_the_continuation_and_none_sees_the_thought(
    model: LanguageModel,
) -> None:
    judge, (rollout,) = Judge(model, ["self", "gold"], horizon=HORIZON), make_rollouts(1)
    before = judge([rollout])
    page = rollout.context.token_ids.clone()
    page[POSITIONS[1] :] = (page[POSITIONS[1] :] + 50) % 318
    other_text = judge([replace(rollout, context=replace(rollout.context, token_ids=page))])
    assert torch.equal(other_text["self"], before["self"])
    assert torch.equal(other_text["gold"][0], before["gold"][0])
    assert (other_text["gold"][1, :2] - before["gold"][1, :2]).abs().min() > 1e-6

    def changed(thought: Thought) -> Thought:
        return replace(thought, sampled_ids=(thought.sampled_ids + 50) % 318)

    thoughts = tuple(tuple(map(changed, group)) for group in rollout.thoughts)
    other_thoughts = judge([replace(rollout, thoughts=thoughts)])
    assert torch.equal(other_thoughts["gold"], before["gold"])


def test_a_judge_is_asked_only_where_a_scheme_wants_it(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(*overrides: str) -> Config:
        return Config.parse(minimal(), ["thought.answer_tokens=4", *overrides])

    rollouts = make_rollouts()
    idle = open_judge(model, config("reward.scheme=answer_exact"))
    with monkeypatch.context() as without:
        without.setattr(model.hf.base_model, "forward", None)
        assert idle(rollouts) == {}
    assert idle.num_tokens(rollouts) == 0
    shadow = open_judge(model, config("reward.shadows=[judge_gold]", "data.context_tokens=64"))
    assert list(shadow(rollouts)) == ["gold"]
    assert shadow.num_tokens(rollouts) > 12 * 20
    nowhere = [replace(r, positions=(), thoughts=()) for r in rollouts]
    assert shadow(nowhere)["gold"].shape == (0, 0)
    assert shadow.num_tokens(nowhere) == 0
    with pytest.raises(ConfigError, match=r"reaches \d+ positions.* 256; lower data"):
        open_judge(model, config("reward.scheme=self_judge", "data.context_tokens=250"))


def test_a_frozen_judge_does_not_follow_the_policy(model_folders: dict[str, Path]) -> None:
    policy = load_model(str(model_folders["qwen3"]), dtype=torch.float64)
    compute_norms_in_float64(policy.hf)
    masters = dict(policy.hf.named_parameters())
    overrides = ["thought.answer_tokens=4", "reward.scheme=judge_gold", "data.context_tokens=64"]
    own = open_judge(policy, Config.parse(minimal(), overrides))
    config = Config.parse(minimal(), [*overrides, "reward.judges.itself=frozen"])
    reference = open_reference(policy, config, torch.float64)
    assert reference is not None
    frozen, rollouts = open_judge(policy, config, reference.model), make_rollouts()
    start = frozen(rollouts)["gold"]
    assert torch.equal(own(rollouts)["gold"], start)
    with torch.no_grad():
        for parameter in masters.values():
            parameter.mul_(1.1)
    reference.update(masters)  # a step, as the trainer follows it
    assert torch.equal(frozen(rollouts)["gold"], start)
    assert (own(rollouts)["gold"] - start).abs().max() > 1e-3


def test_a_tokenizer_without_yes_and_no_is_refused(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rntp.objective.judge_model.encode", lambda tokenizer, text: torch.tensor([7])
    )
    with pytest.raises(ConfigError, match=r"no different tokens for ' yes' and ' no'"):
        Judge(model, ["self"], horizon=HORIZON)
