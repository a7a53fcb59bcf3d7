"""Compile the Triton kernels for a GPU that need not be here, and read what the compiler made.

    python -m rntp_kernels.linear_logprob.aot

prints registers, spills, shared memory and tensor-core instructions of each variant as JSON.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rntp_kernels.linear_logprob import triton_forward, triton_rows

HOPPER = GPUTarget("cuda", 90, 32)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def variants() -> dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Name -> kernel, types of its arguments, constants, compiler options."""
    found: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]] = {}
    options = {"num_warps": triton_forward.WARPS, "num_stages": triton_forward.STAGES}
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
    rows = {"BLOCK": triton_rows._BLOCK}
    for capped in (False, True):
        suffix = ", soft cap" if capped else ""
        constants = {"CAPPED": capped, "EVEN": True, "WIDEN": False, **triton_forward.TILE}
        found["forward" + suffix] = (triton_forward.forward_kernel, forward, constants, options)
        statistics = {
            "logits_ptr": "*bf16",
            "target_ptr": "*i64",
            **dict.fromkeys(("inverse_ptr", "logprob_ptr", "entropy_ptr", "lse_ptr"), "*fp32"),
            "top1_ptr": "*i64",
            **dict.fromkeys(("stride", "vocabulary"), "i32"),
            "soft_cap": "fp32",
        }
        gradient = {
            "logits_ptr": "*bf16",
            "target_ptr": "*i64",
            **dict.fromkeys(
                ("inverse_ptr", "entropy_ptr", "lse_ptr", "g_logprob_ptr", "g_entropy_ptr"), "*fp32"
            ),
            **dict.fromkeys(("stride", "vocabulary", "columns_of_all"), "i32"),
            "soft_cap": "fp32",
        }
        warps = {"num_warps": triton_rows._WARPS}
        constants = {"CAPPED": capped, **rows}
        found["statistics" + suffix] = (triton_rows.statistics_kernel, statistics, constants, warps)
        found["gradient" + suffix] = (triton_rows.gradient_kernel, gradient, constants, warps)
    return found


def compile_for(name: str, target: GPUTarget = HOPPER) -> dict[str, int]:
    """registers, stack (bytes spilled a thread), shared (bytes), tensor_core_instructions."""
    kernel, types, constants, options = variants()[name]
    signature = types | dict.fromkeys(constants, "constexpr")
    order = {argument: i for i, argument in enumerate(kernel.arg_names)}
    # As at run time: tensors start at 16 bytes, and strides are multiples of 16 elements.
    aligned = [a for a, kind in types.items() if kind.startswith("*") or a.endswith("stride")]
    source = ASTSource(
        kernel,
        signature={name: signature[name] for name in kernel.arg_names},
        constexprs=constants,
        attrs={(order[argument],): [["tt.divisibility", 16]] for argument in aligned},
    )
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(file))
        code = _tool("cuobjdump", "-sass", str(file))
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert used is not None, usage
    return {
        "registers": int(used[1]),
        "stack": int(used[2]),
        "shared": int(compiled.metadata.shared),
        "tensor_core_instructions": code.count("HGMMA"),
    }


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [_TOOLS / name, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout + done.stderr


def main() -> None:
    print(json.dumps({name: compile_for(name) for name in variants()}, indent=2))


if __name__ == "__main__":
    main()
