"""Averages of the weights of checkpoints: model soups (2203.05482).

uniform: all ingredients. greedy: in the order of their own held-out loss with thinking, each is
kept if the average with it is no worse. Choosing looks at held-out pages, so greedy chooses on
every second of them and the table is of the others.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rntp import __version__
from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.errors import CheckpointError, ConfigError, DataError
from rntp.evaluation import compare, evaluate
from rntp.model import cast_parameters
from rntp.model.opening import open_model
from rntp.run import checkpoint
from rntp.run import folder as run_folder
from rntp.run.export import write_folder
from rntp.run.trained import take_weights
from rntp.types import Context

Say = Callable[[str], None]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A committed checkpoint, the config of its run, and its facts (`checkpoint.load_state`)."""

    path: Path
    config: Config
    state: dict[str, Any]

    @property
    def weights(self) -> Weights:
        return checkpoint.load(self.path, "weights")

    @property
    def shapes(self) -> dict[str, list[int]]:
        """By name of the tensor."""
        return checkpoint.shapes(self.path, "weights")


def soup(targets: Sequence[Path], out: Path, *, greedy: bool, say: Say) -> dict[str, Any]:
    """Average, measure beside the ingredients and the start, and write a Hugging Face folder.

    targets: run folders (their newest whole checkpoint) or checkpoints. Returns what `soup.json`
    in `out` holds: the method, the ingredients and which were used, and one row each for the
    start, every ingredient and the soup. Raises ConfigError, DataError or CheckpointError before
    anything is computed if they do not go together.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose another folder or remove it")
    ingredients = [open_source(target, say) for target in targets]
    check_alike(ingredients, say)
    kitchen = _Evaluator(ingredients[0].config)
    held_out = kitchen.contexts
    if greedy and len(held_out) < 2:
        raise ConfigError("a greedy soup needs two held-out documents; raise evaluation.docs")
    contexts = held_out[1::2] if greedy else held_out
    results = {"start": kitchen.measure(None, contexts)}  # before other weights take its place
    used = list(range(len(ingredients)))
    if greedy:
        used = _choose(ingredients, kitchen, held_out[::2], say)
    mixed = average(ingredients[n].weights for n in used)

    for ingredient in ingredients:
        results[str(ingredient.path)] = kitchen.measure(ingredient.weights, contexts)
    results["soup"] = kitchen.measure(mixed, contexts)
    facts = {
        "rntp": __version__,
        "method": "greedy" if greedy else "uniform",
        "num_docs": len(contexts),
        "data_digest": ingredients[0].state["data_digest"],
        "ingredients": [
            {
                "path": str(ingredient.path),
                "step": ingredient.state["step"],
                "config_digest": ingredient.state["config_digest"],
                "used": n in used,
            }
            for n, ingredient in enumerate(ingredients)
        ],
        "rows": _rows(results, kitchen.config.run.seed),
    }
    model = open_model(kitchen.config)
    take_weights(model, mixed)
    card, found = _card(kitchen.config, facts), json.dumps(facts, indent=2) + "\n"
    write_folder(model, out, {"README.md": card, "soup.json": found})
    return facts


def average(ingredients: Iterable[Weights]) -> Weights:
    """The mean of each tensor, summed in float64 and given back in the type it came in."""
    total: Weights = {}
    types: dict[str, torch.dtype] = {}
    count = 0
    for weights in ingredients:
        count += 1
        for name, tensor in weights.items():
            types.setdefault(name, tensor.dtype)
            total[name] = tensor.double() + total[name] if name in total else tensor.double()
    return {name: (tensor / count).to(types[name]) for name, tensor in total.items()}


def open_source(target: Path, say: Say) -> Source:
    """A run folder's newest whole checkpoint, or the checkpoint itself; its hashes are checked."""
    if (target / checkpoint.COMMIT).is_file():
        folder, path = target.resolve().parent.parent, target
        if wrong := checkpoint.problems(path):
            raise CheckpointError(f"{path} is damaged: {'; '.join(wrong)}")
    elif (target / run_folder.CONFIG).is_file():
        folder, path = target, checkpoint.choose(target / "checkpoints", None, say)
    else:
        raise ConfigError(
            f"{target} is neither a run folder nor a checkpoint; name RUN_DIR or "
            "RUN_DIR/checkpoints/step_00000010"
        )
    return Source(path, run_folder.load_config(folder), checkpoint.load_state(path))


