"""Rules that grade answers, on answers whose worth is known; and what tasks do to rewards."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_tokenizer

from rntp import rewards
from rntp.config import Config
from rntp.model import LanguageModel, load_model
from rntp.model.reading import LossReads
from rntp.model.tokenizer import decode, encode
from rntp.objective.forward import build_tree, forward
from rntp.objective.grading import grade, right
from rntp.objective.quantities import Counts
from rntp.objective.reward_inputs import gather
from rntp.objective.rewards_and_advantages import compute_rewards
from rntp.types import Context, RewardInputs, Rollout, Task, Thought

TOKENIZER = tiny_tokenizer()
HORIZON = 5


def task(answer: str, rule: str = "exact", **more) -> Task:
    return Task(answer, num_tokens=2, filled=3, ended=True, rule=rule, **more)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("New York", 1),
        (" new  york.\nAnd so on", 1),
        ("New York City", 0),
        ("York", 0),
        ("", 0),
        (" \n ", 0),
        ("\n\nNew York", 1),
        (": New York\n", 1),
        (":", 0),
        (".", 0),
    ],
)
def test_exact(answer: str, score: float) -> None:
    assert grade(task("New York"), answer) == score


def test_an_answer_of_several_lines_counts_whole() -> None:
    assert grade(task("1\n2"), "1\n2\n") == 1
    assert grade(task("1\n2"), "1") == 0


def test_math() -> None:
    pytest.importorskip("math_verify")
    found = [grade(task("1/2", "math"), a) for a in ("0.5", "$\\frac{2}{4}$", "2", "half", "")]
    assert found == [1, 1, 0, 0, 0]


def test_reasoning_gyms_own_scorer() -> None:
    pytest.importorskip("reasoning_gym")
    from rntp.data.tasks.procedural import Generator

    row = Generator("chain_sum", {"min_terms": 2, "max_terms": 2})[3]
    own = replace(task(row.answer, "own"), made=row.made)
    assert grade(own, row.answer) == 1
    assert grade(own, f"{row.answer}.0") == 1  # its scorer compares numbers
    assert 0 < grade(own, f"{row.answer} apples") < 1  # right in part
    assert grade(own, str(int(row.answer) + 1)) == 0
    # Without a generator there is no scorer of one's own.
    assert grade(task("4", "own"), "4.0") == 0


def thought(text: str, answer: str) -> Thought:
    ids, said = encode(TOKENIZER, text), encode(TOKENIZER, answer)
    return Thought(ids, torch.zeros(len(ids)), False, said, torch.zeros(len(said)))


def rollouts() -> list[Rollout]:
    """A task with the answer "42", and a page; four thoughts each."""
    prompt, answer = encode(TOKENIZER, "6 x 7 =\n"), encode(TOKENIZER, "42")
    end = torch.tensor([TOKENIZER.eos_token_id])
    n = len(answer) + 1
    filled = HORIZON - n
    ids = torch.cat([prompt, answer, end, end.expand(filled)])
    known = Task("42", n, filled, ended=True)
    asked = Context(0, "task", ids, task=known)
    page = Context(1, "page", encode(TOKENIZER, "The quick brown fox jumps over the lazy dog"))
    groups = [["42", " 42.\nno", "41", ""], ["42", "a", "b", "c"]]
    zero = torch.zeros(1)
    return [
        Rollout(c, (p,), (tuple(thought("so", a) for a in g),), zero, zero)
        for c, p, g in zip((asked, page), (len(prompt), 6), groups, strict=True)
    ]


def config_of(**reward) -> Config:
    return Config.parse(
        {
            "run": {"steps": 1, "dir": "x"},
            "model": {"spec": "m", "dtype": "float64"},
            "data": {"source": {"pages": 1, "task:t": 1}, "context_tokens": 48, "docs_per_step": 2},
            "placement": {"positions_per_doc": 1, "min_prefix_tokens": 4},
            "thought": {"thoughts_per_position": 4, "thought_tokens": 8, "answer_tokens": 8},
            "reward": {"horizon": HORIZON, "shadows": [], **reward},
        }
    )


def test_only_tasks_have_right_answers() -> None:
    found = right(rollouts(), lambda ids: decode(TOKENIZER, ids))
    assert found.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.fixture(scope="module")
def model(model_folders) -> LanguageModel:
    return load_model(str(model_folders["llama"]), dtype=torch.float64)


def test_rewards_of_a_mixture_have_the_weights_of_their_kind(model: LanguageModel) -> None:
    config = config_of(scheme={"log_ratio": {"weight": 0.5, "on_tasks": 0}, "correct": 2.0})
    tree = build_tree(model, rollouts(), HORIZON)
    outputs = forward(model, tree, temperature=1.0)
    found = compute_rewards(
        outputs, tree, rollouts(), config, decode=lambda ids: decode(TOKENIZER, ids)
    )
    assert found.reward_PG[0].tolist() == [2, 2, 0, 0]
    assert torch.equal(found.reward_PG[1], 0.5 * found.rewards["log_ratio"][1])
    assert found.rewards["log_ratio"].abs().min() > 0
    assert found.right_PG is not None
    assert found.right_PG.sum() == 2
    # One group of two right and two wrong: leave-one-out advantages are ±2 · 2/3.
    expected = torch.tensor([4 / 3, 4 / 3, -4 / 3, -4 / 3], dtype=torch.float64)
    torch.testing.assert_close(found.advantage_PG[0].double(), expected)


def test_the_gold_answer_is_the_continuation_and_nothing_behind_it_counts(
    model: LanguageModel,
) -> None:
    """log p(answer, end | prompt, thought), as one sequence has it without a tree."""
    asked, page = rollouts()
    tree = build_tree(model, [asked, page], HORIZON, LossReads(context=True))
    outputs = forward(model, tree, temperature=1.0)
    alone = forward(model, build_tree(model, [page], HORIZON), temperature=1.0)
    n = asked.context.task.num_tokens
    prompt, answer = asked.context.token_ids[:-HORIZON], asked.context.token_ids[-HORIZON:][:n]

    def logp(before: torch.Tensor) -> torch.Tensor:
        model.hf.set_attn_implementation("sdpa")
        ids = torch.cat([before, answer])
        logits = model.hf(ids[None]).logits[0].double().log_softmax(-1)
        return logits[len(before) - 1 : -1].gather(1, answer[:, None])[:, 0]

    open_close = torch.tensor([model.think_open_id]), torch.tensor([model.think_close_id])
    first = asked.thoughts[0][0].sampled_ids
    with_thought = logp(torch.cat([prompt, open_close[0], first, open_close[1]]))
    torch.testing.assert_close(outputs.think_logp_PGH[0, 0, :n].double(), with_thought)
    torch.testing.assert_close(outputs.no_think_logp_PH[0, :n].double(), logp(prompt))
    assert (outputs.think_logp_PGH[0, :, n:] == 0).all()
    assert (outputs.no_think_logp_PH[0, n:] == 0).all()
    assert outputs.match_PGH[0, :, n:].all()
    torch.testing.assert_close(outputs.think_logp_PGH[1:], alone.think_logp_PGH)
    counts = Counts.of([asked, page], HORIZON)
    assert counts.continuation == 4 * n + 4 * HORIZON
    assert counts.context == len(prompt) + n - 1 + len(page.context) - 1
    assert outputs.context_logp is not None
    assert len(outputs.context_logp) == counts.context


def inputs_of(logp: torch.Tensor, empty: torch.Tensor, scored: torch.Tensor | None) -> RewardInputs:
    return RewardInputs(
        logp_think_PGH=logp,
        logp_no_think_PH=empty,
        has_baseline=True,
        match_PGH=logp > -0.1,
        num_tokens_PG=torch.ones(logp.shape[:2]),
        closed_PG=torch.ones(logp.shape[:2], dtype=torch.bool),
        continuation_ids_PH=torch.zeros(empty.shape, dtype=torch.int64),
        thought_ids=[],
        noise_PG=torch.zeros(logp.shape[:2]),
        discount=0.9,
        collision_PGH=torch.ones_like(logp) * 0.5,
        scored_PH=scored,
    )


LIKELIHOODS = [
    "log_ratio",
    "logprob",
    "mean_prob",
    "prob",
    "weighted_log_ratio",
    "weighted_prob",
    "brier",
    "brier_full",
    "ppl_rank",
    "ppl_steps",
    "positive_gain",
    "exact_prefix",
    "exact_token",
    "sample_bound",
    "net_gain",
]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_reward_is_that_of_the_answer_alone(name: str) -> None:
    """Two scored tokens of five give what a horizon of two gives."""
    generator = torch.Generator().manual_seed(0)
    logp = torch.rand(2, 3, HORIZON, generator=generator).log()
    empty = torch.rand(2, HORIZON, generator=generator).log()
    logp[0, 0, :2] = -0.01
    scored = torch.arange(HORIZON).expand(2, HORIZON) < 2
    certain = (torch.where(scored[:, None], logp, 0), torch.where(scored, empty, 0))
    short = rewards.REGISTRY[name](inputs_of(logp[:, :, :2], empty[:, :2], None))
    found = rewards.REGISTRY[name](inputs_of(*certain, scored))
    torch.testing.assert_close(found, short)
    assert short.std() > 0


def test_schemes_that_compare_texts_see_the_answer_alone() -> None:
    pytest.importorskip("sacrebleu")
    asked = rollouts()[:1]
    n = asked[0].context.task.num_tokens
    scored = torch.arange(HORIZON)[None] < n
    given = gather(
        asked,
        config_of(scheme={"chrf": 1, "byte_prefix": 1}),
        logp_think_PGH=torch.zeros(1, 4, HORIZON),
        logp_no_think_PH=torch.zeros(1, HORIZON),
        match_PGH=torch.ones(1, 4, HORIZON, dtype=torch.bool),
        continuation_ids_PH=asked[0].context.token_ids[None, -HORIZON:],
        collision_PGH=None,
        decode=lambda ids: decode(TOKENIZER, ids),
        verdicts={},
        scored_PH=scored,
    )
    assert decode(TOKENIZER, given.true_ids[0]) == "42"
    chrf, prefix = (rewards.REGISTRY[name](given)[0].tolist() for name in ("chrf", "byte_prefix"))
    assert math.isclose(chrf[0], 1, abs_tol=1e-6)
    assert chrf[3] == 0
    assert prefix == [1, 0, 0, 0]
    assert rewards.REGISTRY["correct"](given)[0].tolist() == [1, 1, 0, 0]
