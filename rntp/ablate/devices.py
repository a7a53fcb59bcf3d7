"""Which GPU each run of a grid gets: its own while there are enough, else the least used one."""

from collections import Counter
from collections.abc import Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environ: Mapping[str, str], count: int) -> list[str]:
    """Name the GPUs that this process may use, as CUDA_VISIBLE_DEVICES does: indices or UUIDs.

    count: how many CUDA sees now. As CUDA does, what follows a name that is none is left out.
    """
    given = environ.get(VISIBLE)
    if given is None:
        return [str(n) for n in range(count)]
    names = [name.strip() for name in given.split(",")]
    return [name for name in names if name and name != "-1"][:count]


def least_used(gpus: Sequence[str], taken: Sequence[str | None]) -> str | None:
    """Pick the GPU that the fewest of the running runs have, the first of several; None if there
    is no GPU. taken: those of the running runs."""
    uses = Counter(taken)
    return min(gpus, key=lambda gpu: uses[gpu]) if gpus else None
