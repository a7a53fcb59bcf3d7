"""How a model's layers reach the attention that the caller wants, and what each layer does besides.

One attention function is registered with transformers; the caller passes what it should do as a
keyword of the forward. Windows are not told to it by every class (some only put them into masks,
which trees make themselves), so `note_layers` asks the masks once, and the layers keep the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rntp_kernels.tree_attention import Style
from rntp_kernels.tree_attention.style import masked_attention
from torch import Tensor, nn
from transformers import AttentionMaskInterface, PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from rntp.errors import ConfigError

ATTENTION = "rntp"
_PROBE = "rntp_probe"
_WINDOW = "rntp_window"  # what a layer keeps; absent where nobody has asked


class NotATreeError(RuntimeError):
    """A layer was run without the attention that the caller of a tree passes along."""


# (layer, q [1, Hq, N, D], k [1, Hkv, N, D], v [1, Hkv, N, E], scale, style) -> [1, Hq, N, E]
Attention = Callable[[int, Tensor, Tensor, Tensor, float, Style], Tensor]


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    rntp_attention: Attention | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    if rntp_attention is None:
        raise NotATreeError(
            "this model computes token trees: call LanguageModel.hidden, or "
            "hf.set_attn_implementation('sdpa') to use it as an ordinary model"
        )
    if attention_mask is not None:
        raise ConfigError("it makes masks of its own, which say nothing of trees")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = module.layer_idx
    assert isinstance(layer, int)
    style = Style(getattr(module, _WINDOW, sliding_window), softcap, s_aux)
    out = rntp_attention(layer, query, key, value, scale, style)
    return out.transpose(1, 2).contiguous(), None


@dataclass
class Notes:
    """What a probe writes down. calls: layer numbers, in the order in which they ran. windows: of
    each. The probe tells masks apart for positions up to `span`."""

    span: int
    calls: list[int] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)


class _WindowMask(Tensor):
    """A mask that knows its window, through whatever a model does to it."""

    window: int | None = None

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = super().__torch_function__(function, types, args, kwargs or {})
        known = [a.window for a in args if isinstance(a, _WindowMask)]
        if isinstance(found, _WindowMask) and known:
            found.window = known[0]
        return found


_current: list[Notes] = []  # of the probe that runs


def _probe_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    device: torch.device | str = "cpu",
    **_: object,
) -> Tensor:
    assert mask_function is not None

    def rows(queries: Tensor, keys: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.int64, device=device)
        found = mask_function(zero, zero, queries[:, None], keys[None, :])
        return torch.as_tensor(found, device=device).expand(len(queries), len(keys))

    seen = rows(
        torch.arange(q_length, device=device) + q_offset,
        torch.arange(kv_length, device=device) + kv_offset,
    )
    mask = seen[None, None].expand(batch_size, 1, -1, -1).as_subclass(_WindowMask)
    try:
        mask.window = _window_of(rows, _current[-1].span, torch.device(device))
    except IndexError:  # masks with tables in them know no positions beyond this text
        mask.window = _window_of(rows, min(_current[-1].span, kv_length), torch.device(device))
    return mask


def _window_of(
    rows: Callable[[Tensor, Tensor], Tensor], span: int, device: torch.device
) -> int | None:
    """The window of a mask, from what a few rows up to `span` see; None where they see all.

    Raises ConfigError if rows see something else than their last so many keys.
    """
    keys = torch.arange(span, device=device)
    asked = torch.tensor(sorted({span - 1, span // 2, span // 3, min(7, span - 1)}), device=device)
    seen, count = rows(asked, keys), rows(asked, keys).sum(dim=1)
    window = int(count.max())
    distance = asked[:, None] - keys
    if not torch.equal(seen, (distance >= 0) & (distance < window)):
        raise ConfigError(
            f"within {span} positions its layers see something else than their last keys "
            "(chunks, or blocks)"
        )
    return None if window >= span else window


def _probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window
    if isinstance(attention_mask, _WindowMask):
        window = attention_mask.window
    notes, layer = _current[-1], getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ConfigError(f"its {type(module).__name__} has no number (layer_idx)")
    notes.calls.append(layer)
    notes.windows.append(window)
    setattr(module, _WINDOW, window)
    length = query.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    out = masked_attention(query, key, value, mask, scale, Style(None, softcap, s_aux))
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention_function)
AttentionInterface.register(_PROBE, _probe_attention)
AttentionMaskInterface.register(_PROBE, _probe_mask)


@torch.no_grad()
def note_layers(hf: PreTrainedModel, ids: Tensor, span: int) -> Notes:
    """Run a plain text, int64 [n], and let every attention layer keep its window, if any is shorter
    than `span` positions.

    The model is left with the probe's attention. Raises ConfigError for masks that are no windows.
    """
    notes = Notes(span)
    hf.set_attn_implementation(_PROBE)
    _current.append(notes)
    try:
        hf.base_model(input_ids=ids[None], use_cache=False)
    finally:
        _current.pop()
    return notes


def own_attention(hf: PreTrainedModel) -> str:
    """Return what a class computes attention with where nobody says anything."""
    return "sdpa" if hf._supports_sdpa else "eager"


def trunk(
    hf: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, attention: Attention
) -> Tensor:
    """One forward without the head over a packed stream: int64 [N], int64 [N] -> [N, H]."""
    # Of a model that lies over many ranks, the trunk has hooks: see rntp.model.sharding.
    run = getattr(hf, "rntp_trunk", hf.base_model)
    output = run(
        input_ids=input_ids[None],
        position_ids=position_ids[None],
        use_cache=False,
        rntp_attention=attention,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden
