"""Decoding branches in lock-step against one shared copy of each document's keys and values."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from rntp_kernels.tree_attention.feed import FeedAttention
from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.selection import decode_choice
from rntp_kernels.tree_attention.style import PLAIN, Style
from rntp_kernels.tree_attention.tree import TreeAttention
from rntp_kernels.tree_attention.two_parts import attend_parts, joins


def stored(x: Tensor) -> Tensor:
    """Cast to the type that keys and values are kept in: on the CPU not bfloat16, whose small
    products are slower there than those of float32, and less exact."""
    return x.float() if x.dtype == torch.bfloat16 and x.device.type == "cpu" else x


class PrefixRecorder:
    """Runs D packed documents causally and keeps the keys and values of every layer.

    Storage is padded to `slots` tokens a document, so that what a branch computes does not depend
    on which other documents are decoded beside it.
    """

    def __init__(
        self, lengths: tuple[int, ...], slots: int, device: torch.device | str = "cpu"
    ) -> None:
        documents = len(lengths)
        layout = TreeLayout(lengths, parents=(-1,) * documents, attach=(0,) * documents)
        self._attend = TreeAttention(layout, device)
        self._slots = slots
        self.keys: dict[int, Tensor] = {}  # layer -> [D, Hkv, slots, head]
        self.values: dict[int, Tensor] = {}

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, style: Style = PLAIN
    ) -> Tensor:
        self.keys[layer], self.values[layer] = self._keep(k), self._keep(v)
        return self._attend(layer, q, k, v, scale, style)

    def _keep(self, x: Tensor) -> Tensor:
        layout, x = self._attend.layout, stored(x)
        kept = x.new_zeros(len(layout.lengths), x.shape[1], self._slots, x.shape[3])
        for d, length in enumerate(layout.lengths):
            first = layout.offsets[d]
            kept[d, :, :length] = x[0, :, first : first + length]
        return kept


class DecodeAttention:
    """One new token a branch and call, for B branches of each of D documents.

    Branch b of document d sees the first `visible[d, b]` tokens of its document, and its own
    tokens so far. Each document's keys and values are read once for all its branches
    (nested-prefix attention); the branches' own go into storage allocated once.

    visible: int64 [D, B]. budget: most tokens of a branch. Queries and keys arrive as
    [1, heads, D·B, head]. Call `advance()` after each model call, or `rewind()` to go on from
    where each branch ended. What is not drawn but given is taken by `feeding`, many tokens a call.

    fixed: every call reads the storage at its full width and takes the place of the next token
    from the device, so that all calls have the same shapes and addresses (a CUDA graph needs
    that); `restart` then begins with other documents in the same storage, which is the prefix's,
    and `narrowed` goes on in it. With fixed shapes Triton's kernels may do the work; see
    `decode_choice`.
    """

    def __init__(
        self,
        prefix: PrefixRecorder,
        visible: Tensor,
        budget: int,
        *,
        fixed: bool = False,
    ) -> None:
        self._doc_keys, self._doc_values = prefix.keys, prefix.values
        self._documents, self._branches = visible.shape
        self._budget = budget
        self._length = 0
        self._fixed = fixed
        # By style and widths of a layer, known at its first call.
        self._by_kernels: dict[object, bool] = {}
        self._visible = visible.clone()
        self._stored = self._branches  # for so many branches of a document there is storage
        # int64 [D, B]: which of these places is each branch's.
        place = torch.arange(self._branches, device=visible.device)
        self._places = place.expand(visible.shape).clone()
        slots = next(iter(prefix.keys.values())).shape[2]
        # Additive, because a boolean mask would be converted in every layer.
        self._bias = torch.zeros(
            self._documents, 1, self._branches, slots, device=visible.device
        )  # [D, 1, B, slots]
        _show(self._bias, visible)
        self._wide: dict[int, Tensor] = {}  # heads that share keys -> their bias, once it is asked
        self._keys: dict[int, Tensor] = {}  # layer -> [D, Hkv, B, budget, head]
        self._values: dict[int, Tensor] = {}
        self._lengths: Tensor | None = None  # int64 [D, B], once the branches differ
        self._own_bias: Tensor | None = None  # [D, 1, B, budget], with them
        if fixed:
            self.rewind(torch.zeros_like(visible))

    def restart(self, prefix: PrefixRecorder, visible: Tensor) -> None:
        """Begin again with as many other documents and branches; see `fixed`."""
        for own, other in ((self._doc_keys, prefix.keys), (self._doc_values, prefix.values)):
            for layer, kept in own.items():
                kept.copy_(other[layer])
        self._visible.copy_(visible)
        _show(self._bias, visible)
        self._wide = {}
        self.rewind(torch.zeros_like(visible))

    @property
    def lengths(self) -> Tensor:
        """Number of tokens that each branch has seen of itself, int64 [D, B]; a copy."""
        if self._lengths is None:
            shape = self._documents, self._branches
            return torch.full(shape, self._length, device=self._bias.device)
        return self._lengths.clone()

    def advance(self) -> None:
        """Count the token that every layer has just seen to the branches' past."""
        if self._lengths is None or self._own_bias is None:
            self._length += 1
        else:
            self._lengths += 1
            _show(self._own_bias, self._lengths + 1)

    def rewind(self, lengths: Tensor) -> None:
        """Give each branch a past of its own length, int64 [D, B]: its next token takes the place
        after it, and what was decoded beyond is forgotten.

        Storage is read at its full width from here on, so that a branch does not depend on how
        long the branches beside it are.
        """
        if self._lengths is None or self._own_bias is None:
            self._lengths = lengths.clone()
            size = self._documents, 1, self._branches, self._budget
            self._own_bias = torch.zeros(size, device=lengths.device)
        else:
            self._lengths.copy_(lengths)
        _show(self._own_bias, self._lengths + 1)

    def feeding(self, rows: Sequence[int], counts: Sequence[int], width: int) -> FeedAttention:
        """Take several tokens of some branches in one model call; see `FeedAttention`.

        rows: which of the D·B branches. counts: tokens that each is fed, behind those that it has
        seen of itself; at most `width`. `rewind` has to follow, with the new lengths.
        """
        which = torch.tensor(rows, device=self._visible.device)
        return FeedAttention(
            (self._doc_keys, self._doc_values),
            (self._keys, self._values),
            lambda store, layer, new: self._storage(store, layer, stored(new)),
            document=which // self._branches,
            place=self._places.flatten()[which],
            visible=self._visible.flatten()[which],
            starts=self.lengths.flatten()[which],
            counts=counts,
            width=width,
        )

    def narrowed(self, kept: Tensor) -> "DecodeAttention":
        """Go on with some of the branches: int64 [D, B'], as many of each document.

        They go on in storage of their own, without the gaps, and what this one holds stays as it
        is; with fixed shapes in the same storage, each in its place.
        """
        other = copy(self)
        other._branches = kept.shape[1]
        other._visible = self._visible.gather(1, kept)
        other._bias, other._wide = _take(self._bias, kept), {}
        if self._lengths is not None and self._own_bias is not None:
            other._lengths = self._lengths.gather(1, kept)
            other._own_bias = _take(self._own_bias, kept)
        if self._fixed:
            other._places = self._places.gather(1, kept)
        else:
            other._stored, other._places = kept.shape[1], self._places[:, : kept.shape[1]]
            other._keys = {layer: _take(x, kept) for layer, x in self._keys.items()}
            other._values = {layer: _take(x, kept) for layer, x in self._values.items()}
        return other

    def follow(self, wider: "DecodeAttention", kept: Tensor) -> None:
        """Become `wider.narrowed(kept)` where this one is: fixed shapes, with storage in common,
        and as many branches."""
        now = wider.narrowed(kept)
        self._visible.copy_(now._visible)
        self._bias.copy_(now._bias)
        self._wide = {}
        self._places.copy_(now._places)
        self.rewind(now.lengths)

    def take_back(self, narrow: "DecodeAttention", kept: Tensor) -> None:
        """Take over what the branches that `narrowed(kept)` went on with have seen in storage of
        their own. `rewind` has to follow: branches are no longer equally long."""
        for mine, theirs in ((self._keys, narrow._keys), (self._values, narrow._values)):
            for layer, storage in mine.items():
                for own, other, rows in zip(storage, theirs[layer], kept, strict=True):
                    own.index_copy_(1, rows, other)

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, style: Style = PLAIN
    ) -> Tensor:
        documents, branches = self._documents, self._branches
        kv_heads, head = k.shape[1], k.shape[3]
        repeat = q.shape[1] // kv_heads
        kind = (*style.kind, head, v.shape[3])
        if kind not in self._by_kernels:
            chosen = self._fixed and decode_choice(q, k, v, style)
            self._by_kernels[kind] = chosen == "triton"
        if self._by_kernels[kind]:
            return self._step_by_kernels(layer, q, k, v, scale, style)
        own_k = self._append(self._keys, layer, k)  # [D, Hkv, B, t, head]
        own_v = self._append(self._values, layer, v)
        doc_k, doc_v = self._doc_keys[layer], self._doc_values[layer]
        slots = doc_k.shape[2]

        # [1, Hq, D·B, head] -> [D, Hkv, B, repeat, head]: the queries of all branches and of all
        # heads that share keys are the rows of one product with the document.
        split = q[0].view(kv_heads, repeat, documents, branches, head).permute(2, 0, 3, 1, 4)
        if joins(doc_k, doc_v, slots, style) and int(self._visible.min()) > 0:
            long = doc_k, doc_v, self._wide_bias(repeat)
            own = own_k, own_v, self._own_bias
            out = attend_parts(stored(split).contiguous(), long, own, scale)
            return self._laid_out(out, q.dtype)
        rows = (stored(split) * scale).contiguous()
        to_doc = _wide(rows.flatten(2, 3) @ doc_k.transpose(2, 3))
        to_doc = to_doc.unflatten(2, (branches, repeat))
        to_own = _wide(rows @ own_k.transpose(3, 4))
        if style.soft_cap is not None:
            for scores in (to_doc, to_own):
                scores.div_(style.soft_cap).tanh_().mul_(style.soft_cap)
        to_doc.add_(self._bias[:, :, :, None])
        if self._own_bias is not None:
            to_own.add_(self._own_bias[:, :, :, None])
        if style.window is not None:
            self._hide_behind(style.window, to_doc, to_own)

        scores = [to_doc, to_own]
        if style.sinks is not None:
            sinks = _wide(style.sinks).view(kv_heads, 1, repeat, 1)
            scores.append(sinks.expand(documents, -1, branches, -1, -1))
        weights = torch.cat(scores, dim=-1).softmax(dim=-1).to(rows.dtype)
        from_doc = (weights[..., :slots].flatten(2, 3) @ doc_v).unflatten(2, (branches, repeat))
        out = from_doc + weights[..., slots : slots + own_v.shape[3]] @ own_v
        return self._laid_out(out, q.dtype)

    def _laid_out(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        """[D, Hkv, B, repeat, head] -> [1, Hq, D·B, head], as queries came."""
        return out.permute(1, 3, 0, 2, 4).to(dtype).flatten(2, 3).flatten(0, 1)[None]

    def _wide_bias(self, repeat: int) -> Tensor:
        """What is added to scores of the document, a row for each head that shares keys:
        [D, 1, B·repeat, slots]. All layers have the same."""
        if repeat not in self._wide:
            rows = self._bias[:, :, :, None].expand(-1, -1, -1, repeat, -1)
            self._wide[repeat] = rows.flatten(2, 3)
        return self._wide[repeat]

    def _hide_behind(self, window: int, to_doc: Tensor, to_own: Tensor) -> None:
        """Set scores to −inf where a key lies `window` positions or more behind the new token.

        to_doc: [D, Hkv, B, repeat, slots]. to_own: [D, Hkv, B, repeat, t].
        """
        length = self._length if self._lengths is None else self._lengths
        last = self._visible + length  # position of the new token, [D, B]
        for scores, first in ((to_doc, torch.zeros_like(last)), (to_own, self._visible)):
            places = torch.arange(scores.shape[4], device=scores.device)
            distance = (last - first)[:, None, :, None, None] - places
            scores.masked_fill_(distance >= window, float("-inf"))

    def _step_by_kernels(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, style: Style
    ) -> Tensor:
        from rntp_kernels.tree_attention.triton_decode import decode_step

        assert self._lengths is not None
        return decode_step(
            q,
            k,
            v,
            self._doc_keys[layer],
            self._doc_values[layer],
            self._storage(self._keys, layer, k),
            self._storage(self._values, layer, v),
            self._visible,
            self._places,
            self._lengths,
            scale,
            style,
        )

    def _append(self, store: dict[int, Tensor], layer: int, new: Tensor) -> Tensor:
        kv_heads, head, new = new.shape[1], new.shape[3], stored(new)
        self._storage(store, layer, new)
        token = new[0].view(kv_heads, self._documents, self._branches, head).transpose(0, 1)
        if self._lengths is None:
            store[layer][:, :, :, self._length] = token
            return store[layer][:, :, :, : self._length + 1]
        if self._branches == self._stored:
            place = self._lengths[:, None, :, None, None].expand(-1, kv_heads, -1, 1, head)
            return store[layer].scatter_(3, place, token.unsqueeze(3))
        document = torch.arange(self._documents, device=new.device)[:, None]
        by_token = store[layer].permute(0, 2, 3, 1, 4)  # [D, places, budget, Hkv, head]
        by_token.index_put_((document, self._places, self._lengths), token.transpose(1, 2))
        return _take(store[layer], self._places)

    def _storage(self, store: dict[int, Tensor], layer: int, new: Tensor) -> Tensor:
        """Return a layer's storage, [D, Hkv, places, budget, head]; made at its first token."""
        if layer not in store:
            shape = self._documents, new.shape[1], self._stored, self._budget, new.shape[3]
            # Zeros: a place that is read before it is written must not hold a NaN.
            store[layer] = new.new_zeros(shape)
        return store[layer]


def _wide(x: Tensor) -> Tensor:
    """Scores in float32 or better."""
    return x if x.dtype == torch.float64 else x.float()


def _take(x: Tensor, kept: Tensor) -> Tensor:
    """Pick branches of each document, kept int64 [D, B']: [D, heads, B, …] -> [D, heads, B', …]."""
    return torch.stack([own.index_select(1, rows) for own, rows in zip(x, kept, strict=True)])


def _show(bias: Tensor, visible: Tensor) -> None:
    """Set the first `visible` of the last dimension to 0 and the rest to −inf; in place.

    bias: [D, 1, B, n]. visible: int64 [D, B].
    """
    hidden = torch.arange(bias.shape[3], device=bias.device) >= visible[:, None, :, None]
    bias.zero_().masked_fill_(hidden, float("-inf"))
