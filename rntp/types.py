"""The few data classes that everything passes around.

Axes in tensor names: L context tokens, P positions (of all documents at hand), K positions per
document, G thoughts per position, H horizon, T thought tokens, N any flat row count, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rntp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Oracle:
    """What a made corpus knows of a token that a thought can help with.

    thought: text of a thought that leaves nothing to guess. gain: nats that it is worth.
    """

    thought: str
    gain: float


@dataclass(frozen=True, slots=True)
class Labels:
    """What a made corpus knows of a context. Training never sees it: measurements do, and the
    placement policies `oracle` and `by_class`.

    classes: one character a token, " " where nothing is known. names: of the characters; a name is
    a class, or a class and a kind ("thinkable, 2 hops"). oracle: by index of the token.
    """

    classes: str
    names: Mapping[str, str] = field(default_factory=dict)
    oracle: Mapping[int, Oracle] = field(default_factory=dict)


def _no_ids() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


def _no_tokens() -> Tensor:
    return torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class EarlierThought:
    """A thought that stands in a context, before the token at a position of the page.

    token_ids: int64 [n], with both markers.
    """

    position: int
    token_ids: Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """A question with an answer that can be checked; its context is the prompt, then the answer.

    answer: the true one. num_tokens: of the answer in the context, with its end token where there
    is one (`ended`). filled: tokens behind them that only fill the context up to the horizon:
    nothing predicts them. rule: who says whether an answer is right; see `rntp.objective.grading`.
    made: what reasoning-gym's own scorer needs to know of the task; None for others. source: where
    it is from, for people.
    """

    answer: str
    num_tokens: int
    filled: int
    ended: bool
    rule: Literal["exact", "math", "own"] = "exact"
    made: Mapping[str, Any] | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """The window of one document that a step sees.

    token_ids: int64 [L], on the CPU; never crosses a document. At most context_tokens of the page,
    and the thoughts in `seen` among them.
    title: of the document, for people. start: index of the first token in the document.
    visit: how often the order had handed out this document before (0 on the first pass).
    labels: of a made corpus; None for real text. replay_of: ordinal of the first visit, where this
    one is a later visit to the same window (see `rntp.training.replay`). seen: earlier thoughts of
    the page, in order, where thoughts are interleaved; positions then come after the last of them.
    left: int64, the page's tokens before those of token_ids, where the page is read piece by piece
    (see `rntp.rollout.carried`): no model sees them any more. labels and positions in `seen` are of
    the page. task: where the page is the prompt of one; its only position is where the answer
    begins. given: bool [L], tokens that are read and never predicted, of a document into which
    calls or memories were written: what tools gave, and the page before a memory (see
    `rntp.traces`). Empty where there are none.
    """

    ordinal: int
    document_id: str
    token_ids: Tensor
    title: str = ""
    start: int = 0
    visit: int = 0
    labels: Labels | None = None
    replay_of: int | None = None
    seen: tuple[EarlierThought, ...] = ()
    left: Tensor = field(default_factory=_no_ids)
    task: Task | None = None
    given: Tensor = field(default_factory=_no_tokens)

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @property
    def inserted(self) -> int:
        """Tokens of the thoughts that stand among those of the page."""
        return sum(len(s.token_ids) for s in self.seen)

    @property
    def shift(self) -> int:
        """By how much an index of token_ids, behind all earlier thoughts, exceeds the page's."""
        return self.inserted - len(self.left)

    def num_scored(self, horizon: int) -> int:
        """Count the tokens behind a position that are predicted: H, of a task those of its
        answer."""
        return self.task.num_tokens if self.task else horizon

    @property
    def num_text(self) -> int:
        """Tokens without those that only fill a task's context up to the horizon."""
        return len(self) - (self.task.filled if self.task else 0)

    @property
    def predicted(self) -> Tensor:
        """int64: indices of the tokens that plain next-token prediction is of, all but the first
        those that are given and those that only fill."""
        indices = torch.arange(1, self.num_text)
        return indices[~self.given[1 : self.num_text]] if len(self.given) else indices


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a thought made, and what it read; see `rntp.tools`.

    failure: its kind, "" where there was none. withheld: passages that were passed over, by reason.
    asked: tokens of it that stand before its result, with its markers; 0 where it has none.
    """

    name: str
    arguments: str
    result: str
    failure: str = ""
    withheld: Mapping[str, int] = field(default_factory=dict)
    asked: int = 0


def without_calls(ids: Tensor, given: Tensor, asked: Sequence[int]) -> Tensor:
    """Cut calls out of a thought: int64 [n], with `given` bool [n] as of `Thought`, to int64 [m].

    asked: of every result, in order, tokens before it that are its call.
    """
    if not asked:
        return ids
    kept = torch.ones(len(ids), dtype=torch.bool)
    begins = [begin for begin, _, is_given in runs(given.tolist()) if is_given and begin]
    for begin, number in zip(begins, asked, strict=True):
        kept[begin - number : begin] = False
    return ids[kept]


def runs(given: Sequence[bool]) -> list[tuple[int, int, bool]]:
    """(begin, end, which) of the runs of equal values; what is given from 0 on is no result."""
    edges = [i for i in range(1, len(given)) if given[i] != given[i - 1]]
    ends = [0, *edges, len(given)] if len(given) else []
    return [(begin, end, given[begin]) for begin, end in pairwise(ends)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge outside of the run said of an answer; see `rntp.judges`.

    yes: the probability that it finds the answer right, in [0, 1], or None where no verdict came;
    failure then says why: `unreachable`, `out_of_time`, `refused`, `server`, `rate_limited`,
    `unreadable`, `too_long`, `wrong_model`, `unclear` or `over_budget`. tokens: that its endpoint
    counted, of prompt and reply.
    """

    yes: float | None
    failure: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Thought:
    """One sampled thought: `<think> sampled… [</think>]`, and the answer after it, if any.

    sampled_ids: int64 [n], the tokens of the thought, of which the sampler drew at least 1 and at
    most thought_tokens; what tools gave stands among them. A thought that closed itself ends with
    the close marker; otherwise the marker was appended by force (`closed` is false), was not drawn,
    and carries no policy gradient.
    sampled_logprobs: float32 [n], log-probabilities in nats under the sampler, at its temperature;
    0 for what was not drawn.
    given: bool [n], which were not drawn: results and `thought.tools.opening`. Empty for none.
    calls: in order.
    kept: it is the memory of the link before, as it was, among those of a link (see
    `rntp.rollout.carried`); all of it is given, and nobody wrote it.
    answer_ids: int64 [a], what the sampler drew after the close marker, a <= answer_tokens. An
    answer that ended itself ends with the tokenizer's EOS (`answer_ended`), which was drawn, too.
    answer_logprobs: float32 [a], as above.
    verdicts: of judges outside of the run on the answer, by name.
    """

    sampled_ids: Tensor
    sampled_logprobs: Tensor
    closed: bool
    answer_ids: Tensor = field(default_factory=_no_ids)
    answer_logprobs: Tensor = field(default_factory=lambda: torch.zeros(0))
    answer_ended: bool = False
    given: Tensor = field(default_factory=_no_tokens)
    calls: tuple[ToolCall, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    kept: bool = False

    @property
    def content(self) -> Tensor:
        """int64: all that stands between the markers."""
        return self.sampled_ids[: self.sampled_ids.shape[0] - int(self.closed)]

    @property
    def read_ids(self) -> Tensor:
        """int64: of `sampled_ids` what a reading window reads, all but the text of calls that have
        a result. A query repeats the page's last words, and whoever reads it before the page
        expects behind these words what followed them there: the end of the call."""
        asked = [call.asked for call in self.calls if call.asked]
        return without_calls(self.sampled_ids, self.given, asked)

    @property
    def num_given(self) -> int:
        """Tokens between the markers that were not drawn."""
        return int(self.given.sum())

    @property
    def num_tokens(self) -> int:
        """Tokens between the markers that were drawn: the length of the thought."""
        return self.sampled_ids.shape[0] - int(self.closed) - self.num_given

    @property
    def num_drawn(self) -> int:
        """Tokens of thought and answer that the sampler drew: those with a policy gradient."""
        return self.sampled_ids.shape[0] - self.num_given + self.answer_ids.shape[0]

    @property
    def drawn_logprobs(self) -> Tensor:
        """float32 [num_drawn], of the thought and then of the answer."""
        return torch.cat([self.drawn(self.sampled_logprobs), self.answer_logprobs])

    def drawn(self, of_thought: Tensor) -> Tensor:
        """Pick what belongs to drawn tokens: [n], as long as sampled_ids -> [n - num_given]."""
        return of_thought[~self.given] if len(self.given) else of_thought

    @property
    def answer(self) -> Tensor:
        """int64: the answer without its end token."""
        return self.answer_ids[: self.answer_ids.shape[0] - int(self.answer_ended)]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A context with its K positions (ascending) and the G thoughts of each.

    positions: indices into the context's token_ids. entropy, nll: float32 [K], of the sampler's
    no-think prediction of the token at each position.
    """

    context: Context
    positions: tuple[int, ...]
    thoughts: tuple[tuple[Thought, ...], ...]
    entropy: Tensor
    nll: Tensor
    policy_version: int = 0

    @property
    def page_positions(self) -> tuple[int, ...]:
        """The positions in the bare page: without the thoughts that stand before them."""
        return tuple(p - self.context.shift for p in self.positions)

    @property
    def num_sampled(self) -> int:
        """Tokens drawn by the sampler: those that carry policy gradient."""
        return sum(t.num_drawn for group in self.thoughts for t in group)


@dataclass(frozen=True, slots=True)
class Page:
    """What the ranks tell each other of a page of a step; its text stays where it was read.

    ordinal, visit, replay_of: as of its context. length: tokens of the context. positions: K
    indices into the bare page. before_K2: int64, the token before each, and the one before that.
    entropy_K, nll_K: nats, of the sampler's no-think prediction. features_KF: float32, what a gate
    looks at there (see `rntp.gate.features`); empty where nobody asks.
    """

    ordinal: int
    visit: int
    replay_of: int | None
    length: int
    positions: tuple[int, ...]
    before_K2: Tensor
    entropy_K: Tensor
    nll_K: Tensor
    features_KF: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    @classmethod
    def of(cls, rollout: Rollout) -> "Page":
        """Of a rollout whose context is the bare page."""
        context, at = rollout.context, torch.tensor(rollout.positions, dtype=torch.int64)
        return cls(
            context.ordinal,
            context.visit,
            context.replay_of,
            len(context),
            rollout.positions,
            context.token_ids[torch.stack([at - 1, at - 2], dim=1)],
            rollout.entropy,
            rollout.nll,
        )


def no_text(ids: Tensor) -> str:
    """Stand in place of a tokenizer, where nobody compares texts."""
    raise RuntimeError("a reward that compares texts needs a tokenizer's decode")


@dataclass(frozen=True, slots=True)
class RewardInputs:
    """What a reward scheme may look at. Everything is detached; log-probabilities are in nats.

    logp_think_PGH: log p(continuation token | context, thought, earlier continuation tokens).
    logp_no_think_PH: the same without a thought, under `baseline.weights` (the baseline); zeros
    where there is none, and has_baseline is false then. match_PGH: bool, the continuation token is
    the arg-max of the prediction with the thought. num_tokens_PG: tokens between the think markers.
    closed_PG: bool, the model closed the thought. continuation_ids_PH: the held-out tokens.
    thought_ids: for each of P positions a list of G id tensors, markers left out. noise_PG: float64
    uniform draws in [0, 1), a function of the run seed and the thought's indices. discount: γ in
    (0, 1]. token_cost_P: nats that a thought token costs by now. num_calls_PG: calls of tools, and
    call_cost_P: nats that each costs by now. length_budget_P: tokens that a thought should have by
    now.
    answer_ids: as thought_ids, what the policy wrote after the thought, without the end token.
    true_ids: [P] id tensors, the true text from the position to the end of the context.
    collision_PGH: Σ_v p_v² over the vocabulary of each prediction with the thought, for schemes
    that registered it. decode: text of ids, for schemes that compare texts. verdicts: by judge,
    float32 [P, G], the probability that it finds the answer right; see
    `rntp.objective.judge_model`.
    """

    logp_think_PGH: Tensor
    logp_no_think_PH: Tensor
    has_baseline: bool
    match_PGH: Tensor
    num_tokens_PG: Tensor
    closed_PG: Tensor
    continuation_ids_PH: Tensor
    thought_ids: list[list[Tensor]]
    noise_PG: Tensor
    discount: float
    token_cost_P: Tensor = field(default_factory=lambda: torch.zeros(1))
    num_calls_PG: Tensor = field(default_factory=lambda: torch.zeros(1))
    call_cost_P: Tensor = field(default_factory=lambda: torch.zeros(1))
    length_budget_P: Tensor = field(default_factory=lambda: torch.ones(1))
    answer_ids: list[list[Tensor]] = field(default_factory=list)
    true_ids: list[Tensor] = field(default_factory=list)
    collision_PGH: Tensor = field(default_factory=lambda: torch.zeros(1))
    decode: Callable[[Tensor], str] = no_text
    verdicts: Mapping[str, Tensor] = field(default_factory=dict)
    scored_PH: Tensor | None = None
    right_PG: Tensor = field(default_factory=lambda: torch.zeros(1))

    @property
    def continuations(self) -> list[Tensor]:
        """The continuation of each position, [P] id tensors; of a task its answer."""
        if self.scored_PH is None:
            return list(self.continuation_ids_PH)
        horizon = self.continuation_ids_PH.shape[1]
        return [ids[:horizon] for ids in self.true_ids]

    def scored(self, values: Tensor) -> Tensor:
        """Set values of tokens that nothing predicts to 0: [P, H] or [P, G, H]."""
        if self.scored_PH is None:
            return values
        scored = self.scored_PH if values.ndim == 2 else self.scored_PH[:, None]
        return torch.where(scored, values, 0)

    def mean(self, values: Tensor) -> Tensor:
        """Take the mean over the tokens that are predicted: [P, H] -> [P], [P, G, H] -> [P, G]."""
        if self.scored_PH is None:
            return values.mean(dim=-1)
        count_P = self.scored_PH.sum(dim=-1).to(values.dtype)
        return self.scored(values).sum(dim=-1) / (count_P if values.ndim == 2 else count_P[:, None])

    @property
    def discounts_H(self) -> Tensor:
        """γ^k for k = 0 … H-1, float32."""
        horizon = self.logp_no_think_PH.shape[1]
        exponent = torch.arange(horizon, device=self.logp_no_think_PH.device, dtype=torch.float32)
        return self.discount**exponent


class NextTokenStats(Protocol):
    """What the model expects of the tokens of a context without thinking: float32 nats, [L]. Entry
    i speaks of the prediction of token i; entry 0 is 0, since nothing predicts it."""

    @property
    def entropy_L(self) -> Tensor:
        """Of the distribution over the next token."""
        ...

    @property
    def nll_L(self) -> Tensor:
        """−log p of the true token."""
        ...

    @property
    def hidden_LD(self) -> Tensor:
        """[L, D], of the trunk; row i has seen token i and predicts the next."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """An `NextTokenStats` that is at hand."""

    entropy_L: Tensor
    nll_L: Tensor
    hidden_LD: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


@dataclass(frozen=True)
class PlacementInputs:
    """What a placement policy may look at; entry i speaks of the prediction of token i.

    A policy sees the eligible positions only, so that it may rank them among themselves.

    next_token: of the whole context, and eligible the part of it that the policy sees: entropy_L
    and nll_L. A policy that looks at neither does not pay for them. noise_L: float64 uniform draws
    of this context, a function of the run seed and its ordinal. count: positions wanted. ramp:
    share of `ramp_steps` of `placement.policy` that lies before this context, None where no such
    number is set; see `progress`. random_share: of the positions, that go anywhere, for the policy
    that looks at it. learned_L: float32, what the policy's own record says of such
    positions (see `rntp.placement.records`); zeros where it keeps none. starts_sentence_L: bool, a
    sentence begins with this token; None for policies that did not ask for it. oracle_gain_L:
    float32 nats that a perfect thought is worth, 0 where none helps. class_L: int64 numbers of the
    tokens' classes, -1 where unknown. Both are None without labels.
    """

    next_token: NextTokenStats
    noise_L: Tensor
    learned_L: Tensor
    eligible: slice = field(default_factory=lambda: slice(None))
    count: int = 1
    ramp: float | None = None
    random_share: float = 0.0
    starts_sentence_L: Tensor | None = None
    oracle_gain_L: Tensor | None = None
    class_L: Tensor | None = None

    @property
    def progress(self) -> float:
        """How far a policy that changes as the run goes on has come, in [0, 1].

        It goes by a number of steps of its own, not by those of the run: a run that is made longer
        is then the run that had been meant to be so long. Raises ConfigError where none is set.
        """
        if self.ramp is None:
            raise ConfigError(
                "this placement policy changes as the run goes on, and ramp_steps does "
                "not say over how many steps; write placement.policy: {tiers: {ramp_steps: N}}, "
                "with run.steps for the length of this run"
            )
        return self.ramp

    def between(self, first: int, stop: int) -> "PlacementInputs":
        """The same for positions first … stop - 1 of the whole context."""
        by_token = (f.name for f in fields(self) if f.name.endswith("_L"))
        values = {name: getattr(self, name) for name in by_token}
        some = {name: value[first:stop] for name, value in values.items() if value is not None}
        return replace(self, eligible=slice(first, stop), **some)

    @property
    def entropy_L(self) -> Tensor:
        """Of the next_token, at the positions that the policy sees."""
        return self.next_token.entropy_L[self.eligible]

    @property
    def nll_L(self) -> Tensor:
        """Of the next_token, at the positions that the policy sees."""
        return self.next_token.nll_L[self.eligible]
