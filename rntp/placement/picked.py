"""What a policy picked: the same few numbers for every policy."""

from collections.abc import Sequence

import torch

from rntp.placement import Bands
from rntp.types import Page

HARD = 1.5  # nats of entropy (RPT, 2506.08007)


def picked(pages: Sequence[Page], bands: Bands) -> dict[str, float]:
    """Means over a step's positions; empty without any.

    placement/entropy, placement/nll: nats, of the no-think prediction at the position.
    placement/hard_frac: share with an entropy above 1.5 nats. placement/in_band_frac: share inside
    the config's bands. placement/depth: p / L.
    """
    entropy = torch.cat([torch.zeros(0), *(page.entropy_K for page in pages)])
    nll = torch.cat([torch.zeros(0), *(page.nll_K for page in pages)])
    if not len(entropy):
        return {}
    depth = torch.tensor([p / page.length for page in pages for p in page.positions])
    means = {
        "entropy": entropy,
        "nll": nll,
        "hard_frac": entropy > HARD,
        "in_band_frac": bands.hold(entropy, nll),
        "depth": depth,
    }
    return {f"placement/{name}": float(value.float().mean()) for name, value in means.items()}
