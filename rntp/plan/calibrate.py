"""Measures what a machine's steps cost: `rntp plan --calibrate`."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rntp.config import Config
from rntp.plan.cases import Case, calibration_cases
from rntp.plan.measure import measure_all
from rntp.plan.rates import Rates, fit
from rntp.plan.work import Share, amounts
from rntp.runtime.provenance import device_name
from rntp.training.estimate import Shape, memory_parts

KEPT = "runs.json"


def calibrate(
    out: Path, *, dtype: str, device: str, ranks: int, say: Callable[[str], None]
) -> Rates:
    """Run the cases and fit costs to them. out: a file; what was measured lies beside it, and the
    same command goes on from there."""
    kept = out.with_suffix(f".{KEPT}")
    cases = calibration_cases(device, ranks)
    measured = measure_all(cases, kept, dtype=dtype, device=device, say=say)
    return calibrated(measured, device_name(device), device)


def calibrated(measured: Sequence[Mapping[str, Any]], machine: str, kind: str) -> Rates:
    """Fit costs, and the bytes of a process that has done nothing yet, to measured runs."""
    points, processes = [], []
    for found in measured:
        case = Case.of(found["case"])
        point, shape, config = points_of(case)
        points.append((point, found["seconds"]))
        parts = memory_parts(config, shape, case.ranks, kind=kind)
        processes.append(found["memory_gb"] * 1e9 - sum(parts.values()) + parts["process"])
    rates = fit(points, f"measured on {machine}", kind)
    return replace(rates, process_bytes=max(0.0, statistics.median(processes)))


def points_of(case: Case) -> tuple[dict[str, dict[str, float]], Shape, Config]:
    """Count what a step of a case takes, its model's shape and its config."""
    config = Config.parse(case.run(Path("unused"), "float32", "cpu"))
    with torch.device("meta"):
        shape = Shape.of(AutoModelForCausalLM.from_config(case.model()))
    return amounts(Share.of(config, case.ranks), shape), shape, config
