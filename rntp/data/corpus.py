"""The corpus of a run: its manifest, or several, and the two streams that a config asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from rntp.config import Config, Pages
from rntp.config.places import is_task
from rntp.data.live import GUARANTEE, Live, is_live, prepare_command, refuse_live
from rntp.data.live_stream import LiveHeldout, LiveStream
from rntp.data.manifest import Manifest
from rntp.data.mixture import MixedStream, Mixture, shares, stream_seed
from rntp.data.order import VERSION
from rntp.data.reader import Reader
from rntp.data.state import DataState
from rntp.data.stream import ContextStream, Split, Stream, Windows, check_tokenizer
from rntp.data.tasks import TaskSource, task_stream
from rntp.data.tasks.rendering import Renderer
from rntp.data.tasks.rows import check_apart
from rntp.data.token_ids import Markers
from rntp.errors import ConfigError
from rntp.model.tokenizer import encode, encode_unguarded, prefix_ids, tokenizer_digest
from rntp.types import Context

Data = Manifest | Mixture | Live | TaskSource


@dataclass(frozen=True)
class Corpus:
    """Training contexts of a corpus, and held-out ones of the same or of another.

    heldout is None without evaluation.
    """

    manifest: Data
    train: Reader
    heldout: Stream | None
    heldout_digest: str | None

    @property
    def guarantee(self) -> str:
        """What is promised of the data, for the run's metadata and report."""
        if isinstance(self.manifest, Live):
            return f"live pages: {GUARANTEE}"
        if isinstance(self.manifest, TaskSource):
            return "tasks: any ordinal again at any time, every prompt of one split alone"
        return "verified shards: any ordinal again at any time, every document checked by hash"

    def facts(self) -> str:
        """The corpus in a few words."""
        heldout = self.heldout.num_documents if self.heldout else 0
        if isinstance(self.manifest, Live):
            return f"live pages of {self.manifest.source} and {heldout} documents held out"
        if isinstance(self.manifest, TaskSource):
            return f"{self.manifest.facts()}, {heldout} held out"
        short = f", {self.train.num_too_short} too short" if self.train.num_too_short else ""
        return (
            f"corpus {self.manifest.digest[:12]} with {self.train.num_documents} documents to "
            f"train on{short} and {heldout} held out"
        )

    def warnings(self, spec: str) -> list[str]:
        """Return what is allowed and weaker than it could be. spec: of the run's tokenizer."""
        if not isinstance(self.manifest, Live):
            return []
        source = self.manifest.source
        remedy = prepare_command(source, spec)
        return [f"{source} is {GUARANTEE}. For verified shards: {remedy}"]

    def heldout_contexts(self, count: int) -> list[Context]:
        """Held-out contexts, at most one a document, the same for every evaluation of a run."""
        assert self.heldout is not None, "evaluation is off"
        return [self.heldout[n] for n in range(min(count, self.heldout.num_documents))]

    def reused_contexts(self, count: int) -> list[Context]:
        """The first contexts of the training stream, at most one a document, or piece of one."""
        numbers = range(min(count, self.train.num_documents))
        contexts = (self.train.stream[n] for n in numbers)
        return list(takewhile(lambda context: context.visit == 0, contexts))

    @property
    def funnel(self) -> dict[str, int]:
        """What became of the pages: of a preparation, or of this pass over a live source so far;
        nothing of a mixture, whose corpora have their own."""
        if isinstance(self.train.stream, LiveStream):
            return self.train.stream.funnel
        return dict(self.manifest.funnel) if isinstance(self.manifest, Manifest) else {}

    def place(self, frontier: int, check: Callable[[], None]) -> dict[str, Any] | None:
        """Return what a checkpoint has to keep of a live source; None of a corpus. As
        `catch_up`."""
        live = self.train.stream
        return live.place(frontier, check) if isinstance(live, LiveStream) else None

    def catch_up(self, state: dict[str, Any], check: Callable[[], None]) -> list[str]:
        """Read on from where a checkpoint's state has a place in a live source.

        check: called now and then. Returns what is not as it was, one line each.
        """
        live, data = self.train.stream, state.get("data", {})
        place, same = data.get("place"), data.get("corpus") == self.manifest.digest
        if not isinstance(live, LiveStream) or place is None or not same:
            return []
        return live.go_to(place, check)

    def state(
        self, tokenizer: str, seed: int, frontier: int, place: dict[str, Any] | None = None
    ) -> DataState:
        """Describe where a run stands that has trained all ordinals below `frontier`. place: see
        `place`."""
        return DataState(
            corpus=self.manifest.digest,
            documents=self.manifest.num_docs,
            tokens=self.manifest.total_tokens,
            tokenizer=tokenizer,
            order=VERSION,
            seed=seed,
            frontier=frontier,
            damaged=tuple(self.train.damaged),
            place=place,
        )

    def close(self) -> None:
        """End what reads ahead."""
        self.train.close()


