"""What is checked of a model before it runs plain sequences: that they mean what a tree would.

A branch is read as the end of a sequence of its own, and its prefix from another sequence. So a
model has to be a function of tokens, the rows of which depend on nothing that comes later, on no
sequence beside, and not on the length; and its head has to be what its hidden states go through.
"""

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rntp.errors import ConfigError, is_out_of_memory
from rntp.model.check import (
    depends_on_length,
    own_limit,
    rotary_limit,
    sees_later_tokens,
    switches_of,
)
from rntp.model.unshared import FILLING, Plain, in_words, run_plain


class Head(Protocol):
    """What a `LanguageModel` makes of hidden states."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, V]."""
        ...

    def logprob(
        self, hidden: Tensor, targets: Tensor, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log-probs of the targets, [N], entropies and arg-maxes."""
        ...


TOKENS = 40  # of a sequence of the check
MOST_TOKENS = 520  # of one that reaches over switches of the config, where no span is given
DRAWN = 3  # tokens that the cache is tried with


def check_ends(hf: PreTrainedModel, spec: str) -> None:
    """Raise ConfigError unless the model has an embedding of token ids and a head with weights."""
    for name in ("input", "output"):
        try:
            end = getattr(hf, f"get_{name}_embeddings")()
        except NotImplementedError:
            end = None
        weight = getattr(end, "weight", None)
        if not (isinstance(weight, Tensor) and weight.ndim == 2):
            raise ConfigError(
                f"model.spec {spec!r} ({type(hf).__name__}) has no {name} embedding that "
                "transformers knows of (one matrix, vocabulary by width), so that think markers "
                "cannot be added and log-probs not be computed; choose another model"
            )


@torch.no_grad()
def check_runs_plain(
    hf: PreTrainedModel, head: Head, spec: str, plain: Plain, span: int | None = None
) -> tuple[Plain, int]:
    """Find how the model runs plain sequences, and the longest one that it may see, in positions.

    plain: why, and where its hidden states are. span: the longest sequence that will be used;
    None: as far as the check goes. Raises ConfigError, with class, cause and remedy, for models
    that are no functions of the tokens before.
    """
    refused = f"model.spec {spec!r} ({type(hf).__name__}) cannot be trained, not even unshared: "
    try:
        seen, (rotary, why) = own_limit(hf), rotary_limit(hf)
        if span is not None and rotary < min(span, seen):
            raise ConfigError(
                f"{why} at {rotary} positions, so that no token behind them has a meaning of its "
                f"own, and the run reaches {span}; lower data.context_tokens or "
                "thought.thought_tokens"
            )
        limit = min(seen, rotary)
        short = min(limit, TOKENS)
        probe = _Probe(hf, head, plain)
        probe.check_head(short)
        probe.check_function(short)
        switches = switches_of(hf.config.get_text_config().to_dict())
        met = sorted({s for s in switches if s < min(span or MOST_TOKENS, limit)})
        beyond = [min(limit, s + 8) for s in met]
        probe.check_function(max(beyond, default=0))
        together = probe.may_share(short)
        # A cache may keep too much or too little of a window: from before it, and from behind.
        cached = all(probe.decodes(n) for n in [short, *(s + 2 for s in met if s < limit - 1)])
        cached = cached and all(probe.decodes(n) for n in beyond)
        _check_gradient(hf, plain, short)
    except ConfigError as error:
        raise ConfigError(refused + str(error)) from error
    return replace(plain, together=together, cached=cached), limit


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference of logits, in their standard deviations, that is rounding. Norms of
    transformers work in float32 whatever the type, so float64 has no bound of its own."""
    return 1e-3 if dtype in (torch.float64, torch.float32) else 0.1


def _ids(hf: PreTrainedModel, number: int, seed: int = 0) -> Tensor:
    """int64 [number]: tokens all over the vocabulary."""
    low, high = _range(hf)
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (number,), generator=draw).to(hf.device)


def _others(hf: PreTrainedModel, ids: Tensor) -> Tensor:
    """Another token for each of these."""
    low, high = _range(hf)
    return (ids - low + 1) % (high - low) + low


