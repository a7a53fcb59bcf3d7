"""Thoughts all over held-out pages: what every rule of where to think is compared on.

Thoughts do not see each other, so what one gains does not depend on where the others stand. They
are thought at every few tokens, once, and each rule then takes those that it would have had.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.evaluation.pages import gains, score_pages
from rntp.evaluation.thoughts_cut import cut
from rntp.gate import Gate
from rntp.model import LanguageModel
from rntp.model.thought_tree import TokenTree
from rntp.model.token_bytes import ByteCounter
from rntp.model.tokenizer import encode_marked
from rntp.rollout import Check, no_check
from rntp.rollout.engine import open_engine
from rntp.rollout.tool_calls import serving
from rntp.types import Context, NextTokenStats, Rollout

Progress = Callable[[str, int, int], None]
PURPOSE = "everywhere"  # of the draws


@dataclass(frozen=True)
class Lengths:
    """The same thoughts of a page, closed after each of B lengths, the longest as they are.

    worth_PB: nats that the gate expects of each, float64. tokens_B: mean tokens of each. gain_BPH,
    drawn_BP, computed_BP: see `Everywhere`.
    """

    worth_PB: Tensor
    tokens_B: Tensor
    gain_BPH: Tensor
    drawn_BP: Tensor
    computed_BP: Tensor


@dataclass(frozen=True)
class Made:
    """What a made corpus knows of a page.

    gain_P: nats that a perfect thought gains at each position, 0 where there is none. tokens_P: of
    that thought. class_L: name of each token's class, "" where nothing is known.
    """

    gain_P: Tensor
    tokens_P: Tensor
    class_L: tuple[str, ...]


@dataclass(frozen=True)
class Everywhere:
    """One page with its thoughts, float64 on the CPU.

    positions: int64 [P], of the page, ascending, `stride` apart. gain_PH: nats, of each of the next
    H tokens. entropy_P: nats, of the token at the position without a thought. expected_P: gain that
    the gate expects, nats a token; None without one. waits_P: bool, where it had rather think a
    token later; None where there is no later place. drawn_P: tokens of each thought. computed_P:
    what it costs to think there: thought, markers, and the next tokens read once more. nll_L: nats
    of each token without thinking; the first has none and is 0. num_bytes: of the tokens that have
    one. none_P: bool, thoughts that a policy which may has closed at once. made: of made pages,
    else None. lengths: of a gate that knows several, else None.
    """

    positions: Tensor
    gain_PH: Tensor
    entropy_P: Tensor
    expected_P: Tensor | None
    drawn_P: Tensor
    computed_P: Tensor
    nll_L: Tensor
    num_bytes: int
    none_P: Tensor
    made: Made | None = None
    waits_P: Tensor | None = None
    lengths: Lengths | None = None


def has_room(context: Context, config: Config) -> bool:
    """Whether a page has room for one thought at least."""
    return len(context) >= config.earliest_position + config.reward.horizon


@torch.no_grad()
def think_everywhere(
    model: LanguageModel,
    contexts: Sequence[Context],
    config: Config,
    *,
    stride: int,
    gate: Gate | None,
    check: Check = no_check,
    progress: Progress = lambda name, done, total: None,
) -> list[Everywhere]:
    """Think at every `stride` tokens of pages that have room for one thought at least."""
    engine = open_engine(model, config, thoughts=1, purpose=PURPOSE)
    count_bytes, horizon = ByteCounter(model.tokenizer), config.reward.horizon
    first = config.earliest_position

    def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        return tuple(range(first, len(context) - horizon + 1, stride))

    fitting = [c for c in contexts if has_room(c, config)]
    found = []
    with serving(engine, model, config):
        for number, context in enumerate(fitting):
            progress("pages", number, len(fitting))
            (rollout,) = engine.sample([context], place, check)
            worth = _Worth.of(model, rollout, config, check)
            hidden, nll_L = _plainly(model, context, config)
            at = torch.tensor(rollout.positions)
            entropy = rollout.entropy.double()
            before = hidden[at.to(hidden.device) - 1]
            asked = _Asked.of(gate, before, entropy, later=stride == 1) if gate else None
            found.append(
                Everywhere(
                    at,
                    worth.gain_PH,
                    entropy,
                    asked.expected_P if asked else None,
                    worth.drawn_P,
                    worth.computed_P,
                    nll_L,
                    count_bytes.span(context.token_ids, 1, len(context)),
                    worth.none_P,
                    _made(context, at.tolist(), model.tokenizer),
                    asked.waits_P if asked else None,
                    _lengths(model, rollout, config, gate, asked.worth_PB, worth)
                    if gate and asked and gate.shorter
                    else None,
                )
            )
    progress("pages", len(fitting), len(fitting))
    return found


@dataclass(frozen=True)
class _Asked:
    """What a gate says of a page's positions; see `Everywhere` and `Lengths`."""

    expected_P: Tensor
    waits_P: Tensor | None
    worth_PB: Tensor

    @classmethod
    def of(cls, gate: Gate, hidden: Tensor, entropy: Tensor, *, later: bool) -> "_Asked":
        """later: whether a thought may come a token later."""
        seen = gate.features(hidden, entropy)
        return cls(
            gate.model.predict(seen)[0],
            gate.waits(seen) if later else None,
            gate.worth_now(seen) if later else gate.worth(seen),
        )