def open_data(config: Config, *, tolerant: bool = False) -> Data:
    """Return what `data.source` names. tolerant, and errors, as of `Manifest.load`."""
    load = partial(Manifest.load, tolerant=tolerant)
    source = config.data.source
    if is_live(source):
        return Live(str(source), **config.data.pages.model_dump())
    if config.data.pages != Pages():
        raise ConfigError(
            f"data.pages says how pages are read that train unprepared, and {source} is prepared; "
            "take it away, or put it into the config of `rntp data prep`"
        )
    if not isinstance(source, dict):
        return TaskSource(str(source), config.data.tasks) if is_task(source) else load(source)
    for name in source:
        refuse_live(name, "a mixture")
    parts = [
        TaskSource(name, config.data.tasks) if is_task(name) else load(name) for name in source
    ]
    return Mixture(parts, shares(source))


def open_heldout(config: Config) -> Manifest | TaskSource | None:
    """Return what `evaluation.source` names; None where it is null. Raises as `open_data`."""
    source = config.evaluation.source
    if source is None:
        return None
    if is_task(source):
        return TaskSource(str(source), config.data.tasks)
    refuse_live(source, "evaluation.source")
    return Manifest.load(source)


def marker_ids(config: Config, tokenizer: PreTrainedTokenizerBase) -> Markers:
    """Ids of the config's markers, which the tokenizer has been given: of thoughts, and of tools
    where there are any."""
    vocabulary, tools = tokenizer.get_vocab(), config.thought.tools
    names = (config.model.think_open, config.model.think_close, *tools.markers * bool(tools.use))
    return tuple(vocabulary[name] for name in names)