def _range(hf: PreTrainedModel) -> tuple[int, int]:
    """Ids of the check: the first few are often special (padding may have no position)."""
    weight = hf.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return min(8, len(weight) // 2), len(weight)


def _gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference of logits in units of their spread; inf where one is not finite and the
    other is."""
    found, wanted = found.double(), wanted.double()
    known = torch.isfinite(wanted)  # masked columns of a padded vocabulary are not
    if found.shape != wanted.shape or not torch.equal(known, torch.isfinite(found)):
        return float("inf")
    return float((found[known] - wanted[known]).abs().max() / wanted[known].std())


def _head_gap(head: Head, hidden: Tensor, own: Tensor) -> float:
    """Of logits and of log-probs, in units of the logits' spread. own: [N, V], the model's."""
    logits = head.logits(hidden)
    if hidden.ndim != 2 or logits.shape[1] > own.shape[1]:
        return float("inf")
    own = own[:, : logits.shape[1]]
    known = torch.isfinite(logits[0])  # ids that the tokenizer does not have are masked
    if not known.any():
        return float("inf")
    targets = known.nonzero()[:, 0][torch.arange(len(own)) % int(known.sum())]
    wanted = own[:, known].double().log_softmax(-1)
    wanted = wanted.gather(1, (known.cumsum(0) - 1)[targets][:, None])[:, 0]
    found, _, _ = head.logprob(hidden, targets)
    spread = own[:, known].double().std()
    of_logprob = float((found.double() - wanted).abs().max() / spread)
    return max(_gap(logits[:, known], own[:, known]), of_logprob)


def _own_logits(hf: PreTrainedModel, ids: Tensor) -> Tensor:
    try:
        logits: Tensor = hf(input_ids=ids[None], use_cache=False).logits[0]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"transformers itself cannot run it on token ids alone ({in_words(error)}); install "
            "what it misses, or choose another model"
        ) from error
    if not torch.isfinite(logits).any():
        raise ConfigError("its logits are not finite; look at the weights, or at model.dtype")
    return logits


class _Probe:
    """Compares rows of logits of one forward with those of another."""

    def __init__(self, hf: PreTrainedModel, head: Head, plain: Plain) -> None:
        self._hf, self._head, self._plain = hf, head, plain

    def _logits(self, ids_BS: Tensor) -> Tensor:
        hidden = run_plain(self._hf, self._plain, ids_BS).hidden
        return self._head.logits(hidden.flatten(0, 1)).view(*ids_BS.shape, -1)

    def _same(self, found: Tensor, wanted: Tensor) -> bool:
        return _gap(found, wanted) <= tolerance(wanted.dtype)

    def check_head(self, number: int) -> None:
        """Raise ConfigError unless log-probs are those of the model's own logits."""
        ids = _ids(self._hf, number)
        own = _own_logits(self._hf, ids)
        hidden = run_plain(self._hf, self._plain, ids[None]).hidden[0]
        gap = _head_gap(self._head, hidden, own)
        if not gap <= tolerance(own.dtype):
            raise ConfigError(
                f"log-probs of its hidden states differ from those of its logits by {gap:.2g} "
                f"standard deviations (bound {tolerance(own.dtype)}); choose another model"
            )

    def check_function(self, number: int) -> None:
        """Raise ConfigError unless rows depend on the tokens up to theirs, and on nothing else."""
        if number < 2:
            return
        ids, early = _ids(self._hf, number), max(number // 2, 1)
        whole = self._logits(ids[None])[0]
        other = ids.clone()
        other[early:] = _others(self._hf, ids[early:])
        changed = self._logits(other[None])[0]
        if not self._same(changed[:early], whole[:early]):
            raise ConfigError(f"{sees_later_tokens(self._hf)}; choose another model")
        if self._same(changed[early:], whole[early:]):
            raise ConfigError("its logits do not depend on the tokens that it is given")
        for length in {early, number - 1}:
            if not self._same(self._logits(ids[None, :length])[0], whole[:length]):
                raise ConfigError(f"{depends_on_length(length, number)}; choose another model")

    def may_share(self, number: int) -> bool:
        """Tell whether a sequence beside it and filling behind it leave a sequence as it is."""
        short = max(number * 2 // 3, 1)
        ids, beside = _ids(self._hf, number), _ids(self._hf, short, seed=2)
        batch = torch.full((2, number), FILLING, device=ids.device)
        batch[0], batch[1, :short] = ids, beside
        try:
            both = self._logits(batch)
        except ConfigError:
            return False
        return self._same(both[0], self._logits(ids[None])[0]) and self._same(
            both[1, :short], self._logits(beside[None])[0]
        )

    def decodes(self, number: int) -> bool:
        """Tell whether its cache, one row of it made two, gives what whole sequences give."""
        prefix = number - DRAWN
        if prefix < 1:
            return False
        rows = torch.stack([_ids(self._hf, number), _others(self._hf, _ids(self._hf, number))])
        rows[:, :prefix] = rows[0, :prefix]
        try:
            ran = run_plain(self._hf, self._plain, rows[:1, :prefix], keep=True)
            if ran.cache is None:
                return False
            ran.cache.reorder_cache(torch.zeros(2, dtype=torch.int64, device=rows.device))
            wanted = [self._logits(row[None])[0] for row in rows]
            for t in range(prefix, number):
                ran = run_plain(
                    self._hf, self._plain, rows[:, t : t + 1], cache=ran.cache, keep=True
                )
                logits = self._head.logits(ran.hidden[:, -1])
                if not self._same(logits, torch.stack([whole[t] for whole in wanted])):
                    return False
        # A cache that fails is one that does not work: then sequences are computed again.
        except (ConfigError, RuntimeError, AttributeError, TypeError, ValueError):
            return False
        return True


@torch.enable_grad()
def _check_gradient(hf: PreTrainedModel, plain: Plain, number: int) -> None:
    """Raise ConfigError unless there is a backward, with finite gradients.

    Every one is dropped as soon as it is there, so that this takes no more memory than a forward.
    """
    sizes: list[float] = []

    def drop(parameter: Tensor) -> None:
        assert parameter.grad is not None
        sizes.append(float(parameter.grad.double().norm()))
        parameter.grad = None

    learning = [p for p in hf.parameters() if p.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(drop) for p in learning]
    try:
        hidden = run_plain(hf, plain, _ids(hf, number)[None]).hidden
        (hidden.float() * torch.linspace(0.5, 1.5, hidden.shape[-1]).to(hidden)).sum().backward()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"it has no gradient ({in_words(error)}); choose another model"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not any(sizes) or not all(map(math.isfinite, sizes)):
        raise ConfigError("its gradient is not finite, or zero everywhere; choose another model")
