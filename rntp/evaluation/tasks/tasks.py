"""Runs tasks of lm-evaluation-harness twice over the same requests: no think, and think."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel, cast_parameters
from rntp.model.opening import open_model
from rntp.run.trained import open_trained


def evaluate_tasks(
    target: Path,
    tasks: Sequence[str],
    *,
    step: int | None,
    limit: int | None,
    folder: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Scores of each task without and with a thought before the answer.

    target, step: as in `rntp eval`. limit: questions of a task; None takes all. folder: of task
    definitions beside the harness' own. Thoughts are those of the run's config, with
    `evaluation.thoughts_per_position` a question whose answers are given, and one before an answer
    that the model writes. Raises ConfigError without the extra `eval`, for unknown tasks, and for
    tasks of perplexities. A score is of the format as well as of the thinking: report it beside the
    format-only control.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError("tasks need lm-evaluation-harness: `pip install 'rntp[eval]'`") from error
    from rntp.evaluation.tasks.adapter import ThinkingLM

    manager = TaskManager(include_path=str(folder) if folder else None)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise ConfigError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists "
            "them, and --tasks-folder adds a folder of your own"
        )
    config, model = _open(target, step, say)
    found: dict[str, Any] = {}
    cut: dict[str, int] = {}
    for name, thoughts in (
        ("no_think", 0),
        ("think", config.evaluation.thoughts_per_position),
    ):
        say(f"tasks, {name.replace('_', ' ')}")
        thinking = ThinkingLM(model, config, thoughts)
        outcome = simple_evaluate(
            model=thinking,
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            log_samples=False,
        )
        assert outcome is not None
        found[name] = outcome["results"]
        cut[name] = thinking.cuts.cut
        if told := thinking.cuts.told(model.spec):
            say(told)
    return {
        "thoughts_per_question": config.evaluation.thoughts_per_position,
        "thought_tokens": config.thought.thought_tokens,
        "limit": limit,
        "prompts_cut": cut,
        "tasks": _side_by_side(found["no_think"], found["think"]),
    }


def _open(
    target: Path, step: int | None, say: Callable[[str], None]
) -> tuple[Config, LanguageModel]:
    if target.is_dir():
        config, model, _ = open_trained(target, step, say)
    else:
        config = Config.load(target)
        model = open_model(config)
    if config.reading.mixing:
        raise ConfigError(
            "--tasks: answers to tasks are written and ranked behind a thought alone, and this "
            "model reads on with reading.mixing; take a run without it"
        )
    cast_parameters(model.hf, getattr(torch, config.model.dtype))
    return config, model


def _side_by_side(no_think: dict[str, Any], think: dict[str, Any]) -> dict[str, Any]:
    """{task: {metric: {no_think, think, change, stderr of both}}} of the harness' results."""
    table: dict[str, Any] = {}
    for task, metrics in no_think.items():
        rows = {}
        for key, value in metrics.items():
            name, _, kind = key.partition(",")
            error = f"{name}_stderr,{kind}"
            # Metrics have their filter behind a comma; what has none is a fact of the task.
            if not kind or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            after = think[task][key]
            rows[name if kind == "none" else f"{name}, {kind}"] = {
                "no_think": value,
                "no_think_stderr": metrics.get(error),
                "think": after,
                "think_stderr": think[task].get(error),
                "change": after - value,
            }
        table[task] = rows
    return table
