"""What the model expects of a context, from the forward that the sampler needs anyhow."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.thought_tree import ROOT, TokenTree
from rntp.types import Context


class LazyNextTokenStats:
    """The `NextTokenStats` of one context, computed when somebody looks: the head over a whole
    page costs more than a placement at random is worth.

    ids: int64 [L]. hidden: [L, H], of the trunk; row i predicts token i + 1.
    """

    def __init__(self, model: LanguageModel, ids: Tensor, hidden: Tensor) -> None:
        self._model = model
        self._ids = ids
        self._hidden = hidden

    @property
    def entropy_L(self) -> Tensor:
        """See `rntp.types.NextTokenStats`."""
        return self._whole[0]

    @property
    def nll_L(self) -> Tensor:
        """See `rntp.types.NextTokenStats`."""
        return self._whole[1]

    @property
    def hidden_LD(self) -> Tensor:
        """See `rntp.types.NextTokenStats`."""
        return self._hidden

    def at(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Entropy and loss of the predictions of some tokens, none of them the first; [K] each."""
        if "_whole" in vars(self):
            entropy, nll = self._whole
            return entropy[list(positions)], nll[list(positions)]
        return self._predictions(torch.tensor(positions, dtype=torch.int64))

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(1)  # no row predicts a context's first token
        entropy, nll = self._predictions(torch.arange(1, len(self._ids)))
        return torch.cat([nothing, entropy]), torch.cat([nothing, nll])

    def _predictions(self, of: Tensor) -> tuple[Tensor, Tensor]:
        tokens = of.to(self._hidden.device)
        rows = self._hidden.index_select(0, tokens - 1)
        logprob, entropy, _ = self._model.logprob(rows, self._ids.index_select(0, tokens))
        return entropy.cpu(), -logprob.cpu()


@torch.no_grad()
def read_contexts(model: LanguageModel, contexts: Sequence[Context]) -> list[LazyNextTokenStats]:
    """Read contexts in one forward, for a sampler that does not tell what the model expects."""
    tree = TokenTree.build([(c.token_ids, ROOT, 0) for c in contexts])
    parts = tree.hidden(model).split([len(c) for c in contexts])
    return [
        LazyNextTokenStats(model, c.token_ids.to(model.device), hidden)
        for c, hidden in zip(contexts, parts, strict=True)
    ]