def open_corpus(config: Config, data: Data, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Check that the corpus fits the model's tokenizer and open its streams.

    Raises DataError (other tokenizer, no document long enough) and ConfigError.
    """
    _check_data(config, data, tokenizer)
    train = Reader(
        _open_stream(config, data, tokenizer, "train"),
        workers=config.data.num_workers,
        kind=config.data.worker_kind,
    )
    if not config.evaluation.enabled:
        return Corpus(data, train, None, None)
    others = open_heldout(config) or data
    if isinstance(others, Manifest) and others is not data:
        check_tokenizer(others, tokenizer_digest(tokenizer), config.model.spec)
    if isinstance(others, TaskSource) and others is not data:
        heldout: Stream = _other_tasks(config, data, others, tokenizer)
    else:
        heldout = _open_stream(config, others, tokenizer, "heldout")
    digest = heldout.digest if isinstance(heldout, LiveHeldout) else others.digest
    return Corpus(data, train, heldout, digest)


def _open_stream(
    config: Config, data: Data, tokenizer: PreTrainedTokenizerBase, split: Split
) -> Stream:
    """Open the contexts of one split, whatever the data is."""
    seed = config.run.seed
    if isinstance(data, Live):
        return _live_stream(config, data, tokenizer, split)
    if not isinstance(data, Mixture):
        return _part_stream(config, data, tokenizer, split, seed)
    parts = [
        _part_stream(config, part, tokenizer, split, stream_seed(seed, part)) for part in data.parts
    ]
    return MixedStream(parts, data.shares)


def _part_stream(
    config: Config,
    part: Manifest | TaskSource,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    seed: int,
) -> Stream:
    if isinstance(part, Manifest):
        return _prepared_stream(config, part, tokenizer, split, seed)
    return task_stream(
        part,
        _renderer(config, tokenizer),
        split,
        seed=seed,
        heldout_fraction=config.data.heldout_fraction,
        count=config.evaluation.heldout_docs,
        max_documents=config.data.max_documents if split == "train" else 0,
        # What evaluation.source holds is held out altogether.
        whole=split == "train" and is_task(config.evaluation.source),
    )


def _other_tasks(
    config: Config, data: Data, others: TaskSource, tokenizer: PreTrainedTokenizerBase
) -> Stream:
    """The tasks of `evaluation.source`. Raises DataError where training has one of them, too."""
    parts: list[Data] = [data]
    if isinstance(data, Mixture):
        parts = [*data.parts]
    for part in parts:
        if isinstance(part, TaskSource) and part.rows is not None and others.rows is not None:
            check_apart(part.rows, others.rows)
    return task_stream(
        others,
        _renderer(config, tokenizer),
        "heldout",
        seed=config.run.seed,
        heldout_fraction=config.data.heldout_fraction,
        count=config.evaluation.heldout_docs,
        whole=True,
    )


def _renderer(config: Config, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    tasks = config.data.tasks
    return Renderer(
        tokenizer,
        tasks.template,
        tasks.rule,
        horizon=config.reward.horizon,
        context_tokens=config.data.context_tokens,
        answer_tokens=config.thought.answer_tokens,
    )


def _prepared_stream(
    config: Config,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    seed: int,
) -> ContextStream:
    # Evaluation sees every document once, whatever training makes of long ones.
    windows: Windows = config.data.windows if split == "train" else "one"
    return ContextStream(
        manifest,
        partial(encode, tokenizer),
        seed=seed,
        split=split,
        max_documents=config.data.max_documents if split == "train" else 0,
        markers=marker_ids(config, tokenizer),
        unguarded=partial(encode_unguarded, tokenizer),
        windows=windows,
        max_damaged=config.run.on_trouble.get("damaged"),
        **_common(config, tokenizer),
    )


def _live_stream(
    config: Config, live: Live, tokenizer: PreTrainedTokenizerBase, split: Split
) -> LiveStream | LiveHeldout:
    common = {"seed": config.run.seed, **_common(config, tokenizer)}
    to_ids = partial(encode, tokenizer)
    if split == "heldout":
        return LiveHeldout(live, to_ids, count=config.evaluation.heldout_docs, **common)
    return LiveStream(
        live,
        to_ids,
        max_documents=config.data.max_documents,
        windows=config.data.windows,
        **common,
    )


def _common(config: Config, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What every stream is told."""
    return {
        "prefix_ids": prefix_ids(tokenizer),
        "context_tokens": config.data.context_tokens,
        "min_document_tokens": config.min_document_tokens,
        "heldout_fraction": config.data.heldout_fraction,
    }


def _check_data(config: Config, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError for another tokenizer's corpus, ConfigError for what the data cannot give."""
    manifests = data.manifests if isinstance(data, Mixture) else []
    if isinstance(data, Live):
        _check_live(config)
    elif isinstance(data, Manifest):
        manifests = [data]
    for manifest in manifests:
        check_tokenizer(manifest, tokenizer_digest(tokenizer), config.model.spec)
    apart = is_task(config.evaluation.source)
    if config.evaluation.enabled and config.data.heldout_fraction == 0 and not apart:
        raise ConfigError(
            "evaluation needs held-out documents: raise data.heldout_fraction above 0, or set "
            "evaluation.docs to 0"
        )
    if isinstance(data, Mixture) and len(data.parts) > 1 and config.data.max_documents:
        raise ConfigError(
            "data.max_documents counts the documents of one corpus, and data.source has "
            f"{len(data.parts)}; take one of them away"
        )


def _check_live(config: Config) -> None:
    """Raise ConfigError for what pages that are read as they come cannot give."""
    if config.data.replay_docs > 0:
        raise ConfigError(
            f"data.replay_docs goes back to single contexts, and {config.data.source} would have "
            "to be read again for each; set it to 0, or prepare the source: "
            + prepare_command(str(config.data.source), config.model.spec)
        )
    if config.data.num_workers > 0 and config.data.worker_kind == "process":
        raise ConfigError(
            f"data.workers: each process would read all of {config.data.source}; "
            f"set it to {config.data.num_workers}, which are threads"
        )
