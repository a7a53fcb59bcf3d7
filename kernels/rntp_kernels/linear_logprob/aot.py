"""The head's kernels as they are launched, for `rntp_kernels.aot`."""

from rntp_kernels.aot import Variant
from rntp_kernels.linear_logprob import triton_forward, triton_rows


def variants() -> dict[str, Variant]:
    """List the kernels by name, with and without soft cap, for bfloat16 operands."""
    found: dict[str, Variant] = {}
    floats = ("inverse_ptr", "highest_ptr", "total_ptr", "weighted_ptr", "own_ptr")
    forward = {
        **dict.fromkeys(("hidden_ptr", "weight_ptr"), "*bf16"),
        "target_ptr": "*i64",
        **dict.fromkeys(floats, "*fp32"),
        "chosen_ptr": "*i32",
        **dict.fromkeys(("num_rows", "width", "vocabulary", "share"), "i32"),
        **dict.fromkeys(("hidden_stride", "weight_stride"), "i32"),
        "soft_cap": "fp32",
    }
    statistics = {
        "logits_ptr": "*fp32",
        "target_ptr": "*i64",
        **dict.fromkeys(("inverse_ptr", "logprob_ptr", "entropy_ptr", "lse_ptr"), "*fp32"),
        "top1_ptr": "*i64",
        **dict.fromkeys(("stride", "vocabulary"), "i32"),
        "soft_cap": "fp32",
    }
    gradient = {
        "logits_ptr": "*fp32",
        "gradient_ptr": "*bf16",
        "target_ptr": "*i64",
        **dict.fromkeys(
            ("inverse_ptr", "entropy_ptr", "lse_ptr", "g_logprob_ptr", "g_entropy_ptr"), "*fp32"
        ),
        **dict.fromkeys(("stride", "vocabulary", "columns_of_all"), "i32"),
        "soft_cap": "fp32",
    }
    for capped in (False, True):
        suffix = ", soft cap" if capped else ""
        found["forward" + suffix] = Variant(
            triton_forward.forward_kernel,
            forward,
            {"CAPPED": capped, "EVEN": True, "WIDEN": False, **triton_forward.TILE},
            triton_forward.WARPS,
            triton_forward.STAGES,
        )
        rows = {"CAPPED": capped, "BLOCK": triton_rows._BLOCK}
        found["statistics" + suffix] = Variant(
            triton_rows.statistics_kernel, statistics, rows, triton_rows._WARPS
        )
        found["gradient" + suffix] = Variant(
            triton_rows.gradient_kernel, gradient, rows, triton_rows._WARPS
        )
    return found
