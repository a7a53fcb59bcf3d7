"""What this machine can run, and what is missing, without starting anything."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from rntp import __version__
from rntp.config import Config
from rntp.errors import ConfigError, RntpError
from rntp.model.sources import cache_folder
from rntp.rollout.vllm.environment import check_environment, find_environment

EXTRAS = {
    "demo": ("gguf", "accelerate"),
    "s3": ("s3fs",),
    "tools": ("tantivy", "pydantic_monty"),
    "prep": ("chardetng_py", "resiliparse"),
    "log": ("wandb",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "eval": ("lm_eval",),
}


def diagnose(config_path: Path | None) -> tuple[dict[str, object], list[str]]:
    """(facts by name, what is missing with its remedy)."""
    facts: dict[str, object] = {
        "rntp": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "bfloat16 in hardware": _has_bfloat16(),
        "model cache": str(cache_folder()),
        "free disk here, GB": shutil.disk_usage(Path.cwd()).free / 1e9,
    }
    missing = [
        f"extra `{extra}` ({', '.join(absent)}): pip install 'rntp[{extra}]'"
        for extra, modules in EXTRAS.items()
        if (absent := [m for m in modules if importlib.util.find_spec(m) is None])
    ]
    try:
        vllm = find_environment()
        facts["vLLM"] = f"{vllm.version} ({vllm.python})"
    except ConfigError as error:
        facts["vLLM"] = "absent"
        missing.append(f"vLLM, for rollout.engine: vllm: {error}")
    if config_path is not None:
        missing += _config_problems(Config.load(config_path))
    return facts, missing


def _config_problems(config: Config) -> list[str]:
    from rntp.data.corpus import open_data
    from rntp.model.sources import localize
    from rntp.rollout.store.probe import check_store
    from rntp.rollout.tool_calls import check_tools
    from rntp.run import folder as run_folder
    from rntp.run.mirrors import check_installed
    from rntp.training.preflight import check_names

    found = []
    for check in (
        lambda: check_names(config),
        lambda: check_installed(config),
        lambda: check_tools(config),
        lambda: check_environment(config),
        lambda: run_folder.check(config, "auto"),
        lambda: open_data(config),
        lambda: localize(config.model.spec),
        lambda: check_store(config.store),
    ):
        try:
            check()
        except RntpError as error:
            found.append(str(error))
    return found


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
