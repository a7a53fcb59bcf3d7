"""The tree attention's kernels as they are launched, for `rntp_kernels.aot`."""

from typing import Any

from rntp_kernels.aot import Variant
from rntp_kernels.tree_attention import triton_decode as decode
from rntp_kernels.tree_attention import triton_kernels as kernels
from rntp_kernels.tree_attention.triton_tree import TILES


def variants() -> dict[str, Variant]:
    """By name: forward, both halves of the backward, decoding; bfloat16, heads of 64 and 128."""
    found: dict[str, Variant] = {}
    for head, tiles in TILES.items():
        launches: dict[str, tuple[Any, Any, int, int]] = {
            "tree forward": (
                kernels.forward_kernel,
                tiles.forward,
                tiles.queries,
                tiles.forward.step,
            ),
            "tree query gradient": (
                kernels.query_gradient_kernel,
                tiles.query_gradient,
                tiles.queries,
                tiles.query_gradient.step,
            ),
            "tree key gradient": (
                kernels.key_gradient_kernel,
                tiles.key_gradient,
                tiles.key_gradient.step,
                tiles.keys,
            ),
        }
        for name, (kernel, launch, queries, keys) in launches.items():
            plain = {"WIDEN": False, "WINDOWED": False, "CAPPED": False}
            constants = {"HEAD": head, "QUERIES": queries, "KEYS": keys, **plain}
            found[f"{name}, head {head}"] = Variant(
                kernel, _types(kernel.arg_names, constants), constants, launch.warps, launch.stages
            )
        constants = {"HEAD": head, "KEYS": tiles.keys, "PART": 16}
        kernel = kernels.key_sum_kernel
        found[f"tree key sum, head {head}"] = Variant(
            kernel, _types(kernel.arg_names, constants), constants, 4
        )
        plain = {"WINDOWED": False, "CAPPED": False}
        sizes = {"HEAD": head, "ROWS": decode.ROWS, "KEYS": decode.KEYS, "WIDEN": False, **plain}
        found[f"decode prefix, head {head}"] = Variant(
            decode.prefix_kernel,
            _types(decode.prefix_kernel.arg_names, sizes),
            sizes,
            decode._WARPS,
            decode._STAGES,
        )
        sizes = {"HEAD": head, "OWN": decode.OWN, **plain, "SINKS": False}
        found[f"decode branch, head {head}"] = Variant(
            decode.branch_kernel, _types(decode.branch_kernel.arg_names, sizes), sizes, 1
        )
    return found


def _types(names: list[str], constants: dict[str, int]) -> dict[str, str]:
    """By what an argument is called."""
    tables = {"blocks_ptr", "seen_ptr", "pieces_ptr", "seers_ptr", "shared_ptr", "positions_ptr"}
    sums = {"lse_ptr", "delta_ptr", "share_ptr", "highest_ptr", "total_ptr", "part_ptr"}
    places = {"visible_ptr", "places_ptr", "lengths_ptr"}
    found = {}
    for name in names:
        if name in constants:
            continue
        if name in tables:
            found[name] = "*i32"
        elif name in places:
            found[name] = "*i64"
        elif name in sums:
            found[name] = "*fp32"
        elif name.endswith("_ptr"):
            found[name] = "*bf16"
        else:
            found[name] = "fp32" if name.endswith(("scale", "soft_cap")) else "i32"
    return found