@dataclass(frozen=True)
class _Worth:
    """Gain of a page's thoughts, their tokens, and what they cost; see `Everywhere`."""

    gain_PH: Tensor
    drawn_P: Tensor
    computed_P: Tensor
    none_P: Tensor

    @classmethod
    def of(cls, model: LanguageModel, rollout: Rollout, config: Config, check: Check) -> "_Worth":
        (page,) = score_pages(model, [rollout], config, check)
        given = [group[0] for group in rollout.thoughts]
        or_none = config.thought.source == "policy_or_none"
        behind = 2 + config.reward.horizon - 1  # markers, and the continuation read once more
        computed = [len(t.content) + behind for t in given]
        if (window := config.reading.window) is not None:
            # The thought is read once more, with markers of its own, in front of the window.
            again = (
                2 + len(t.read_ids) + (not t.closed) + min(position, window)
                for t, position in zip(given, rollout.positions, strict=True)
            )
            computed = [n + more for n, more in zip(computed, again, strict=True)]
        return cls(
            torch.cat([gains(at, config) for at in page["positions"]]),
            torch.tensor([t.num_tokens for t in given]).double(),
            torch.tensor(computed).double(),
            torch.tensor([or_none and not len(t.content) for t in given]),
        )


def _lengths(
    model: LanguageModel,
    rollout: Rollout,
    config: Config,
    gate: Gate,
    worth_PB: Tensor,
    full: _Worth,
) -> Lengths:
    """Close a page's thoughts earlier, and measure them again."""
    shorter = [
        _Worth.of(model, cut(rollout, length.most), config, no_check) for length in gate.shorter
    ]
    every = [*shorter, full]
    return Lengths(
        worth_PB,
        gate.tokens,
        torch.stack([worth.gain_PH for worth in every]),
        torch.stack([worth.drawn_P for worth in every]),
        torch.stack([worth.computed_P for worth in every]),
    )


def _made(
    context: Context, positions: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Made | None:
    """What the corpus knows of a page; None of one that was not made."""
    if context.labels is None:
        return None
    known = [context.labels.oracle.get(position) for position in positions]
    names = context.labels.names
    return Made(
        torch.tensor([o.gain if o else 0.0 for o in known], dtype=torch.float64),
        torch.tensor(
            [len(encode_marked(tokenizer, o.thought)) if o else 0 for o in known]
        ).double(),
        tuple(names.get(c, "").partition(",")[0] for c in context.labels.classes),
    )


def _plainly(model: LanguageModel, context: Context, config: Config) -> tuple[Tensor, Tensor]:
    """Last hidden states [L, D], and the loss of each token without thinking, nats, [L]. A reading
    window, which has all of the page, begins with a start token."""
    ids = context.token_ids
    hidden = before = TokenTree.build([(ids, -1, 0)]).hidden(model)
    if config.reading.window is not None:
        read = torch.cat([ids.new_tensor([model.start_id]), ids])
        before = TokenTree.build([(read, -1, 0)]).hidden(model)[1:]
    logp, _, _ = model.logprob(before[:-1], ids[1:].to(hidden.device))
    return hidden, torch.cat([torch.zeros(1), -logp.cpu()]).double()
