"""What is checked before the first costly second."""

import importlib.util
import shutil
from typing import Any

import torch

from rntp import placement, rewards
from rntp.config import Config
from rntp.data.corpus import Corpus, open_data, open_heldout
from rntp.errors import CheckpointError, ConfigError, DataError
from rntp.model import LanguageModel
from rntp.model.routing import balancing_biases
from rntp.placement import Place
from rntp.placement.records import RECORDS
from rntp.rollout.tool_calls import check_tools
from rntp.rollout.vllm.environment import check_environment
from rntp.run import folder as run_folder
from rntp.run.mirrors import check_installed
from rntp.runtime.memory import size
from rntp.runtime.ranks import Ranks
from rntp.training.estimate import Tokens, checkpoint_bytes, record_bytes
from rntp.types import Known


def check_start(config: Config, resume: run_folder.Resume, ranks: Ranks) -> dict[str, Any]:
    """Check names, packages and run folder; what is set otherwise than at the last start.

    Raises ConfigError and CheckpointError, each with the remedy; creates nothing.
    """
    check_names(config)
    check_installed(config)
    check_tools(config)
    check_environment(config)
    ranks.decide(lambda: run_folder.check(config, resume), "start")
    return ranks.decide(lambda: run_folder.changes(config), "start")


def check_names(config: Config) -> None:
    """Raise ConfigError if the config names a scheme or policy that is not registered, or one that
    does not go with the rest of it.
    """
    for name in config.reward.names:
        _check_scheme(name, config)
    judged = any(rewards.NEEDS[name].judge for name in config.reward.names)
    if config.reward.judges.itself == "frozen" and not judged:
        raise ConfigError(
            "reward.judges.itself: frozen keeps a copy of the weights, and no scheme asks a judge; "
            "set it to policy, or name self_judge or judge_gold in reward.scheme or reward.shadows"
        )
    use = config.baseline.use
    others = [n for n in config.reward.weights if rewards.BASELINES[n] == "ignores"]
    # A floor is of each scheme on its own; the empty thought's reward is of their sum.
    all_others = len(others) == len(config.reward.weights)
    if (use == "clip" and all_others) or (use in ("group_member", "gate") and others):
        able = ", ".join(sorted(n for n in rewards.REGISTRY if rewards.BASELINES[n] != "ignores"))
        raise ConfigError(
            f"baseline.use: {use} takes 0 for the reward of an empty thought, and that of scheme "
            f"{others[0]} is not 0; set reward.scheme to one that subtracts the baseline ({able}), "
            "or baseline.use to subtract"
        )
    for name in (config.placement.policy, config.evaluation.placement):
        _ = placement.REGISTRY[name]
    if config.evaluation.placement in RECORDS:
        raise ConfigError(
            f"evaluation.placement: {config.evaluation.placement} follows the rewards of a "
            "training run, so two evaluations would be of different positions; set it to random "
            "or entropy"
        )


def _check_scheme(name: str, config: Config) -> None:
    """Raise ConfigError if there is no such scheme, or if the run lacks what it needs."""
    _ = rewards.REGISTRY[name]
    needs = rewards.NEEDS[name]
    if rewards.BASELINES[name] == "needs" and config.baseline.weights == "none":
        raise ConfigError(
            f"reward scheme {name} is made of the prediction without a thought, and "
            "baseline.weights is none; set baseline.weights to current"
        )
    if needs.answers and config.thought.answer_tokens == 0:
        raise ConfigError(
            f"reward scheme {name} grades an answer, and thought.answer_tokens is 0, so none is "
            f"written; set thought.answer_tokens to 1 or more, or take {name} out of reward.scheme "
            "and reward.shadows"
        )
    if needs.tasks and not config.data.has_tasks:
        raise ConfigError(
            f"reward scheme {name} is of tasks, and data.source names none: write "
            f"task:FILE.jsonl there, or take {name} out of reward.scheme and reward.shadows"
        )
    apart = config.reading.piece is not None or config.placement.interleaved
    if needs.lost_span and (config.reading.window is None or apart or config.data.has_tasks):
        raise ConfigError(
            f"reward scheme {name} reads again what a reading window has lost of a page, and here "
            "nothing is, or not of one page that a thought has seen whole; set reading.window, "
            "leave reading.piece and placement.interleaved as they are by default, train on pages "
            f"alone, or take {name} out of reward.scheme and reward.shadows"
        )
    if needs.outside and not config.reward.judges.use:
        raise ConfigError(
            f"reward scheme {name} asks judges, and reward.judges.use names none; name one, "
            "{local: {url: http://127.0.0.1:8080/v1, model: NAME}}, or take self_judge or "
            "judge_gold"
        )
    if needs.outside and config.objective.advantage == "step" and name in config.reward.weights:
        raise ConfigError(
            f"reward scheme {name} may lack verdicts, and objective.advantage: step compares all "
            "thoughts of a step; set it to leave_one_out or group_mean"
        )
    if needs.package and importlib.util.find_spec(needs.package) is None:
        raise ConfigError(
            f"reward scheme {name} needs the package {needs.package}, which is not installed; "
            f"install the extra `text` (pip install 'rntp[text]'), or take {name} out of "
            "reward.scheme and reward.shadows"
        )


def missing_data(config: Config) -> list[str]:
    """Why `data.source` and `evaluation.source` cannot be opened, for a dry run: sizes do not need
    the data, the run does.
    """
    found: list[str] = []
    try:
        open_data(config)
    except DataError as error:
        found.append(str(error))
    if config.evaluation.enabled and config.evaluation.source is not None:
        try:
            open_heldout(config)
        except DataError as error:
            found.append(str(error))
    return found


def check_placement(place: Place, corpus: Corpus) -> None:
    """Raise DataError if a policy wants labels and the corpus has none: place once, for nothing."""
    context = corpus.train[0]
    place(context, Known(torch.zeros(len(context)), torch.zeros(len(context))))


def check_disk(config: Config, num_parameters: int) -> None:
    """Raise CheckpointError unless one checkpoint more than is kept fits, and all thoughts."""
    checkpoints = checkpoint_bytes(config, num_parameters) * (config.checkpoint.keep + 1)
    there = sum(path.stat().st_size for path in (config.run.dir / "rollouts").glob("step_*"))
    thoughts = max(0, record_bytes(config) - there)
    needed = checkpoints + thoughts
    here = config.run.dir
    while not here.exists():
        here = here.parent
    free = shutil.disk_usage(here).free
    if free < needed:
        raise CheckpointError(
            f"checkpoints need {size(checkpoints)} at {config.run.dir}, and the thoughts of all "
            f"steps up to {size(thoughts)}; {size(free)} are free. Lower checkpoint.keep, set "
            "log.rollouts_per_step to a few hundred, or choose another folder with --run-dir"
        )


def sharing_notes(config: Config, model: LanguageModel) -> list[str]:
    """Tell of a model that shares nothing: that it does, why, how and what that costs; and of a
    mixture of experts, what training leaves as it is."""
    notes = []
    if model.plain is not None:
        tokens = Tokens.of(config)
        notes.append(
            f"model.sharing: none, because {model.plain.why}; {model.plain.describe()}: a step of "
            f"full length computes about {tokens.plain:.0f} tokens, where a tree has {tokens.tree} "
            f"({tokens.plain / tokens.tree:.1f} times as many)"
        )
    if biases := balancing_biases(model.hf):
        notes.append(
            f"{len(biases)} balancing biases of routers ({biases[0]}, …) are not trained: no "
            "gradient reaches them; objective.router_weight balances instead"
        )
    return notes
