"""Several tokens of a branch in one pass: what a branch is given, in place of what it draws.

Plain PyTorch on every device. Keys and values go where decoding keeps them, so that either may
follow the other, also where decoding is done by Triton's kernels.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rntp_kernels.tree_attention.style import PLAIN, Style, masked_attention

Storage = dict[int, Tensor]  # by layer


class FeedAttention:
    """Attends from W tokens of each of R branches, causally, and stores their keys and values.

    Queries and keys arrive as [1, heads, R·W, head]. Token i of a branch takes the place `starts +
    i` of its own ones, and sees all of these up to itself and the first `visible` tokens of its
    document.

    document, place, visible, starts: int64 [R] on the device; place: of the branch in the storage
    of its own tokens. counts: tokens that each branch is fed, at most W; what fills a row up behind
    them is not stored, and what comes out for it is of no use. storage: returns that of a layer's
    keys or values, [D, Hkv, places, budget, head], as in `DecodeAttention`.

    A branch by itself reads what it sees and no more, so that what is computed depends on nothing
    but the branch. Several read the storage at its full width, so that the shapes depend on nothing
    but R and W.
    """

    def __init__(
        self,
        documents: tuple[Mapping[int, Tensor], Mapping[int, Tensor]],
        own: tuple[Storage, Storage],
        storage: Callable[[Storage, int, Tensor], Tensor],
        *,
        document: Tensor,
        place: Tensor,
        visible: Tensor,
        starts: Tensor,
        counts: Sequence[int],
        width: int,
    ) -> None:
        self._documents, self._own, self._storage = documents, own, storage
        self._document, self._place = document, place
        self._visible, self._starts = visible, starts
        self._width = width
        device = starts.device
        count = torch.tensor(counts, device=device)
        # Of each token, behind `starts`, int64 [R, W]. What fills a row up stands where the last of
        # its tokens does: no model is asked for a position that it does not have.
        self.offset = torch.minimum(
            torch.arange(width, device=device), (count - 1).clamp_min(0)[:, None]
        )
        branch = [r for r, n in enumerate(counts) for _ in range(n)]
        token = [i for n in counts for i in range(n)]
        of_branch, of_token = torch.tensor([branch, token], dtype=torch.int64, device=device)
        self._written = of_branch * width + of_token  # which of the R·W tokens are stored
        self._to = document[of_branch], place[of_branch], starts[of_branch] + of_token
        # How much is read of the documents and of the own tokens; None: all that there is room for.
        self._reads: tuple[int | None, int | None] = None, None
        if len(counts) == 1:
            self._reads = int(visible), int(starts) + width
        self._masks: dict[tuple[object, ...], Tensor] = {}

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, style: Style = PLAIN
    ) -> Tensor:
        keys, values = (
            self._seen(kept[layer], self._write(store, layer, new))
            for kept, store, new in zip(self._documents, self._own, (k, v), strict=True)
        )
        rows = q[0].unflatten(1, (-1, self._width)).transpose(0, 1)  # [R, Hq, W, head]
        slots = self._documents[0][layer].shape[2] if self._reads[0] is None else self._reads[0]
        mask = self._mask(slots, keys.shape[2] - slots, style.window)
        out = masked_attention(rows.to(keys.dtype), keys, values, mask, scale, style)
        return out.to(q.dtype).transpose(0, 1).flatten(1, 2)[None]

    def _write(self, store: Storage, layer: int, new: Tensor) -> Tensor:
        """Store what is new, [1, Hkv, R·W, head]; return the layer's storage."""
        storage = self._storage(store, layer, new)
        by_token = storage.permute(0, 2, 3, 1, 4)  # [D, places, budget, Hkv, head]
        tokens = new[0].index_select(1, self._written).transpose(0, 1)
        by_token.index_put_(self._to, tokens.to(storage.dtype))
        return storage

    def _seen(self, of_documents: Tensor, of_own: Tensor) -> Tensor:
        """Gather what the branches read, their documents' part first: [R, Hkv, n, head]."""
        slots, budget = self._reads
        page = of_documents[:, :, :slots].index_select(0, self._document)
        own = of_own[:, :, :, :budget].transpose(1, 2)[self._document, self._place]
        return torch.cat([page, own.to(page.dtype)], dim=2)

    def _mask(self, slots: int, own: int, window: int | None) -> Tensor:
        """Say who sees whom, bool [R, 1, W, slots + own]; the same for all layers of a window."""
        kind = slots, own, window
        if kind not in self._masks:
            device = self._starts.device
            last = (self._starts[:, None] + self.offset)[:, :, None]  # of the own tokens, itself
            visible = self._visible[:, None, None]
            of_page, of_own = torch.arange(slots, device=device), torch.arange(own, device=device)
            parts = [(of_page < visible).expand(-1, self._width, -1), of_own <= last]
            if window is not None:
                position = visible + last
                parts[0] = parts[0] & (position - of_page < window)
                parts[1] = parts[1] & (last - of_own < window)
            self._masks[kind] = torch.cat(parts, dim=2)[:, None]
        return self._masks[kind]
