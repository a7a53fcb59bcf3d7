"""Is everything right on this GPU, and how fast is it? One command, eight minutes at most.

    python kernels/benchmarks/gpu_check.py --out build/gpu_check.json

Correctness comes first and alone decides the exit code: 0 right, 1 wrong, 2 there is no GPU. Every
stage has a time budget; the results are written after each, so that a crash loses none of them.
`--device cpu --tiny` runs all of it at toy sizes, to try the script itself. Runs from a checkout
that is not installed, with torch and transformers there.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from gpu_stages.runner import Results, Stage, passed, run_stages  # noqa: E402
from gpu_stages.setting import Setting  # noqa: E402

from rntp.runtime.files import write_json  # noqa: E402
from rntp.runtime.provenance import environment  # noqa: E402

STAGES = (
    Stage("head is right", "gpu_stages.correct_kernels:head", 90, True),
    Stage("tree attention is right", "gpu_stages.correct_kernels:tree", 150, True),
    Stage("sampling is right", "gpu_stages.correct_kernels:sampling", 40, True),
    Stage("decoding is right", "gpu_stages.correct_runs:decode", 90, True),
    Stage("a step is right", "gpu_stages.correct_runs:step", 90, True),
    Stage("ceilings", "gpu_stages.speed_kernels:ceilings", 30, False),
    Stage("head", "gpu_stages.speed_kernels:head", 120, False),
    Stage("sampling", "gpu_stages.speed_kernels:sampling", 30, False),
    Stage("trunk", "gpu_stages.speed_runs:trunk", 60, False),
    Stage("decode", "gpu_stages.speed_runs:decode", 90, False),
    Stage("step", "gpu_stages.speed_runs:step", 110, False),
    Stage("attention", "gpu_stages.speed_kernels:attention", 120, False),
)


def main(arguments: list[str]) -> int:
    """Run the stages and return the exit code."""
    options = _parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device; try the script with --device cpu --tiny")
        return 2
    stages = [stage for stage in STAGES if not options.only or stage.name in options.only]
    facts = _facts(options.device, arguments)

    def keep(results: Results) -> None:
        write_json(options.out, {**facts, "passed": passed(results), "stages": results})

    options.out.parent.mkdir(parents=True, exist_ok=True)
    setting = Setting(options.device, options.tiny)
    results = run_stages(stages, setting, total_s=options.seconds, keep=keep, say=_say)
    right = passed(results)
    print(f"gpu-check: {'all is right' if right else 'SOMETHING IS WRONG'}; {options.out}")
    return 0 if right else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/gpu_check.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--seconds", type=float, default=460, help="for all stages together")
    parser.add_argument(
        "--only", nargs="*", choices=[stage.name for stage in STAGES], help="these stages alone"
    )
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny: the sizes are those of a GPU")
    return options


def _facts(device: str, arguments: list[str]) -> dict[str, Any]:
    found = environment(device)
    found["command"] = " ".join(["gpu_check.py", *arguments])
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["memory, GB"] = properties.total_memory / 1e9
        found["multiprocessors"] = properties.multi_processor_count
        found["cuda"] = torch.version.cuda
    return found


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
