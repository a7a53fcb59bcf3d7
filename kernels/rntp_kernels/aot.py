"""Compile Triton kernels for a GPU that need not be here, and read what the compiler made.

    python -m rntp_kernels.aot

prints registers, spills, shared memory and tensor-core instructions of each variant as JSON.
"""

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Variant:
    """A kernel as it is launched. types: of its arguments, as Triton writes them ("*bf16", "i32").
    constants: its constexpr arguments."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def compile_for(variant: Variant, target: GPUTarget = HOPPER) -> dict[str, int]:
    """Compile a kernel, and count registers, stack (bytes spilled a thread), shared (bytes) and
    tensor_core_instructions."""
    kernel, types = variant.kernel, variant.types
    signature = types | dict.fromkeys(variant.constants, "constexpr")
    order = {argument: i for i, argument in enumerate(kernel.arg_names)}
    # As at run time: tensors start at 16 bytes, and strides are multiples of 16 elements.
    aligned = [a for a, kind in types.items() if kind.startswith("*") or a.endswith("stride")]
    source = ASTSource(
        kernel,
        signature={name: signature[name] for name in kernel.arg_names},
        constexprs=variant.constants,
        attrs={(order[argument],): [["tt.divisibility", 16]] for argument in aligned},
    )
    compiled = triton.compile(source, target=target, options=variant.options)
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


def variants() -> dict[str, Variant]:
    """List all kernels by name."""
    from rntp_kernels.linear_logprob import aot as head
    from rntp_kernels.sampling import aot as sampling
    from rntp_kernels.tree_attention import aot as tree

    return {**head.variants(), **tree.variants(), **sampling.variants()}


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [_TOOLS / name, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout + done.stderr


def main() -> None:
    print(json.dumps({name: compile_for(v) for name, v in variants().items()}, indent=2))


if __name__ == "__main__":
    main()
