"""Reads run folders for the report: everything that it shows, with secrets cut out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rntp.config.files import parse_yaml
from rntp.errors import ConfigError
from rntp.report.explorer import MAX_ROWS, StepSample, read_sample, redact_samples
from rntp.report.numbers import clip
from rntp.run.log import numbered_files, read_manifest, read_metrics, read_rollouts
from rntp.run.rollout_files import rollout_files
from rntp.runtime.provenance import redact, secret_values

_MAX_LABEL_CHARS = 200


@dataclass(frozen=True, slots=True)
class RunData:
    """One run folder. What the run has not written yet is empty.

    evaluations: by step. thoughts: the rows of the first and of the last step that wrote some.
    sample: some thoughts of many steps.
    """

    label: str
    config_text: str
    config: dict
    manifest: dict
    metrics: list[dict]
    evaluations: list[dict]
    thoughts: list[tuple[int, list[dict]]]
    sample: list[StepSample]

    @property
    def before(self) -> dict | None:
        """The evaluation of the untrained model."""
        first = self.evaluations[0] if self.evaluations else None
        return first if first is not None and first["step"] == 0 else None

    @property
    def after(self) -> dict | None:
        """The evaluation of the most trained model."""
        last = self.evaluations[-1] if self.evaluations else None
        return last if last is not None and last["step"] > 0 else None


def load_runs(run_dirs: Sequence[Path]) -> list[RunData]:
    """Read the folders. Raises ConfigError that names what a folder lacks, or a damaged file."""
    if not run_dirs:
        raise ConfigError("a report needs at least one run folder")
    for run_dir in run_dirs:
        _check(run_dir)
    configs = [_read_config(run_dir) for run_dir in run_dirs]
    names = [str(_section(config, "run").get("name", "")) for _, config in configs]
    labels = [
        name if name and names.count(name) == 1 else f"{name} ({run_dir})"
        for name, run_dir in zip(names, run_dirs, strict=True)
    ]
    return [
        _load(run_dir, label, text, config, MAX_ROWS // len(run_dirs))
        for run_dir, label, (text, config) in zip(run_dirs, labels, configs, strict=True)
    ]


def _check(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is no run folder: there is no such folder")
    missing = [name for name in ("config.yaml", "manifest.json") if not (run_dir / name).is_file()]
    if missing:
        raise ConfigError(
            f"{run_dir} is no run folder: it has no {' and no '.join(missing)}, "
            "which `rntp train` writes when it starts"
        )


def _read_config(run_dir: Path) -> tuple[str, dict]:
    path = run_dir / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML ({error})") from error
    config = parse_yaml(text, str(path))
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no sections")
    return text, config


def _load(run_dir: Path, label: str, config_text: str, config: dict, most_thoughts: int) -> RunData:
    steps = list(rollout_files(run_dir))
    shown = sorted({steps[0], steps[-1]}) if steps else []
    secrets = secret_values()
    return RunData(
        label=clip(redact(label, secrets), _MAX_LABEL_CHARS),
        config_text=redact(config_text, secrets),
        config=redact(config, secrets),
        manifest=redact(read_manifest(run_dir), secrets),
        metrics=redact(read_metrics(run_dir), secrets),
        evaluations=redact(
            [_read_evaluation(path) for _, path in numbered_files(run_dir / "eval", "json")],
            secrets,
        ),
        thoughts=[(step, redact(read_rollouts(run_dir, step), secrets)) for step in shown],
        sample=redact_samples(read_sample(run_dir, most_thoughts), secrets),
    )


def _read_evaluation(path: Path) -> dict:
    try:
        evaluation = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from error
    if not isinstance(evaluation, dict) or "step" not in evaluation:
        raise ConfigError(f"{path} is no evaluation: it has no `step`")
    return evaluation


def _section(config: dict, name: str) -> dict:
    section = config.get(name)
    return section if isinstance(section, dict) else {}
