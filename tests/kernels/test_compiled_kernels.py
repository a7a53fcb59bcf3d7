"""All Triton kernels as compiled for sm_90, without a GPU: no spills, and tensor cores where due.

The compiler runs in another process, because this one has chosen the interpreter (conftest.py).
"""

import itertools
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="triton has no wheel for this platform")


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "rntp_kernels.aot"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_is_there(compiled: dict[str, dict[str, int]]) -> None:
    assert set(compiled) == {
        *(f"{name}{cap}" for name in ("forward", "statistics", "gradient") for cap in CAPS),
        *(f"tree {name}, head {head}" for name in TREE for head in (64, 128)),
        *(f"tree {name}{STYLED}, head {head}" for name in TREE[:3] for head in (64, 128)),
        *(
            f"decode {name}{styled}, head {head}"
            for name in ("prefix", "branch")
            for styled in ("", STYLED)
            for head in (64, 128)
        ),
        "sampling, blocks",
        "sampling, token",
    }


def test_no_kernel_spills_and_all_fit_into_shared_memory(
    compiled: dict[str, dict[str, int]],
) -> None:
    for name, made in compiled.items():
        assert made["stack"] == 0, f"{name} spills"
        assert made["shared"] <= 227 * 1024, name


def test_products_run_on_tensor_cores(compiled: dict[str, dict[str, int]]) -> None:
    products = {"forward", "forward, soft cap"}
    for styled, head in itertools.product(("", STYLED), (64, 128)):
        products.add(f"decode prefix{styled}, head {head}")
        products |= {f"tree {name}{styled}, head {head}" for name in TREE[:3]}
    for name, made in compiled.items():
        assert (made["tensor_core_instructions"] > 0) == (name in products), name


def test_loads_overlap_with_products(compiled: dict[str, dict[str, int]]) -> None:
    # Four stages of two tiles of 128 × 64 numbers of two bytes.
    assert compiled["forward"]["shared"] == 4 * 2 * 128 * 64 * 2
    # More than the queries' tile and one of keys and values: the next ones are on their way.
    for head, keys in ((64, 128), (128, 64)):
        one = (64 + 2 * keys) * head * 2
        assert compiled[f"tree forward, head {head}"]["shared"] >= one + 2 * keys * head * 2


CAPS = ("", ", soft cap")
STYLED = ", windows and soft caps"
TREE = ("forward", "query gradient", "key gradient", "key sum")
