"""From the text of an outcome to the ids that stand in a thought."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

Encode = Callable[[str], Tensor]


def result_ids(
    text: str, encode: Encode, *, opening: int, closing: int, budget: int, special: Collection[int]
) -> Tensor:
    """Ids of `<result>text</result>`: int64 [n], 2 <= n <= budget + 2.

    encode: as of `rntp.model.tokenizer.encode`, which makes no marker of any text. budget: tokens
    of the text; what comes behind is cut. special: ids that no result may hold (markers, the end of
    a text); they are taken out by id before the cut, whatever text they came from.
    """
    ids = encode(text)
    forbidden = torch.tensor(sorted({*special, opening, closing}), dtype=torch.int64)
    ids = ids[~torch.isin(ids, forbidden)][:budget]
    ends = torch.tensor([opening, closing])
    return torch.cat([ends[:1], ids, ends[1:]])
