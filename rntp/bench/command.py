"""What `rntp bench` does: load, measure, print, keep the JSON."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

import torch

from rntp.bench.run import run
from rntp.bench.sizes import CURVE, NAMED, NAMES, Sizes, command_line
from rntp.errors import ConfigError
from rntp.model import load_model, pick_device
from rntp.runtime.files import write_json
from rntp.runtime.memory import peak_bytes
from rntp.show import columns


def bench(arguments: argparse.Namespace) -> None:
    """Run one bench, or all. Raises ConfigError for sizes or a model that cannot be."""
    given = {size: getattr(arguments, size) for size in Sizes().as_dict()}
    sizes = replace(NAMED[arguments.size], **{k: v for k, v in given.items() if v is not None})
    check(sizes, arguments.repeats, arguments.warm_up)
    if not 0 <= arguments.continuation_weight < math.inf:
        weight = arguments.continuation_weight
        raise ConfigError(f"--continuation-weight must be 0 or more, not {weight}")
    device = pick_device(arguments.device)
    span = sizes.context + sizes.budget + sizes.horizon + 2
    model = load_model(arguments.model, device=device, span=span, sharing="tree")
    if model.max_span < span:
        raise ConfigError(f"{arguments.model} sees {model.max_span} tokens; lower --context")
    names = list(NAMES) if arguments.name == "all" else [arguments.name]
    results = []
    for name in names:
        _say(f"{name}: checking that all compute the same")
        curve = CURVE if arguments.curve and name == "step" else None
        dtype = getattr(torch, arguments.dtype)
        with stdout_is_stderr():
            result = run(
                name,
                model,
                sizes,
                dtype=dtype,
                repeats=arguments.repeats,
                warm_up=arguments.warm_up,
                curve=curve,
                continuation_weight=arguments.continuation_weight,
                say=_say,
                chosen=arguments.peers,
            )
        result["command"] = command_line(sys.argv)
        result["peak_gb"] = peak_bytes() / 1e9
        results.append(result)
        if not arguments.json:
            print(table(result), end="\n\n")
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            also = "_continuation" if arguments.continuation_weight else ""
            write_json(arguments.out / f"{name}{also}.json", result)
    if arguments.json:
        print(json.dumps(results, indent=2))


@contextmanager
def stdout_is_stderr() -> Iterator[None]:
    """Send what others print, from Python or below it, to standard error: what stands on standard
    output is the result alone."""
    sys.stdout.flush()
    with redirect_stdout(sys.stderr):
        try:
            kept = os.dup(1)
        except OSError:  # closed
            yield
            return
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def check(sizes: Sizes, repeats: int, warm_up: int = 1) -> None:
    """Raises ConfigError with the remedy."""
    for size, value in sizes.as_dict().items():
        if size == "window":
            if value != -1 and not 0 <= value < sizes.context - sizes.horizon - sizes.positions:
                raise ConfigError(
                    f"--window {value}: it is 0 or more and leaves room for positions in a context "
                    f"of {sizes.context}, or -1 for the whole context"
                )
        elif value < 1:
            raise ConfigError(f"--{size} must be at least 1, not {value}")
    if repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, not {repeats}")
    if warm_up < 0:
        raise ConfigError(f"--warm-up must be 0 or more, not {warm_up}")
    if sizes.thoughts < 2:
        raise ConfigError("--thoughts must be at least 2: a group of one has no advantage")
    if sizes.context <= sizes.horizon + sizes.positions:
        raise ConfigError(
            f"--context {sizes.context} has no room for {sizes.positions} positions with "
            f"{sizes.horizon} tokens after each; raise it or lower --horizon"
        )


def table(result: dict[str, Any]) -> str:
    """Lay out for people: providers, what was checked, the machine."""
    rows = [["provider", "median", "spread", "times rntp", "memory", "differs by", "rounding"]]
    for name, found in result["providers"].items():
        rows.append(
            [
                name,
                f"{found['median_s']:.3g} s",
                f"{found['spread']:.0%}",
                f"{found['times_rntp']:.2f}",
                f"{found['peak_gb']:.2f} GB",
                "reference" if name == result["reference"] else _gap(result["agreement"], name),
                _gap(result["rounding"], name),
            ]
        )
    sizes = ", ".join(f"{size} {value}" for size, value in result["sizes"].items())
    load = result["load_average"]
    lines = [
        f"{result['bench']}: {result['model']}, {result['dtype']}, {sizes}, continuation_weight "
        f"{result['continuation_weight']}",
        columns(rows),
        "  ".join(f"{name} {_number(value)}" for name, value in result["facts"].items()),
        f"{result['threads']} threads, matmul {result['matmul_gflops']:.0f} GFLOP/s, load average "
        f"{_load(load['before'])} before, {_load(load['after'])} after",
    ]
    if result["agreement"]:
        lines.insert(2, "differs by: relative, in float32, before anything is timed")
    if result["rounding"]:
        lines.insert(3, f"rounding: of the gradients, {result['dtype']} against float32")
    if "share_of_matmul_rate" in result:
        lines.append(f"matrix products of the step: {result['share_of_matmul_rate']:.0%} of that")
    lines += [f"not measured: {name}: {why}" for name, why in result["skipped"].items()]
    for size, points in result.get("curve", {}).items():
        lines.append("")
        heads = [size, "seconds", "predicted", "ratio"]
        lines.append(columns([heads, *(_point(size, point) for point in points)]))
    return "\n".join(lines)


def _point(size: str, point: dict[str, float]) -> list[str]:
    ratio = point["median_s"] / point["predicted_s"]
    return [
        str(point[size]),
        f"{point['median_s']:.3g}",
        f"{point['predicted_s']:.3g}",
        f"{ratio:.2f}",
    ]


def _gap(gaps: dict[str, float], name: str) -> str:
    return f"{gaps[name]:.1e}" if name in gaps else "–"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else re.sub(r"\.?0+$", "", f"{value:.2f}")


def _load(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
