"""The forward of well-known trunks in few steps, for the short work that one sampled token is.

With a few dozen rows a layer, much of the sampling time on a CPU goes into getting from one
operation to the next, and there threads do not help. Here a layer makes one product out of queries,
keys and values, one out of gate and up, and one rotation of queries and keys. The numbers are those
of the model's own forward; `lean_trunk` compares the two before it is used.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import LlamaModel, PreTrainedModel, Qwen3Model
from transformers.modeling_outputs import BaseModelOutput

Product = Callable[[Tensor], Tensor]
Pack = Callable[[Tensor, Tensor | None], Product]

# Trunks whose layers are norm, attention, norm, gated product, each with a residual.
FAMILIES = (LlamaModel, Qwen3Model)
_CHECKED_TOKENS = 8
# Whether the lean forward of a trunk is right: compared once, at its first use.
_AGREES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_TOLERANCE = 0.05  # of the norm; bfloat16 alone makes a hundredth over thirty layers


@dataclass(frozen=True)
class LeanLayer:
    """One decoder layer. qkv, gate_up: products of stacked weights, x [N, in] -> [N, out]."""

    index: int
    num_kv_heads: int
    head_dim: int
    scale: float
    norm: nn.Module
    qkv: Product
    qk_norms: tuple[nn.Module, nn.Module] | None
    out: Product
    mlp_norm: nn.Module
    gate_up: Product
    act: nn.Module
    down: Product

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Any) -> Tensor:
        """x [N, H], cos and sin [N, 1, D] -> [N, H]."""
        kv = self.num_kv_heads
        heads = self.qkv(self.norm.forward(x)).view(len(x), -1, self.head_dim)  # [N, Hq + 2·Hkv, D]
        turned, value = heads[:, :-kv], heads[:, -kv:]
        if self.qk_norms is not None:
            q_norm, k_norm = self.qk_norms
            query, key = turned[:, :-kv], turned[:, -kv:]
            turned = torch.cat([q_norm.forward(query), k_norm.forward(key)], dim=1)
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
        query, key, value = (
            part.transpose(0, 1)[None] for part in (turned[:, :-kv], turned[:, -kv:], value)
        )
        seen = attention(self.index, query, key, value, self.scale)
        x = x + self.out(seen[0].transpose(0, 1).reshape(len(x), -1))
        gate, up = self.gate_up(self.mlp_norm.forward(x)).chunk(2, dim=-1)
        return x + self.down(self.act.forward(gate) * up)


class LeanTrunk:
    """What `hf.base_model` computes of packed streams: last hidden states."""

    def __init__(self, base: Any, pack: Pack) -> None:
        self._base = base
        self._layers = [_layer(layer, pack) for layer in base.layers]

    def __call__(
        self, input_ids: Tensor, position_ids: Tensor, rntp_attention: Any, **_: Any
    ) -> BaseModelOutput:
        """input_ids, position_ids: int64 [1, N] -> last_hidden_state [1, N, H]."""
        base = self._base
        x = base.embed_tokens(input_ids)
        cos, sin = (t[0][:, None] for t in base.rotary_emb(x, position_ids=position_ids))
        x = x[0]
        for layer in self._layers:
            x = layer(x, cos, sin, rntp_attention)
        return BaseModelOutput(last_hidden_state=base.norm(x)[None])


@torch.no_grad()
def lean_trunk(hf: PreTrainedModel, pack: Pack) -> LeanTrunk | None:
    """Of a model of `FAMILIES` with nothing added to it; None for any other.

    Warns and returns None if it does not compute what the model's own forward does.
    """
    base: Any = hf.base_model
    if type(base) not in FAMILIES or any(map(_is_changed, base.modules())):
        return None
    lean = LeanTrunk(base, pack)
    if base not in _AGREES:
        _AGREES[base] = _agrees(lean, hf)
    return lean if _AGREES[base] else None


def _agrees(lean: LeanTrunk, hf: PreTrainedModel) -> bool:
    base: Any = hf.base_model
    ids = torch.arange(_CHECKED_TOKENS, device=hf.device)[None] % hf.config.vocab_size

    def hidden(run: Any) -> Tensor:
        out = run(input_ids=ids, position_ids=ids, use_cache=False, rntp_attention=_gated_values)
        last: Tensor = out.last_hidden_state
        return last.double()

    own, usual = hidden(lean), hidden(base)
    gap = float((own - usual).norm() / usual.norm())
    if not gap <= _TOLERANCE:
        warnings.warn(
            f"sampling runs {type(base).__name__}'s own forward: the lean one differs from it by "
            f"{gap:.2g} of its norm; report the version of transformers",
            stacklevel=4,
        )
    return gap <= _TOLERANCE


def _gated_values(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A simple attention that queries, keys, values and positions have a part in: each value,
    gated by its query and the key of the token before."""
    repeat = q.shape[1] // k.shape[1]
    before = k.roll(1, dims=2).repeat_interleave(repeat, 1)
    gate = torch.tanh(scale * (q * before).sum(-1, keepdim=True))
    return gate * v.repeat_interleave(repeat, 1)


def _layer(layer: Any, pack: Pack) -> LeanLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return LeanLayer(
        index=attention.layer_idx,
        num_kv_heads=attention.config.num_key_value_heads,
        head_dim=attention.head_dim,
        scale=attention.scaling,
        norm=layer.input_layernorm,
        qkv=_stacked(pack, attention.q_proj, attention.k_proj, attention.v_proj),
        qk_norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        out=_stacked(pack, attention.o_proj),
        mlp_norm=layer.post_attention_layernorm,
        gate_up=_stacked(pack, mlp.gate_proj, mlp.up_proj),
        act=mlp.act_fn,
        down=_stacked(pack, mlp.down_proj),
    )


def _stacked(pack: Pack, *layers: nn.Linear) -> Product:
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weights: list[Tensor] = [layer.weight for layer in layers]
    return pack(torch.cat(weights), torch.cat(biases) if biases else None)


def _is_changed(module: nn.Module) -> bool:
    """It has hooks or a forward of its own, or is a linear layer of another kind (an adapter)."""
    hooks: Iterator[Any] = iter((module._forward_hooks, module._forward_pre_hooks))
    other = isinstance(module, nn.Linear) and type(module) is not nn.Linear
    return any(hooks) or "forward" in module.__dict__ or other