def check_alike(ingredients: Sequence[Source], say: Say) -> None:
    """Refuse what cannot be averaged, or not be measured on the same held-out pages."""
    if len(ingredients) < 2:
        raise ConfigError("a soup takes two checkpoints or more; name another run or checkpoint")
    first = ingredients[0]
    shapes, seen = first.shapes, {first.path.resolve()}
    for other in ingredients[1:]:
        if other.path.resolve() in seen:
            raise ConfigError(f"{other.path} is named twice; name each ingredient once")
        seen.add(other.path.resolve())
        if other.shapes != shapes:
            raise ConfigError(
                f"{other.path} has another architecture than {first.path}: "
                f"{_difference(shapes, other.shapes)}; average checkpoints of one base model"
            )
        mine, theirs = first.config.model, other.config.model
        if first.state["tokenizer_digest"] != other.state["tokenizer_digest"] or (
            (mine.think_open, mine.think_close) != (theirs.think_open, theirs.think_close)
        ):
            raise ConfigError(
                f"{other.path} has another tokenizer or other think markers than {first.path}, so "
                "the rows of its embeddings mean other tokens; average runs of one tokenizer"
            )
        if first.state["data_digest"] != other.state["data_digest"] or (
            first.config.data.heldout_fraction != other.config.data.heldout_fraction
        ):
            raise DataError(
                f"{other.path} was trained on another corpus, or with another "
                f"data.heldout_fraction, than {first.path}, so it may have read the held-out pages "
                "of the table; average runs of one corpus and one split"
            )
        if mine.spec != theirs.spec:
            say(
                f"warning: {other.path} starts from {theirs.spec} and {first.path} from "
                f"{mine.spec}; weights that share no start seldom average to anything"
            )


class _Evaluator:
    """One model in the compute type, whose weights are exchanged to measure each."""

    def __init__(self, config: Config) -> None:
        if not config.evaluation.enabled:
            raise ConfigError(
                "the first ingredient's run has evaluation.docs 0, so no pages are held "
                "out; begin with a run that has"
            )
        plain = config.evaluation.model_copy(update={"controls": (), "decile_model": ""})
        self.config = config.model_copy(update={"evaluation": plain})
        self.model = open_model(config)
        manifest = open_data(config)
        corpus = open_corpus(config, manifest, self.model.tokenizer)
        self.contexts = corpus.heldout_contexts(config.evaluation.heldout_docs)
        cast_parameters(self.model.hf, getattr(torch, config.model.dtype))

    def measure(self, weights: Weights | None, contexts: Sequence[Context]) -> dict[str, Any]:
        """An evaluation with these weights; None leaves those that are there."""
        if weights is not None:
            take_weights(self.model, weights)
        return evaluate(self.model, contexts, self.config)


def _choose(
    ingredients: Sequence[Source], kitchen: _Evaluator, contexts: Sequence[Context], say: Say
) -> list[int]:
    """Numbers of the ingredients that a greedy soup keeps, in order of their own loss."""

    def loss(numbers: Sequence[int]) -> float:
        weights = average(ingredients[n].weights for n in numbers)
        return float(kitchen.measure(weights, contexts)["nll/think"])

    own = [loss([n]) for n in range(len(ingredients))]
    order = sorted(range(len(own)), key=lambda n: own[n])
    kept, best = order[:1], own[order[0]]
    for n in order[1:]:
        found = loss([*kept, n])
        verdict = "kept" if found <= best else "left out"
        say(f"{ingredients[n].path}: {best:.4f} → {found:.4f} nats with it, {verdict}")
        if found <= best:
            kept, best = [*kept, n], found
    return kept


def _rows(results: dict[str, dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The cells of each, and what the soup's loss with thinking is less than its, with interval."""
    rows = []
    for name, result in results.items():
        change = compare(result, results["soup"], seed)["nll/think"]
        rows.append(
            {
                "name": name,
                "nll/no_think": result["nll/no_think"],
                "nll/think": result["nll/think"],
                "gain/mean": result["gain/mean"],
                "gain/ci95": result["gain/ci95"],
                "soup_minus_this": change["change"],
                "soup_minus_this_ci95": change["ci95"],
            }
        )
    return rows


def _difference(mine: dict[str, list[int]], theirs: dict[str, list[int]]) -> str:
    for name in sorted({*mine, *theirs}):
        here, there = mine.get(name), theirs.get(name)
        if here != there:
            return f"{name} is {there or 'missing'} there and {here or 'missing'} here"
    raise AssertionError("they are alike")


def _card(config: Config, facts: dict[str, Any]) -> str:
    """A model card with what was mixed and what was measured."""
    head = ["---", "library_name: transformers", "tags: [rntp]", "---", "", "# Model soup"]
    used = [i for i in facts["ingredients"] if i["used"]]
    lines = [
        *head,
        "",
        f"The {facts['method']} average (2203.05482) of {len(used)} of "
        f"{len(facts['ingredients'])} checkpoints from {config.model.spec}, rntp {__version__}. "
        f"Corpus {facts['data_digest'][:16]}; {facts['num_docs']} held-out documents, nats per "
        "token:",
        "",
        "| | no think | think | gain | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        low, high = row["gain/ci95"]
        lines.append(
            f"| {Path(row['name']).name} | {row['nll/no_think']:.3f} | {row['nll/think']:.3f} | "
            f"{row['gain/mean']:+.3f} | [{low:+.3f}, {high:+.3f}] |"
        )
    return "\n".join([*lines, ""])
