"""The tree attention's kernels as they are launched, for `rntp_kernels.aot`."""

from itertools import product
from typing import Any

from rntp_kernels.aot import Variant
from rntp_kernels.tree_attention import triton_decode as decode
from rntp_kernels.tree_attention import triton_kernels as kernels
from rntp_kernels.tree_attention.triton_tree import TILES

STYLED = ", windows and soft caps"


def variants() -> dict[str, Variant]:
    """List by name: forward, both halves of the backward, decoding; bfloat16, heads of 64 and 128;
    as they are, and with a window and a soft cap (decoding with sinks, too)."""
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
        for (name, (kernel, launch, queries, keys)), styled in product(
            launches.items(), (False, True)
        ):
            if name == "tree forward":
                launch = tiles.forward_of(styled)
                keys = launch.step
            flags = {"WIDEN": False, "WINDOWED": styled, "CAPPED": styled}
            constants = {"HEAD": head, "QUERIES": queries, "KEYS": keys, **flags}
            found[f"{name}{STYLED * styled}, head {head}"] = Variant(
                kernel, _types(kernel.arg_names, constants), constants, launch.warps, launch.stages
            )
        constants = {"HEAD": head, "KEYS": tiles.keys, "PART": 16}
        kernel = kernels.key_sum_kernel
        found[f"tree key sum, head {head}"] = Variant(
            kernel, _types(kernel.arg_names, constants), constants, 4
        )
        for styled in (False, True):
            flags = {"WINDOWED": styled, "CAPPED": styled}
            tile = {"HEAD": head, "ROWS": decode.ROWS, "KEYS": decode.KEYS, "WIDEN": False, **flags}
            found[f"decode prefix{STYLED * styled}, head {head}"] = Variant(
                decode.prefix_kernel,
                _types(decode.prefix_kernel.arg_names, tile),
                tile,
                decode._WARPS,
                decode._STAGES,
            )
            sizes = {"HEAD": head, "OWN": decode.OWN, **flags, "SINKS": styled}
            found[f"decode branch{STYLED * styled}, head {head}"] = Variant(
                decode.branch_kernel, _types(decode.branch_kernel.arg_names, sizes), sizes, 1
            )
    return found


def _types(names: list[str], constants: dict[str, int]) -> dict[str, str]:
    """Give arguments their types, by what they are called."""
    tables = {
        "blocks_ptr",
        "key_runs_ptr",
        "pieces_ptr",
        "query_runs_ptr",
        "shared_ptr",
        "positions_ptr",
    }
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
