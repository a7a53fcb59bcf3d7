"""Forests of models whose layers cannot branch: one plain sequence a branch.

The numbers are those of the tree, and so are gradients; what is shared there is computed again for
every branch. A sequence is filled up on the right alone: what comes later changes nothing before it
in a causal model, be it attention or a state, so no mask is needed and no row that is read has seen
any filling.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rntp_kernels import TreeLayout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PreTrainedModel

from rntp.errors import ConfigError, is_out_of_memory
from rntp.model.routing import Routed, watched_routers
from rntp.model.sharding import is_sharded

# Sequences share a forward where filling takes no more than this share of it.
MOST_FILLING = 1 / 8
FILLING = 0  # an id of any vocabulary


@dataclass(frozen=True)
class Plain:
    """How a model runs plain sequences, as the check at load has found it.

    why: it runs no trees. at_head: its hidden states are read where its output embedding takes
    them, since something lies between that and the trunk. together: several sequences may share a
    forward; else they run one by one. cached: its cache decodes what whole sequences give; else
    sequences are computed again for every token that is drawn. most_tokens: of one forward, but
    for a sequence that is longer; see `run_forest`.
    """

    why: str = ""
    at_head: bool = False
    together: bool = True
    cached: bool = True
    most_tokens: int = 1 << 20

    def describe(self) -> str:
        """Say what the engine does, for people."""
        one = "" if self.together else ", one by one"
        drawn = "its own cache" if self.cached else "the whole sequence again for every token"
        return f"one plain sequence a branch{one}, decoding with {drawn}"


# In names of kinds of layers that keep a state instead of attending.
STATES = ("linear", "mamba", "conv", "recurrent", "ssm", "hybrid", "delta", "state")


def cannot_branch(hf: PreTrainedModel) -> str:
    """Why a model will hardly run trees, from its class and config alone; "" where it may."""
    text = hf.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    states = sorted({str(kind) for kind in kinds if any(s in str(kind) for s in STATES)})
    if states:
        return f"its layers of kind {', '.join(states)} keep a state, which cannot branch"
    if not getattr(hf, "_supports_attention_backend", False):
        return "it does not go through the transformers attention interface"
    return ""


@dataclass(frozen=True)
class Ran:
    """What a forward of [B, S] tokens leaves. hidden: [B, S, H]. cache: for the next token."""

    hidden: Tensor
    cache: Any = None


def run_plain(
    hf: PreTrainedModel, plain: Plain, ids_BS: Tensor, *, cache: Any = None, keep: bool = False
) -> Ran:
    """One plain forward: last hidden states, as the output embedding takes them.

    cache: of the tokens before. keep: with the cache of all of them. Raises ConfigError, naming the
    class and the cause, where the model's own forward fails.
    """
    given: dict[str, Any] = {"use_cache": keep}
    if cache is not None:
        given[_cache_name(hf if plain.at_head else hf.base_model)] = cache
    try:
        if plain.at_head:
            with _head_input(hf) as found:
                output = hf(input_ids=ids_BS, **given)
            hidden = found[-1]
        else:
            # Of a model that lies over many ranks, the trunk has hooks: see rntp.model.sharding.
            output = getattr(hf, "rntp_trunk", hf.base_model)(input_ids=ids_BS, **given)
            hidden = output.last_hidden_state
    except ConfigError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the forward of {type(hf).__name__} fails ({in_words(error)}); see whether "
            "transformers runs this model by itself on token ids alone, and install what it "
            "misses, or choose another model.spec"
        ) from error
    # Some keep a residual stream of float32 in a model of bfloat16.
    hidden = hidden.to(getattr(hf.get_output_embeddings(), "weight", hidden).dtype)
    if not keep:
        return Ran(hidden)
    kept = getattr(output, "cache", None)
    return Ran(hidden, getattr(output, "past_key_values", None) if kept is None else kept)


def _cache_name(module: nn.Module) -> str:
    """What a forward calls the cache: transformers 5.24 has renamed it."""
    names = inspect.signature(type(module).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def in_words(error: Exception) -> str:
    """An error of somebody else's code, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextmanager
def _head_input(hf: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the output embedding is given inside; it computes the logits of one row of it only."""
    head, found = hf.get_output_embeddings(), []
    assert isinstance(head, nn.Module)

    def take(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        found.append(given[0])
        return (given[0][..., -1:, :], *given[1:])

    handle = head.register_forward_pre_hook(take)
    try:
        yield found
    finally:
        handle.remove()
    if len(found) != 1 or found[0].ndim != 3:
        raise ConfigError(
            f"{type(hf).__name__} does not call its output embedding once, on [sequences, tokens, "
            "width], so there are no hidden states to read"
        )


def sequences(layout: TreeLayout, start: int = 0) -> tuple[list[int], Tensor]:
    """The plain sequences that hold all tokens of the segments from `start` on.

    Returns the segments that they end with, and where each of those tokens is read, int64
    [N', 2]: index into these, and position. A segment that another goes on from has no sequence
    of its own.
    """
    last = list(range(len(layout.lengths)))  # of the sequence that a segment is read from
    for segment in range(len(layout.lengths) - 1, start - 1, -1):
        parent = layout.parents[segment]
        if parent >= start and layout.attach[segment] == layout.lengths[parent]:
            last[parent] = last[segment]
    wanted = range(start, len(layout.lengths))
    ends = sorted({last[segment] for segment in wanted})
    number = {segment: n for n, segment in enumerate(ends)}
    read = [
        torch.stack(
            [
                torch.full((layout.lengths[s],), number[last[s]]),
                torch.arange(layout.starts[s], layout.starts[s] + layout.lengths[s]),
            ],
            dim=1,
        )
        for s in wanted
    ]
    return ends, torch.cat(read) if read else torch.zeros(0, 2, dtype=torch.int64)


def grouped(
    lengths: Sequence[int], *, together: bool, most: int = 1 << 30, whole: bool = False
) -> list[list[int]]:
    """Choose which sequences share a forward, by number: of like length, so that little is filled
    up.

    together: several may. most: tokens of them, with the filling. whole: all of them do, whatever
    it takes.
    """
    order = sorted(range(len(lengths)), key=lambda n: lengths[n])
    groups: list[list[int]] = []
    tokens = 0  # of the last group
    for n in order:
        padded = lengths[n] * (len(groups[-1]) + 1) if groups else 0
        fits = padded <= most and padded - (tokens + lengths[n]) <= MOST_FILLING * padded
        if groups and together and (whole or fits):
            groups[-1].append(n)
            tokens += lengths[n]
        else:
            groups.append([n])
            tokens = lengths[n]
    return groups


def _run_group(
    hf: PreTrainedModel, plain: Plain, watch: bool, ids_BS: Tensor
) -> tuple[Tensor, list[Routed]]:
    """One forward of some sequences: [B, S, H], and what routers said of the B · S tokens."""
    with watched_routers(hf, watch) as seen:
        hidden = run_plain(hf, plain, ids_BS).hidden
    return hidden, seen


def _again_in_the_backward(
    run: Callable[[Tensor], tuple[Tensor, list[Routed]]], ids_BS: Tensor
) -> tuple[Tensor, list[Routed]]:
    """The same, keeping nothing but the ids."""
    # It would stop a forward in the middle, by an error that is nobody's fault.
    with set_checkpoint_early_stop(False):
        found: tuple[Tensor, list[Routed]] = checkpoint(
            run, ids_BS, use_reentrant=False, preserve_rng_state=False
        )
    return found


def run_forest(
    hf: PreTrainedModel,
    plain: Plain,
    ids: Tensor,
    layout: TreeLayout,
    start: int = 0,
    watch: bool = False,
) -> tuple[Tensor, list[Routed]]:
    """Hidden states of the tokens of the segments from `start` on, [N', H], and what routers said.

    ids: int64 [N], of the whole forest. Each token is read from one sequence, so that routing, too,
    is that of the tree, every token once. watch: for routers.

    A context with its branches is never split, and without sharing it may have many times the
    tokens of a microbatch (`plain.most_tokens`). Then only its groups' ids are kept for the
    backward, which computes one group after the other again: no more than that lies in memory.
    """
    device = ids.device
    ends, read = sequences(layout, start)
    rows = [layout.unshared(segment) for segment in ends]
    # Ranks of a sharded model run as many forwards as each other: one.
    whole = is_sharded(hf)
    if whole and (plain.at_head or not plain.together):
        raise ConfigError(
            f"ranks that share the weights of {type(hf).__name__} would have to run as many "
            "forwards of its trunk as each other, and it runs one sequence at a time, or has a "
            "head of a kind of its own; train it in one process"
        )
    lengths = [len(r) for r in rows]
    groups = grouped(lengths, together=plain.together, most=plain.most_tokens, whole=whole)
    run = partial(_run_group, hf, plain, watch)
    if torch.is_grad_enabled() and sum(lengths) > plain.most_tokens and not whole:
        run = partial(_again_in_the_backward, run)
    hidden, order = [], []
    routed: list[list[Routed]] = []
    for group in groups:
        length = max(lengths[n] for n in group)
        batch = torch.full((len(group), length), FILLING)
        for place, n in enumerate(group):
            batch[place, : lengths[n]] = rows[n]
        filled = torch.arange(length) >= torch.tensor([lengths[n] for n in group])[:, None]
        found, seen = run(ids[batch.to(device)].masked_fill(filled.to(device), FILLING))
        # Tokens that are read from this group, in their order.
        index = torch.full((len(ends),), -1)
        index[torch.tensor(group)] = torch.arange(len(group))
        place_N = index[read[:, 0]]
        mine = (place_N >= 0).nonzero()[:, 0]
        flat = (place_N[mine] * length + read[mine, 1]).to(device)
        hidden.append(found.flatten(0, 1).index_select(0, flat))
        routed.append([r.at(flat) for r in seen])
        order.append(mine)
    back = torch.cat(order).argsort().to(device)
    layers = [Routed.joined(parts, back) for parts in zip(*routed, strict=True)]
    return torch.cat(hidden).index_select(0, back), layers
