"""Calls of tools by fixed rules, written into pages: what a model learns before it calls by itself.

As Toolformer does (2302.04761), calls that rules propose are made, and those that lower the loss of
the text behind them are written into the page as thoughts; a later run with
`thought.thoughts_per_position: 0` trains on it by plain next-token prediction:

    call        … <think> <tool>call</tool> <result>…</result> </think> x[p] …
    declined    … <think> </think> x[p] …         where no call is worth the margin
    bare        … x[p] …                          a share of the positions, as they are

With a reading window (`reading.window`) a position's documents are those of `rntp.traces.as_read`,
the call as their thought, which is then read before the window and not behind it.

Unlike Toolformer's filter, gains are of a position without thoughts before it, as in training.
Unscored, any result is taken: this teaches what a result is, and to read on behind it. What tools
gave is marked as such in the document and is never learnt as if the model were to write it.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rntp import __version__
from rntp.config import Config
from rntp.data.corpus import Corpus, marker_ids, open_corpus, open_data
from rntp.data.manifest import Manifest
from rntp.data.token_ids import to_codes
from rntp.errors import ConfigError
from rntp.evaluation.pieces import written
from rntp.model import LanguageModel
from rntp.model.opening import open_to_compute
from rntp.model.reading import LossReads
from rntp.model.thought_tree import ROOT, TokenTree, thought_branch
from rntp.model.tokenizer import decode, encode, prefix_ids
from rntp.objective.forward import build_tree, forward
from rntp.placement.placer import training_placer
from rntp.rng import uniform
from rntp.rollout.next_token_stats import LazyNextTokenStats
from rntp.rollout.tool_calls import ToolCalls, tool_calls, withheld_at
from rntp.runtime.progress import Bars
from rntp.tools.proposals import PROPOSALS, Before
from rntp.tools.words import words
from rntp.traces.as_read import KINDS, check_kinds, documents_at, without_prefix
from rntp.traces.progress_file import ProgressFile
from rntp.traces.shards import token_id_writer
from rntp.types import Context, Rollout, Thought

COUNTED_PAGES = 500  # contexts whose words say which words are rare


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    rules: names of `rntp.tools.proposals`. contexts: of the training stream, the first ones.
    margin: nats a token of the continuation that a call has to gain; None takes any call that has a
    result, by one rule after the other. bare: share of the positions that are left as they are.
    kinds: of the documents that a position behind a reading window has.
    """

    rules: Sequence[str]
    contexts: int
    margin: float | None = 0.0
    bare: float = 0.2
    kinds: Sequence[str] = KINDS


@dataclass(frozen=True)
class _Candidate:
    """A call that was made, and the thought that makes it."""

    rule: str
    text: str
    thought: Thought


def write_calls(config: Config, out: Path, wish: Wish) -> dict[str, Any]:
    """Write a corpus of pages with calls in them, one document a context.

    Goes on after a kill: contexts that are done stand in OUT.progress.jsonl until the corpus is
    there. Returns the provenance, published beside the shards as calls.json. Raises ConfigError and
    DataError, each with the remedy.
    """
    _check(config, out, wish)
    data = open_data(config)
    if not isinstance(data, Manifest):
        raise ConfigError("calls want one prepared corpus: set data.source to its folder")
    model = open_to_compute(config)
    corpus = open_corpus(config, data, model.tokenizer)
    facts = {
        "rntp": __version__,
        "model": config.model.spec,
        "config_digest": config.digest(),
        "data_digest": data.digest,
        "rules": list(wish.rules),
        "contexts": wish.contexts,
        "margin": wish.margin,
        "bare": wish.bare,
        "horizon": config.reward.horizon,
    }
    if config.reading.window is not None:
        facts |= {"window": config.reading.window, "kinds": list(wish.kinds)}
    progress = ProgressFile(out.with_name(f"{out.name}.progress.jsonl"), facts)
    with tool_calls(model, config) as tools, Bars() as bars:
        author = _Author(model, corpus, config, tools, wish)
        for ordinal in range(len(progress), wish.contexts):
            bars("contexts", ordinal, wish.contexts)
            progress.add(author.page(ordinal))
    rows = progress.read()
    if not any(row["calls"] for row in rows):
        raise ConfigError(
            f"none of {sum(row['positions'] for row in rows)} positions has a call worth writing "
            f"({_told(rows)}); lower --margin, take other --rules, or let the model learn to read "
            "results first (--unscored)"
        )
    facts |= _summary(rows, len(prefix_ids(model.tokenizer)))
    _write(out, rows, data, model, config, facts)
    progress.remove()
    return facts


