"""The specification: logits in full, plain autograd, any float type."""

from torch import Tensor

from rntp_kernels.linear_logprob.rows import Shaping, statistics

_PLAIN = Shaping()


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    shaping: Shaping = _PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `rntp_kernels.linear_logprob_top1`; inverse_temperature: float [N]."""
    kept = None if shaping.ignored is None else targets != shaping.ignored
    if kept is not None:
        targets = targets.where(kept, 0)
    logprob, entropy, _, top1 = statistics(hidden @ weight.T, targets, inverse_temperature, shaping)
    if kept is not None:
        logprob, entropy = logprob.where(kept, 0.0), entropy.where(kept, 0.0)
    return logprob, entropy, top1
