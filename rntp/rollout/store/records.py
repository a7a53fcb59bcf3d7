"""Rollouts as a file: token ids, float32 log-probs, positions; to the bit, and back.

Contexts are those of the step's work and not written again, but for the thoughts that stand in
them where thoughts are interleaved.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rntp.rollout.interleaved import splice
from rntp.rollout.store.sealed import Refused, pack, unpack
from rntp.types import Context, Rollout, Thought, ToolCall


def pack_rollouts(
    rollouts: Sequence[Rollout],
    contexts: Sequence[Context],
    facts: dict[str, Any],
    more: dict[str, Tensor],
) -> bytes:
    """Write the rollouts of a part. contexts: the part's, bare. facts, more: kept beside."""
    number = {c.ordinal: n for n, c in enumerate(contexts)}
    seen = [s for r in rollouts for s in r.context.seen]
    thoughts = [t for r in rollouts for group in r.thoughts for t in group]
    tensors = {
        "context": torch.tensor([number[r.context.ordinal] for r in rollouts]),
        "seen": torch.tensor([len(r.context.seen) for r in rollouts]),
        "seen_at": torch.tensor([s.position for s in seen], dtype=torch.int64),
        "seen_length": torch.tensor([len(s.token_ids) for s in seen], dtype=torch.int64),
        "seen_ids": _cat([s.token_ids for s in seen], torch.int32),
        "places": torch.tensor([len(r.positions) for r in rollouts]),
        "positions": torch.tensor([p for r in rollouts for p in r.positions], dtype=torch.int64),
        "entropy": _cat([r.entropy for r in rollouts]),
        "nll": _cat([r.nll for r in rollouts]),
        "group": torch.tensor([len(g) for r in rollouts for g in r.thoughts], dtype=torch.int64),
        "length": torch.tensor([len(t.sampled_ids) for t in thoughts], dtype=torch.int64),
        "closed": torch.tensor([t.closed for t in thoughts], dtype=torch.bool),
        "ids": _cat([t.sampled_ids for t in thoughts], torch.int32),
        "logprobs": _cat([t.sampled_logprobs for t in thoughts]),
        "answer": torch.tensor([len(t.answer_ids) for t in thoughts], dtype=torch.int64),
        "ended": torch.tensor([t.answer_ended for t in thoughts], dtype=torch.bool),
        "answer_ids": _cat([t.answer_ids for t in thoughts], torch.int32),
        "answer_logprobs": _cat([t.answer_logprobs for t in thoughts]),
        "given": _cat([_given(t) for t in thoughts], torch.bool),
    }
    calls = {str(n): [asdict(c) for c in t.calls] for n, t in enumerate(thoughts) if t.calls}
    return pack({**tensors, **more}, {**facts, "calls": calls})


def unpack_rollouts(
    payload: bytes, contexts: Sequence[Context]
) -> tuple[list[Rollout], dict[str, Any], dict[str, Tensor]]:
    """Read what `pack_rollouts` wrote: rollouts, facts, tensors. Raises Refused."""
    tensors, facts = unpack(payload)
    try:
        return _rollouts(tensors, facts, contexts), facts, tensors
    except Refused:
        raise
    except Exception as error:
        raise Refused("malformed", f"its parts do not fit together ({error})") from error


def _rollouts(
    tensors: dict[str, Tensor], facts: dict[str, Any], contexts: Sequence[Context]
) -> list[Rollout]:
    thoughts = iter(_thoughts(tensors, facts.get("calls", {})))
    sizes = iter(tensors["group"].tolist())
    seen = iter(
        zip(
            tensors["seen_at"].tolist(),
            tensors["seen_ids"].long().split(tensors["seen_length"].tolist()),
            strict=True,
        )
    )
    places = tensors["places"].tolist()
    version = int(facts["version"])
    found = []
    for number, earlier, at, entropy, nll in zip(
        tensors["context"].tolist(),
        tensors["seen"].tolist(),
        tensors["positions"].split(places),
        tensors["entropy"].split(places),
        tensors["nll"].split(places),
        strict=True,
    ):
        context = contexts[number]
        for _ in range(earlier):
            position, ids = next(seen)
            context = splice(context, position, ids.clone())
        groups = tuple(tuple(next(thoughts) for _ in range(next(sizes))) for _ in at)
        found.append(
            Rollout(context, tuple(at.tolist()), groups, entropy.clone(), nll.clone(), version)
        )
    if next(thoughts, None) is not None or next(seen, None) is not None:
        raise Refused("malformed", "it has more thoughts than its positions")
    return found


def _thoughts(tensors: dict[str, Tensor], calls: dict[str, Any]) -> list[Thought]:
    lengths, answers = tensors["length"].tolist(), tensors["answer"].tolist()
    called = bool(tensors["given"].any())
    rows = zip(
        tensors["ids"].long().split(lengths),
        tensors["logprobs"].split(lengths),
        tensors["closed"].tolist(),
        tensors["answer_ids"].long().split(answers),
        tensors["answer_logprobs"].split(answers),
        tensors["ended"].tolist(),
        tensors["given"].split(lengths),
        strict=True,
    )
    return [
        Thought(
            ids.clone(),
            logprobs.clone(),
            closed,
            answer_ids.clone(),
            answer_logprobs.clone(),
            ended,
            given.clone() if called and given.any() else given[:0].clone(),
            tuple(ToolCall(**call) for call in calls.get(str(n), [])),
        )
        for n, (ids, logprobs, closed, answer_ids, answer_logprobs, ended, given) in enumerate(rows)
    ]


def _given(thought: Thought) -> Tensor:
    given = thought.given
    return given if len(given) else torch.zeros(len(thought.sampled_ids), dtype=torch.bool)


def _cat(parts: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    if not parts:
        return torch.zeros(0, dtype=dtype or torch.float32)
    whole = torch.cat(list(parts))
    return whole if dtype is None else whole.to(dtype)