def _check(config: Config, out: Path, wish: Wish) -> None:
    if not config.thought.tools.use:
        raise ConfigError("calls are of tools; name those that thoughts may call in thought.tools")
    if config.reading.piece is not None:
        raise ConfigError(
            "calls are of one position each, and a chain reads a page piece by piece; set "
            "reading.piece to null"
        )
    check_kinds(wish.kinds)
    if config.reading.window is None and set(wish.kinds) != set(KINDS):
        raise ConfigError(
            "--kinds chooses among the documents that are read behind a window, and reading.window "
            "is null: calls are written into whole pages; leave it out, or set reading.window"
        )
    if not wish.rules:
        raise ConfigError(f"--rules: none; there are {', '.join(sorted(PROPOSALS))}")
    for rule in wish.rules:
        _ = PROPOSALS[rule]
    if out.exists():
        raise ConfigError(f"{out} exists; choose another name or remove it")
    if wish.contexts < 1:
        raise ConfigError("--contexts must be 1 or more")
    if not 0 <= wish.bare < 1:
        raise ConfigError("--bare is a share, from 0 to below 1")


class _Author:
    """Makes the document of a context: a pure function of its ordinal, but for seconds."""

    def __init__(
        self, model: LanguageModel, corpus: Corpus, config: Config, tools: ToolCalls, wish: Wish
    ) -> None:
        self._model, self._corpus, self._config = model, corpus, config
        self._tools, self._wish = tools, wish
        self._place = training_placer(config, None, model.tokenizer)

    def page(self, ordinal: int) -> dict[str, Any]:
        """Make the document as codes, and what came of its positions, as JSON."""
        began = time.perf_counter()
        context = self._corpus.train[ordinal]
        positions = self._place(context, _Expected(self._model, context.token_ids))
        seed = self._config.run.seed
        draws = uniform(seed, "bare", ordinal, torch.tensor(positions)).tolist()
        at = [p for p, draw in zip(positions, draws, strict=True) if draw >= self._wish.bare]
        funnel: Counter[str] = Counter()
        found = self._candidates(context, at, ordinal, funnel)
        thoughts: dict[int, Thought] = {}
        calls: list[dict[str, Any]] = []
        if self._wish.margin is None:
            gains = [[0.0] * len(group) for group in found]
        else:
            gains = self._gains(context, at, found)
        for position, group, gain in zip(at, found, gains, strict=True):
            for candidate, value in zip(group, gain, strict=True):
                funnel[f"{candidate.rule}, with a result"] += 1
                if self._wish.margin is not None and value > self._wish.margin:
                    funnel[f"{candidate.rule}, useful"] += 1
            best = max(range(len(group)), key=gain.__getitem__, default=None)
            if best is None or (self._wish.margin is not None and gain[best] <= self._wish.margin):
                if self._wish.margin is not None:
                    thoughts[position] = written(context.token_ids[:0])
                continue
            thoughts[position] = group[best].thought
            call = {"position": position, "rule": group[best].rule, "call": group[best].text}
            calls.append(call if self._wish.margin is None else {**call, "gain": gain[best]})
        return {
            "ordinal": ordinal,
            "document_id": context.document_id,
            "documents": self._documents_of(context, positions, thoughts),
            "positions": len(positions),
            "bare": len(positions) - len(thoughts),
            "declined": len(thoughts) - len(calls),
            "calls": calls,
            "funnel": dict(funnel),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _candidates(
        self, context: Context, positions: Sequence[int], ordinal: int, funnel: Counter[str]
    ) -> list[list[_Candidate]]:
        """Make the calls that rules propose, all of a page at a time; those that have a result."""
        tools, model = self._tools, self._model
        asked = []
        for k, position in enumerate(positions):
            text = withheld_at(model, context, position, 0).before
            rules = list(self._wish.rules)
            if self._wish.margin is None:  # in turn; the next one where a rule has nothing
                turn = (ordinal + k) % len(rules)
                rules = rules[turn:] + rules[:turn]
            for rule in rules:
                for call in PROPOSALS[rule](Before(text, self._documents)):
                    ids = encode(model.tokenizer, call)
                    # With the markers of the call and the end of the thought.
                    fits = len(ids) + 3 <= self._config.thought.thought_tokens
                    funnel[f"{rule}, {'asked' if fits else 'too long'}"] += 1
                    if fits:
                        asked.append(
                            (k, rule, call, ids, tools.ask(ids.tolist(), context, position))
                        )
        outcomes = tools.desk.settle([ask for *_, ask in asked], wait=True)
        found: list[list[_Candidate]] = [[] for _ in positions]
        for (k, rule, call, ids, _), outcome in zip(asked, outcomes, strict=True):
            assert outcome is not None
            if outcome.failure or not outcome.text.strip():
                funnel[f"{rule}, {outcome.failure or 'empty'}"] += 1
                continue
            found[k].append(_Candidate(rule, call, tools.thought(ids, outcome)))
        return [group[:1] for group in found] if self._wish.margin is None else found

    @torch.no_grad()
    def _gains(
        self, context: Context, positions: Sequence[int], found: Sequence[Sequence[_Candidate]]
    ) -> list[list[float]]:
        """Gain of every candidate over no thought at its position, nats a token."""
        some = [k for k, group in enumerate(found) if group]
        if not some:
            return [[] for _ in found]
        most = max(len(group) for group in found)
        nothing = written(context.token_ids[:0])
        groups = tuple(
            tuple(candidate.thought for candidate in found[k]) + (nothing,) * (most - len(found[k]))
            for k in some
        )
        none = torch.zeros(len(some))
        rollout = Rollout(context, tuple(positions[k] for k in some), groups, none, none)
        reads = LossReads(window=self._config.reading.window)
        tree = build_tree(self._model, [rollout], self._config.reward.horizon, reads)
        outputs = forward(self._model, tree, temperature=1.0)
        gain_PG = (outputs.think_logp_PGH - outputs.no_think_logp_PH[:, None]).mean(dim=2)
        by_place = dict(zip(some, gain_PG.tolist(), strict=True))
        return [by_place.get(k, [])[: len(group)] for k, group in enumerate(found)]

    def _documents_of(
        self, context: Context, positions: Sequence[int], thoughts: Mapping[int, Thought]
    ) -> list[dict[str, Any]]:
        """Write the documents of a context, without what the loader puts before a text: name,
        codes, how many of these are given, and the positions whose calls stand in it."""
        model, window = self._model, self._config.reading.window
        prefix = prefix_ids(model.tokenizer)
        if window is None:
            markers = model.think_open_id, model.think_close_id
            begin, pieces = len(prefix), []
            for position, thought in sorted(thoughts.items()):
                branch = thought_branch(thought.sampled_ids, thought.closed, *markers)
                pieces += [context.token_ids[begin:position], branch]
                begin = position
            ids = torch.cat([*pieces, context.token_ids[begin:]]).tolist()
            name = f"calls-{context.ordinal}"
            at = sorted(thoughts)
            return [{"name": name, "codes": self._codes(ids), "given": 0, "calls_at": at}]
        nothing = torch.zeros(0)
        rollout = Rollout(context, tuple(positions), ((),) * len(positions), nothing, nothing)
        found = []
        for position in positions:
            thought = thoughts.get(position, written(context.token_ids[:0]))
            horizon = self._config.reward.horizon
            for document in documents_at(model, rollout, position, thought, window, horizon):
                has_thought = position in thoughts or document.kind == "bare"
                if document.kind in self._wish.kinds and has_thought:
                    ids, given = without_prefix(document, prefix)
                    name = f"{document.kind}-{context.ordinal}-{position}"
                    at = [] if document.kind == "bare" else [position]
                    found.append(
                        {"name": name, "codes": self._codes(ids), "given": given, "calls_at": at}
                    )
        return found

    def _codes(self, ids: list[int]) -> list[int]:
        return to_codes(ids, marker_ids(self._config, self._model.tokenizer))

    @cached_property
    def _documents(self) -> Counter[str]:
        """Count, for each word, the contexts that have it, of the first ones."""
        counts: Counter[str] = Counter()
        for context in self._corpus.reused_contexts(COUNTED_PAGES):
            counts.update(set(words(decode(self._model.tokenizer, context.token_ids))))
        return counts


class _Expected:
    """What the model expects of a page, by a forward of its own, for a placement that looks."""

    def __init__(self, model: LanguageModel, ids: Tensor) -> None:
        self._model, self._ids = model, ids

    @cached_property
    @torch.no_grad()
    def _stats(self) -> LazyNextTokenStats:
        hidden = TokenTree.build([(self._ids, ROOT, 0)]).hidden(self._model)
        return LazyNextTokenStats(self._model, self._ids.to(hidden.device), hidden)

    @property
    def hidden_LD(self) -> Tensor:
        with torch.no_grad():
            return self._stats.hidden_LD

    @property
    def entropy_L(self) -> Tensor:
        with torch.no_grad():
            return self._stats.entropy_L

    @property
    def nll_L(self) -> Tensor:
        with torch.no_grad():
            return self._stats.nll_L


def _summary(rows: Sequence[Mapping[str, Any]], prefix: int) -> dict[str, Any]:
    """What came of all positions. longest: tokens, that a run on the corpus wants as its context,
    with the `prefix` that the loader puts before a page."""
    gains = [call["gain"] for row in rows for call in row["calls"] if "gain" in call]
    funnel: Counter[str] = Counter()
    for row in rows:
        funnel.update(row["funnel"])
    return {
        "positions": sum(row["positions"] for row in rows),
        "calls": sum(len(row["calls"]) for row in rows),
        "declined": sum(row["declined"] for row in rows),
        "left_bare": sum(row["bare"] for row in rows),
        "by_rule": dict(Counter(call["rule"] for row in rows for call in row["calls"])),
        "gain/mean": sum(gains) / len(gains) if gains else None,
        "funnel": dict(sorted(funnel.items())),
        "documents": sum(len(row["documents"]) for row in rows),
        "longest": max(len(d["codes"]) for row in rows for d in row["documents"]) + prefix,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def _told(rows: Sequence[Mapping[str, Any]]) -> str:
    funnel: Counter[str] = Counter()
    for row in rows:
        funnel.update(row["funnel"])
    return "; ".join(f"{name}: {n}" for name, n in sorted(funnel.items())) or "no rule proposes any"


def _write(
    out: Path,
    rows: Sequence[dict[str, Any]],
    manifest: Manifest,
    model: LanguageModel,
    config: Config,
    facts: Mapping[str, Any],
) -> None:
    """Write the shards."""
    number = {name: n for n, name in enumerate(manifest.document_ids)}
    markers = dict(enumerate(marker_ids(config, model.tokenizer), start=1))
    with token_id_writer(out, manifest, facts) as writer:
        for row, document in ((page, each) for page in rows for each in page["documents"]):
            origin = manifest.read(number[row["document_id"]]).metadata
            codes = document["codes"]
            ids = torch.tensor([markers[-code] if code < 0 else code for code in codes])
            writer.add(
                document["name"],
                decode(model.tokenizer, ids),
                {
                    **{key: origin[key] for key in ("url", "title", "source")},
                    "token_ids": codes,
                    "given_tokens": document["given"],
                    "calls": [c for c in row["calls"] if c["position"] in document["calls_at"]],
                },
                len(ids),
            )
        (writer.partial_folder / "calls.json").write_text(
            json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        writer.finish({"contexts": len(rows), "calls": facts["calls"]})
