"""What thinking is worth on held-out pages: the same continuations with and without a thought.

The four cells are {before, after training} × {no-think, think}. Contexts, positions and random
numbers are the same for every evaluation of a run, so that all differences are paired; intervals
are bootstrapped over documents, the unit that is drawn independently.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rntp import checkpoint
from rntp.classes import class_table, controls_table
from rntp.config import Config
from rntp.controls import CONTROLS
from rntp.data import Manifest
from rntp.data.corpus import open_corpus
from rntp.errors import ConfigError, DataError
from rntp.model import LanguageModel, cast_parameters
from rntp.parallel import microbatches
from rntp.preflight import open_model
from rntp.resampling import interval
from rntp.rollout import Check, no_check
from rntp.rollout.inprocess import open_engine, unthought
from rntp.rollout.place import placer
from rntp.step import plant, score
from rntp.tokenizer import decode, token_strings
from rntp.trained import open_trained
from rntp.types import Context, Rollout

Progress = Callable[[str, int, int], None]


def _silent(name: str, done: int, total: int) -> None:
    pass


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    contexts: Sequence[Context],
    config: Config,
    *,
    reference: dict[str, Any] | None = None,
    check: Check = no_check,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Think and no-think loss of the same continuations, in nats per token.

    Positions are those of `evaluation.placement`, random ones by default, whatever placement
    trains. Deciles are those of the no-think loss in `reference`, an earlier result on the same
    contexts (so that a token stays in its decile), or of this one. Returns the content of
    eval/step_N.json, less the facts of the run.
    """
    rollouts: list[Rollout] = []
    engine = open_engine(
        model,
        config,
        thoughts=config.evaluation.thoughts_per_position,
        purpose="evaluation thought",
    )
    section = config.evaluation
    place = placer(
        config,
        section.placement,
        "evaluation placement",
        count=section.positions_per_doc or config.placement.positions_per_doc,
        tokenizer=model.tokenizer,
    )
    for first in range(0, len(contexts), engine.docs_per_batch):
        progress("evaluate", first, len(contexts))
        batch = contexts[first : first + engine.docs_per_batch]
        rollouts += engine.sample(batch, place, check)
    progress("evaluate", len(contexts), len(contexts))
    pages = _score_pages(model, rollouts, config, check)
    for name in section.controls:
        replaced = CONTROLS[name](rollouts, model.tokenizer)
        _note_control(name, pages, _score_pages(model, replaced, config, check))

    no_think, think, documents = _arrays(pages)
    bins = no_think if reference is None else _arrays(reference["pages"])[0]
    if bins.shape != no_think.shape:
        raise ValueError("the reference evaluation is of other continuations")
    thoughts = [t for page in pages for at in page["positions"] for t in at["thoughts"]]
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
        "reading": _read(model, contexts, config, check, reference and reference.get("reading")),
        "controls": controls_table(pages, config.run.seed),
        "classes": class_table(pages, config.run.seed),
        "deciles": _deciles(bins, no_think, think),
        "pages": pages,
    }


