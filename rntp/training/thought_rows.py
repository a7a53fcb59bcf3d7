"""The record of a step's thoughts, an object each: what rollouts/step_N.jsonl holds."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.model import LanguageModel
from rntp.model.reading import first_read, window_at
from rntp.model.thought_tree import thought_branch
from rntp.model.tokenizer import decode, token_strings
from rntp.placement.repeats import rows_before
from rntp.training.recorded import Kept
from rntp.training.step_stats import StepStats
from rntp.types import Context, Rollout, Thought

_TAIL = 48  # tokens before a position that a row shows


@dataclass(frozen=True)
class _Worth:
    """What thoughts were found to be worth, [P, G] and gain [P, G, H], and what the whole context
    is worth over a reading window, [P], where there is one; on the CPU."""

    rewards: dict[str, Tensor]
    reward: Tensor
    advantage: Tensor
    gain: Tensor
    whole: Tensor | None = None
    right: Tensor | None = None

    def of(self, place: int, g: int, scored: int) -> dict[str, object]:
        """The fields of one thought. scored: continuation tokens that are predicted."""
        return {
            "rewards": {name: float(r[place, g]) for name, r in self.rewards.items()},
            "reward": float(self.reward[place, g]),
            "advantage": float(self.advantage[place, g]),
            "gain": float(self.gain[place, g, :scored].mean()),
            "gain_per_token": self.gain[place, g, :scored].tolist(),
            **({} if self.whole is None else {"gain_whole": float(self.whole[place])}),
            **({} if self.right is None else {"score": float(self.right[place, g])}),
        }


def thought_rows(stats: StepStats, model: LanguageModel, kept: Kept) -> Iterator[dict[str, object]]:
    """Write down the thoughts of a rank's share of a step, a row each.

    kept: tells by the ordinal of a page and a position in it whether a group is written down. Rows
    are made as they are asked for, which may be in another thread and later: numbers are taken off
    the device now.
    """
    parts = stats.rewarded_parts
    think = _cat(outputs.think_logp_PGH for outputs in stats.outputs)
    empty = _cat(outputs.no_think_logp_PH for outputs in stats.outputs)
    horizon, window = stats.config.reward.horizon, stats.config.reading.window
    whole = None if window is None else _cat(outputs.whole_logp_PH for outputs in stats.outputs)
    worth = _Worth(
        {name: _cat(part.rewards[name] for part in parts) for name in parts[0].rewards},
        _cat(part.reward_PG for part in parts),
        _cat(part.advantage_PG for part in parts),
        think - empty[:, None],
        None if whole is None else (whole - empty).mean(dim=1),
        None if not stats.config.data.has_tasks else stats.right_PG(),
    )  # and nothing else: the rows must not hold on to the stats
    groups = [(rollout, k) for rollout in stats.rollouts for k in range(len(rollout.positions))]
    return (
        row
        for place, (rollout, k) in enumerate(groups)
        if kept(rollout.context.ordinal, rollout.page_positions[k])
        for row in _group(rollout, k, worth, place, model, horizon, window)
    )


def _group(
    rollout: Rollout,
    k: int,
    worth: _Worth,
    place: int,
    model: LanguageModel,
    horizon: int,
    window: int | None,
) -> Iterator[dict[str, object]]:
    """What is written down of one row of a position's thoughts."""
    context, ids, tokenizer = rollout.context, rollout.context.token_ids, model.tokenizer
    position = rollout.positions[k]
    scored = context.num_scored(horizon)
    continuation = ids[position : position + scored]
    shared = {
        "ordinal": context.ordinal,
        **({} if context.replay_of is None else {"replay_of": context.replay_of}),
        "document_id": context.document_id,
        "title": context.title,
        "position": position - context.shift,
        **_seen(context, tokenizer),
        "prefix_tail": decode(tokenizer, ids[max(0, position - _TAIL) : position]),
        "continuation": decode(tokenizer, continuation),
        "continuation_tokens": token_strings(tokenizer, continuation),
        "policy_version": rollout.policy_version,
        **_window(rollout, position, window, tokenizer),
        **({"task": context.task.source, "truth": context.task.answer} if context.task else {}),
    }
    before = rows_before(rollout.positions)[k] * len(rollout.thoughts[k])
    for g, thought in enumerate(rollout.thoughts[k]):
        yield {
            **shared,
            "thought_index": before + g,
            **_said(thought, model),
            **worth.of(place, g, scored),
        } | {
            "num_tokens": thought.num_tokens,
            "closed": thought.closed,
            "sampler_logprob": float(thought.sampled_logprobs.sum()),
        }


def _said(thought: Thought, model: LanguageModel) -> dict[str, object]:
    """What was thought and answered."""
    markers = model.think_open_id, model.think_close_id
    return {
        "thought": decode(model.tokenizer, thought.content),
        "thought_ids": thought_branch(thought.sampled_ids, thought.closed, *markers).tolist(),
        "answer": decode(model.tokenizer, thought.answer),
        **(
            {"verdicts": {n: asdict(v) for n, v in thought.verdicts.items()}}
            if thought.verdicts
            else {}
        ),
        **_called(thought),
    }


def _called(thought: Thought) -> dict[str, object]:
    """What was called, and which of the thought's tokens were not drawn, where there are any."""
    if not thought.calls and not thought.num_given:
        return {}
    given = thought.given if len(thought.given) else torch.zeros(len(thought.sampled_ids))
    return {"calls": [asdict(call) for call in thought.calls], "given": given.int().tolist()}


def _seen(context: Context, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """The earlier thoughts in the context, where there are any; markers are shown."""
    if not context.seen:
        return {}
    return {
        **({"left": len(context.left)} if len(context.left) else {}),
        "seen": [
            {
                "position": seen.position,
                "thought": decode(tokenizer, seen.token_ids),
                "thought_ids": seen.token_ids.tolist(),
            }
            for seen in context.seen
        ],
    }


def _window(
    rollout: Rollout, position: int, window: int | None, tokenizer: PreTrainedTokenizerBase
) -> dict[str, object]:
    """What a continuation was read behind, besides a memory, and how many tokens were lost."""
    if window is None:
        return {}
    return {
        "window": decode(tokenizer, window_at(rollout, position, window)),
        "lost_tokens": first_read(rollout, position, window),
    }


def _cat(tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([part.detach().cpu() for part in tensors])
