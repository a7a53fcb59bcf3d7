"""The sampling kernels as they are launched, for `rntp_kernels.aot`."""

from rntp_kernels.aot import Variant
from rntp_kernels.sampling import triton_sampling as kernels


def variants() -> dict[str, Variant]:
    """List the kernels by name, for float32 logits of a vocabulary of 151,936."""
    sizes = {**dict.fromkeys(("stride", "vocabulary", "parts"), "i32"), "inverse": "fp32"}
    statistics = dict.fromkeys(("highest_ptr", "total_ptr"), "*fp32")
    block = {"logits_ptr": "*fp32", **statistics, **sizes}
    token = {
        **block,
        "uniform_ptr": "*fp64",
        "token_ptr": "*i64",
        "logprob_ptr": "*fp32",
    }
    one = {"BLOCK": kernels.BLOCK}
    return {
        "sampling, blocks": Variant(kernels.block_kernel, block, one, kernels._WARPS),
        "sampling, token": Variant(
            kernels.token_kernel, token, {**one, "PARTS": 256}, kernels._WARPS
        ),
    }
