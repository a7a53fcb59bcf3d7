"""Rewards of generated answers, on texts whose rewards are known."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_tokenizer

from rntp import rewards
from rntp.model.tokenizer import decode, encode
from rntp.types import RewardInputs

TOKENIZER = tiny_tokenizer(600)
TRUTH = " brown fox jumps over the lazy dog"
HORIZON = 4


def ids(text: str) -> torch.Tensor:
    return encode(TOKENIZER, text)


def inputs(*answers: torch.Tensor) -> RewardInputs:
    """One position with these answers to `TRUTH`."""
    group, truth = len(answers), ids(TRUTH)
    return RewardInputs(
        logp_think_PGH=torch.zeros(1, group, HORIZON),
        logp_no_think_PH=torch.zeros(1, HORIZON),
        has_baseline=True,
        match_PGH=torch.ones(1, group, HORIZON, dtype=torch.bool),
        num_tokens_PG=torch.ones(1, group),
        closed_PG=torch.ones(1, group, dtype=torch.bool),
        continuation_ids_PH=truth[None, :HORIZON],
        thought_ids=[],
        noise_PG=torch.zeros(1, group),
        discount=1.0,
        answer_ids=[list(answers)],
        true_ids=[truth],
        decode=lambda tokens: decode(TOKENIZER, tokens),
        verdicts={
            "lost_span": torch.zeros(1, 1),
            "self": torch.full((1, group), 0.25),
            "gold": torch.full((1, group), 0.75),
            "outside": torch.full((1, group), 0.5),
        },
    )


def reward(name: str, *answers: torch.Tensor) -> list[float]:
    return rewards.REGISTRY[name](inputs(*answers))[0].tolist()


def test_answer_exact() -> None:
    truth = ids(TRUTH)
    assert decode(TOKENIZER, truth[:2]) == " brown fox"
    wrong = torch.cat([truth[1:2], truth[:1]])
    assert reward("answer_exact", truth[:1], truth[:3], wrong, truth[:0]) == [1, 1, 0, 0]


def test_byte_prefix() -> None:
    texts = {
        " brown": 1,
        " brown fox": 1,
        "brown fox": 1,  # tokens carry their space in front
        " brown fox \n": 1,  # a trailing space would miss the boundary
        " brown fox jumps over the": 1,  # beyond the horizon
        " brown fo": 0,  # not where a token ends
        " brown cat": 0,
        " fox": 0,
        " ": 0,
    }
    assert len(ids(" brown fox jumps over the")) > HORIZON
    assert reward("byte_prefix", *map(ids, texts)) == list(texts.values())
    # Other tokens with the same bytes are the same answer; the bytes are what counts.
    letters = torch.cat([ids(letter) for letter in " brown"])
    assert len(letters) == 6 > len(ids(" brown"))
    assert reward("byte_prefix", letters, letters[:0]) == [1, 0]
    longer = ids(f"{TRUTH} and on")
    assert reward("byte_prefix", longer) == [0]  # more than the context holds


def test_half_a_character_is_no_prefix() -> None:
    """Two characters that begin with the same byte: half of one is not half of the other."""
    first, other = ids("é"), ids("è")
    assert len(first) == len(other) == 2
    assert first[0] == other[0]
    given = replace(inputs(first[:1], other[:1], first), true_ids=[first])
    assert rewards.REGISTRY["byte_prefix"](given)[0].tolist() == [0, 0, 1]


def test_string_similarity() -> None:
    truth = decode(TOKENIZER, ids(TRUTH)[:HORIZON])
    assert len(truth.split()) == 4
    answers = [ids(t) for t in (truth, " brown fox", " completely wrong", "")]
    bleu = reward("bleu", *answers)
    assert bleu[0] == pytest.approx(1)
    # Two words of four: both n-gram precisions are 1, the brevity penalty is exp(1 − 4 / 2).
    assert bleu[1] == pytest.approx(0.36787944)
    assert bleu[2] == bleu[3] == 0
    chrf = reward("chrf", *answers)
    assert chrf[0] == pytest.approx(1)
    assert 0.3 < chrf[1] < 0.9
    assert 0 < chrf[2] < 0.2
    assert chrf[3] == 0


def test_judges_pass_their_verdicts_on() -> None:
    assert reward("self_judge", ids(" brown")) == [0.25]
    assert reward("judge_gold", ids(" brown")) == [0.75]


def test_texts_are_decoded_only_where_a_scheme_compares_them() -> None:
    def decode_nothing(tokens: torch.Tensor) -> str:
        raise AssertionError

    given = replace(inputs(ids(" brown")), decode=decode_nothing)
    for name in sorted(rewards.REGISTRY):
        if name in ("bleu", "chrf", "byte_prefix"):
            with pytest.raises(AssertionError):
                rewards.REGISTRY[name](given)
        else:
            rewards.REGISTRY[name](given)


def test_what_schemes_say_they_need() -> None:
    answers = {name for name, needs in rewards.NEEDS.items() if needs.answers}
    graded = {"answer_exact", "byte_prefix", "bleu", "chrf"}
    assert answers == graded | {"self_judge", "judge_gold", "judge", "correct"}
    assert {name for name, n in rewards.NEEDS.items() if n.outside} == {"judge"}
    judged = {name: n.judge for name, n in rewards.NEEDS.items() if n.judge}
    assert judged == {"self_judge": "self", "judge_gold": "gold"}
    packages = {name for name, n in rewards.NEEDS.items() if n.package == "sacrebleu"}
    assert packages == {"bleu", "chrf"}
