"""How well one number orders what another one tells apart."""

import torch
from torch import Tensor


def auc(score: Tensor, helps: Tensor) -> float | None:
    """Compute the chance that of two, one that helps and one that does not, the first has the
    higher score (area under the ROC curve); equal ones count half.

    score: float [N]; helps: bool [N]. None where all help, or none does.
    """
    yes, no = score[helps], score[~helps]
    if not len(yes) or not len(no):
        return None
    below = no.sort().values
    lower, lower_or_equal = (torch.searchsorted(below, yes, right=r) for r in (False, True))
    return float((lower + lower_or_equal).double().mean() / (2 * len(no)))