def evaluate_target(
    target: Path, step: int | None = None, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Evaluate a run folder's checkpoint (the newest whole one, or that of `step`), or a config's
    base model. Raises ConfigError, DataError or CheckpointError.
    """
    reference = None
    if target.is_dir():
        config, model, path = open_trained(target, step, say)
        say(f"evaluating {path}")
        trained_on = checkpoint.load_state(path)["data_digest"]
        before = target / "eval" / "step_00000000.json"
        if before.is_file():
            reference = json.loads(before.read_text(encoding="utf-8"))
    else:
        config = Config.load(target)
        model, trained_on = open_model(config), None
    if not config.evaluation.enabled:
        raise ConfigError(f"{target}: evaluation.enabled is false, so no pages are held out")
    manifest = Manifest.load(config.data.source)
    if trained_on not in (None, manifest.digest):
        raise DataError(
            f"{config.data.source} is not the corpus that {target} was trained on, so its held-out "
            f"pages are others ({manifest.digest[:16]} here, {trained_on[:16]} there)"
        )
    corpus = open_corpus(config, manifest, model.tokenizer)
    cast_parameters(model.hf, getattr(torch, config.model.dtype))
    contexts = corpus.heldout_contexts(config.evaluation.docs)
    return evaluate(model, contexts, config, reference=reference)


def compare(before: dict[str, Any], after: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The four cells, with the change of each and its 95 % interval, paired over documents.

    Raises ValueError if the two are not of the same continuations.
    """
    no_think_0, think_0, documents = _arrays(before["pages"])
    no_think_1, think_1, others = _arrays(after["pages"])
    if documents.shape != others.shape or (documents != others).any():
        raise ValueError("the two evaluations are of different continuations")
    cells = {
        "nll/no_think": (no_think_0, no_think_1),
        "nll/think": (think_0, think_1),
        "gain/mean": (no_think_0 - think_0, no_think_1 - think_1),
    }
    table: dict[str, Any] = {
        name: {
            "before": float(old.mean()),
            "after": float(new.mean()),
            "change": float((new - old).mean()),
            "ci95": interval(new - old, documents, seed),
        }
        for name, (old, new) in cells.items()
    }
    table["gain_ci95"] = {
        "before": interval(no_think_0 - think_0, documents, seed),
        "after": interval(no_think_1 - think_1, documents, seed),
    }
    table["num_docs"] = int(documents.max()) + 1
    table["num_tokens"] = len(documents)
    return table


def _score_pages(
    model: LanguageModel, rollouts: Sequence[Rollout], config: Config, check: Check
) -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = []
    for piece in microbatches(
        rollouts, tokens=config.parallel.tokens_per_microbatch, horizon=config.reward.horizon
    ):
        check()
        tree = plant(model, piece, config.reward.horizon)
        scores = score(model, tree, temperature=config.thought.temperature, with_context=False)
        think, empty = scores.think_logp_PGH.tolist(), scores.empty_logp_PH.tolist()
        number = 0
        for rollout in piece:
            count = len(rollout.positions)
            pages.append(_page(model, rollout, think[number:][:count], empty[number:][:count]))
            number += count
    return pages


def _page(
    model: LanguageModel, rollout: Rollout, think_KGH: list[Any], empty_KH: list[Any]
) -> dict[str, Any]:
    labels = rollout.context.labels
    positions = []
    for k, (position, group) in enumerate(zip(rollout.positions, rollout.thoughts, strict=True)):
        thoughts = [
            {
                "text": decode(model.tokenizer, t.sampled_ids[: t.num_tokens]),
                "closed": t.closed,
                "num_tokens": t.num_tokens,
                "logp_think": think_KGH[k][g],
            }
            for g, t in enumerate(group)
        ]
        at = {"position": position, "logp_empty": empty_KH[k], "thoughts": thoughts}
        if labels:
            known = labels.oracle.get(position)
            at["class"] = labels.names.get(labels.classes[position], "")
            at["oracle_gain"] = known.gain if known else None
        positions.append(at)
    return {
        "ordinal": rollout.context.ordinal,
        "document_id": rollout.context.document_id,
        "title": rollout.context.title,
        "tokens": token_strings(model.tokenizer, rollout.context.token_ids),
        "positions": positions,
    }


def _read(
    model: LanguageModel,
    contexts: Sequence[Context],
    config: Config,
    check: Check,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    """Plain next-token loss on every token of the contexts, nats: what training may have spoilt.

    before: the same of the reference evaluation; then with the change of each class since.
    """
    found: list[tuple[str, float]] = []
    plain = [unthought(context) for context in contexts]
    for piece in microbatches(plain, tokens=config.parallel.tokens_per_microbatch, horizon=1):
        check()
        scores = score(model, plant(model, piece, 1), temperature=1.0, with_context=True)
        assert scores.context_logp is not None
        nll = iter((-scores.context_logp).tolist())
        for rollout in piece:
            labels = rollout.context.labels
            for index in range(1, len(rollout.context)):
                name = labels.names.get(labels.classes[index], "") if labels else ""
                found.append((name, next(nll)))
    groups: dict[str, list[float]] = {}
    for name, value in found:
        # A class, and its kinds: "thinkable" and "thinkable, 2 hops".
        for key in {name, name.partition(",")[0]} - {""}:
            groups.setdefault(key, []).append(value)
    classes = {key: float(np.mean(groups[key])) for key in sorted(groups)}
    result: dict[str, Any] = {
        "num_tokens": len(found),
        "nll": float(np.mean([value for _, value in found])),
        "classes": classes,
    }
    if before:
        result["change"] = result["nll"] - before["nll"]
        result["class_changes"] = {key: classes[key] - before["classes"][key] for key in classes}
    return result


def _note_control(name: str, pages: list[dict[str, Any]], replaced: list[dict[str, Any]]) -> None:
    """Write the control's log-probs [H], mean over its thoughts, into the pages' positions."""
    where = {(page["ordinal"], at["position"]): at for page in pages for at in page["positions"]}
    for page in replaced:
        for at in page["positions"]:
            logp = np.mean([t["logp_think"] for t in at["thoughts"]], axis=0)
            entry = where[page["ordinal"], at["position"]]
            entry.setdefault("controls", {})[name] = logp.tolist()


def _arrays(pages: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No-think loss, think loss (mean over thoughts) and document number of every token."""
    no_think, think, documents = [], [], []
    for number, page in enumerate(pages):
        for at in page["positions"]:
            no_think += [-x for x in at["logp_empty"]]
            think += list(-np.mean([t["logp_think"] for t in at["thoughts"]], axis=0))
            documents += [number] * len(at["logp_empty"])
    return np.array(no_think), np.array(think), np.array(documents)


def _deciles(bins: np.ndarray, no_think: np.ndarray, think: np.ndarray) -> list[dict[str, Any]]:
    """Ten groups of tokens of equal size, from the easiest to the hardest by `bins`."""
    rows = []
    for number, members in enumerate(np.array_split(np.argsort(bins, kind="stable"), 10), 1):
        if not len(members):
            continue
        rows.append(
            {
                "decile": number,
                "num_tokens": len(members),
                "nll_low": float(bins[members].min()),
                "nll_high": float(bins[members].max()),
                "nll/no_think": float(no_think[members].mean()),
                "nll/think": float(think[members].mean()),
                "gain": float((no_think[members] - think[members]).mean()),
            }
        )
    return rows
