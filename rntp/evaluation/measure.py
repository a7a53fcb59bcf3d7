"""The measurement: sample thoughts at positions of held-out contexts, score, make the tables."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.evaluation.chosen_pieces import chosen_controls
from rntp.evaluation.classes import class_table, controls_table
from rntp.evaluation.controls import CONTROLS
from rntp.evaluation.deciles import deciles
from rntp.evaluation.fixed_calls import call_controls
from rntp.evaluation.memory import longer_by, memory_table
from rntp.evaluation.mixing import mixing_table
from rntp.evaluation.next_token import accuracy, calibration
from rntp.evaluation.pages import (
    Page,
    arrays,
    note_control,
    positions_of,
    score_memories,
    score_pages,
    whole_pages,
)
from rntp.evaluation.pass_rates import task_table
from rntp.evaluation.perplexity import read_plainly
from rntp.evaluation.pieces import rule_controls
from rntp.evaluation.resampling import interval
from rntp.evaluation.third import third_losses
from rntp.evaluation.thoughts import describe_thoughts
from rntp.evaluation.tool_use import tool_use
from rntp.evaluation.value import bits_per_byte, bounds_by_thoughts, net_gain
from rntp.model import LanguageModel
from rntp.placement import Place
from rntp.placement.placer import placer
from rntp.rollout import Check, no_check
from rntp.rollout.interleaved import on_pages, open_evaluation_engine
from rntp.rollout.tool_calls import serving
from rntp.runtime.ranks import SINGLE_RANK, Ranks
from rntp.types import Context, Rollout

Progress = Callable[[str, int, int], None]


def _silent(name: str, done: int, total: int) -> None:
    pass


_Place = tuple[int, int]


def evaluation_places(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[int, Place]:
    """How many positions of a page an evaluation takes, and what chooses them."""
    section = config.evaluation
    count = section.positions_per_doc or config.placement.positions_per_doc
    purpose = "evaluation placement"
    return count, placer(config, section.placement, purpose, count=count, tokenizer=tokenizer)


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    contexts: Sequence[Context],
    config: Config,
    *,
    reference: dict[str, Any] | None = None,
    check: Check = no_check,
    progress: Progress = _silent,
    ranks: Ranks = SINGLE_RANK,
) -> dict[str, Any]:
    """Think and no-think loss of the same continuations, in nats per token.

    Positions are those of `evaluation.placement`, random ones by default, whatever placement
    trains. Deciles are those of the no-think loss of `evaluation.decile_model`; or of `reference`,
    an earlier result on the same contexts (so that a token stays in its decile); or of this one.
    Many ranks share the contexts, and each returns the result of all.
    Returns the content of eval/step_N.json, less the facts of the run.
    """
    section = config.evaluation
    count, place = evaluation_places(config, model.tokenizer)
    answers = any(context.task is not None for context in contexts)
    engine = open_evaluation_engine(model, config, count, answers=answers)

    def sample() -> list[Rollout]:
        mine = ranks.share(contexts)
        found: list[Rollout] = []
        with serving(engine, model, config):
            for first in range(0, len(mine), engine.docs_per_batch):
                progress("evaluate", first, len(mine))
                found += engine.sample(mine[first : first + engine.docs_per_batch], place, check)
        progress("evaluate", len(mine), len(mine))
        return found

    num_scored = 0

    def scored(rollouts: Sequence[Rollout], *, control: bool = False) -> list[Page]:
        mine = ranks.share(rollouts)

        def told(count: int) -> None:
            nonlocal num_scored
            num_scored += count
            progress("score", num_scored, len(mine) * (1 + len(section.controls)))

        def score() -> list[Page]:
            if control and config.reading.window is not None and model.mixing is None:
                return score_memories(model, mine, config, check, told)
            longer = 0 if control else longer_by(config.memory_tokens)
            return score_pages(model, mine, config, check, told, longer=longer)

        return whole_pages(ranks.join(score, "evaluate"))

    rollouts = ranks.join(sample, "evaluate")
    pages = scored(rollouts)
    controls = CONTROLS | rule_controls(config) | call_controls(model, config)
    controls |= chosen_controls(model, config)
    for name in section.controls:
        note_control(name, pages, scored(controls[name](rollouts, model.tokenizer), control=True))

    before = _by_place(reference["pages"]) if reference else {}
    if section.decile_model:
        _note_third(pages, before, config, on_pages(rollouts), model.device, check, ranks)
    earlier = reference and reference.get("reading")
    return {
        **_losses(pages, config),
        "reading": read_plainly(model, contexts, config, check, earlier, ranks),
        **_tables(pages, reference, before, config),
        "thoughts": describe_thoughts(
            on_pages(rollouts), model.tokenizer, horizon=config.reward.horizon, seed=config.run.seed
        ),
        "pages": pages,
    }


def _losses(pages: Sequence[Page], config: Config) -> dict[str, Any]:
    """The losses of all continuation tokens, and what was measured."""
    no_think, think, documents = arrays(pages)
    positions, _ = positions_of(pages)
    thoughts = [t for at in positions for t in at["thoughts"]]
    return {
        "horizon": config.reward.horizon,
        "num_docs": len(pages),
        "num_positions": sum(len(page["positions"]) for page in pages),
        "num_tokens": len(no_think),
        "thoughts_per_position": config.evaluation.thoughts_per_position,
        "nll/no_think": float(no_think.mean()),
        "nll/think": float(think.mean()),
        "gain/mean": float((no_think - think).mean()),
        "gain/ci95": interval(no_think - think, documents, config.run.seed),
        "thought/tokens_mean": float(np.mean([t["num_tokens"] for t in thoughts])),
        "thought/closed_frac": float(np.mean([t["closed"] for t in thoughts])),
    }


def _tables(
    pages: Sequence[Page],
    reference: dict[str, Any] | None,
    before: dict[_Place, dict[str, Any]],
    config: Config,
) -> dict[str, Any]:
    """What the gain is made of, in tables."""
    seed = config.run.seed
    no_think, think, documents = arrays(pages)
    bins, bins_of = _difficulty(pages, reference, config)
    if bins.shape != no_think.shape:
        raise ValueError("the reference evaluation is of other continuations")
    positions, documents_P = positions_of(pages)
    entropy_P, entropy_of = _entropy(pages, before)
    memory = {}
    if config.reading.window is not None:
        memory["memory"] = memory_table(
            pages,
            entropy_P,
            window=config.reading.window,
            longer=longer_by(config.memory_tokens),
            seed=seed,
        )
    return {
        **memory,
        **mixing_table(pages, seed),
        **tool_use(pages, seed),
        **task_table(pages, seed),
        "controls": controls_table(pages, seed),
        "classes": class_table(pages, seed),
        "deciles": deciles(bins, no_think, think, documents, seed),
        "deciles_of": bins_of,
        "bound": bounds_by_thoughts(positions, documents_P, seed),
        "bits_per_byte": bits_per_byte(positions, documents_P, seed),
        "net_gain": net_gain(positions, documents_P, seed),
        "accuracy": accuracy(positions, documents_P, entropy_P, seed),
        "entropy_of": entropy_of,
        "calibration": calibration(positions, documents_P, seed),
    }


def _by_place(pages: Sequence[Page]) -> dict[_Place, dict[str, Any]]:
    """The positions of pages by (ordinal, index of the token)."""
    return {(page["ordinal"], at["position"]): at for page in pages for at in page["positions"]}


def _note_third(
    pages: Sequence[Page],
    before: dict[_Place, dict[str, Any]],
    config: Config,
    rollouts: Sequence[Rollout],
    device: torch.device,
    check: Check,
    ranks: Ranks,
) -> None:
    """Write the third model's losses into the positions; those it had in `before` are the same."""
    here = _by_place(pages)
    spec = config.evaluation.decile_model
    known = {place: before.get(place, {}).get("third") for place in here}
    if all(found and found["model"] == spec for found in known.values()):
        losses = [found["nll"] for found in known.values() if found]
    else:
        mine = ranks.share(rollouts)
        losses = ranks.join(lambda: third_losses(config, mine, device, check), "evaluate")
    for at, nll in zip(here.values(), losses, strict=True):
        at["third"] = {"model": spec, "nll": nll}


def _difficulty(
    pages: Sequence[Page], reference: dict[str, Any] | None, config: Config
) -> tuple[np.ndarray, str]:
    """The loss that deciles go by, of every token, and whose it is."""
    if spec := config.evaluation.decile_model:
        third = [x for page in pages for at in page["positions"] for x in at["third"]["nll"]]
        return np.array(third), spec
    if reference is None:
        return arrays(pages)[0], "this model"
    return arrays(reference["pages"])[0], "the reference evaluation"


def _entropy(pages: Sequence[Page], before: dict[_Place, dict[str, Any]]) -> tuple[np.ndarray, str]:
    """Entropy of the prediction at each position without a thought, nats, and whose it is."""
    here = _by_place(pages)
    earlier = [before.get(place, {}).get("entropy") for place in here]
    if earlier and None not in earlier:
        return np.array(earlier), "the reference evaluation"
    return np.array([at["entropy"] for at in here.values()]), "this model"
