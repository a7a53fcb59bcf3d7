"""The corpus of a run: its manifest, or several, and the two streams that a config asks for."""

from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.data.manifest import Manifest
from rntp.data.mixture import MixedStream, Mixture, shares, stream_seed
from rntp.data.order import VERSION
from rntp.data.reader import Reader
from rntp.data.state import DataState
from rntp.data.stream import ContextStream, Split, Stream, Windows, check_tokenizer
from rntp.data.token_ids import Markers
from rntp.errors import ConfigError
from rntp.tokenizer import encode, prefix_ids, tokenizer_digest
from rntp.types import Context

Data = Manifest | Mixture


@dataclass(frozen=True)
class Corpus:
    """Training contexts of a corpus, and held-out ones of the same or of another.

    heldout is None without evaluation.
    """

    manifest: Data
    train: Reader
    heldout: Stream | None
    heldout_digest: str | None

    def step_contexts(self, step: int, docs_per_step: int) -> list[Context]:
        """The contexts of step 1, 2, …: the next `docs_per_step` ordinals of the stream."""
        first = (step - 1) * docs_per_step
        wanted = range(first, first + docs_per_step)
        return self.train.take(wanted, ahead=[n + docs_per_step for n in wanted])

    def heldout_contexts(self, count: int) -> list[Context]:
        """Held-out contexts, at most one a document, the same for every evaluation of a run."""
        assert self.heldout is not None, "evaluation is off"
        return [self.heldout[n] for n in range(min(count, self.heldout.num_documents))]

    def reused_contexts(self, count: int) -> list[Context]:
        """The first contexts of the training stream, at most one a document, or piece of one."""
        return [self.train.stream[n] for n in range(min(count, self.train.num_documents))]

    def state(self, tokenizer: str, seed: int, frontier: int) -> DataState:
        """Where a run stands that has trained all ordinals below `frontier`."""
        return DataState(
            corpus=self.manifest.digest,
            documents=self.manifest.num_docs,
            tokens=self.manifest.total_tokens,
            tokenizer=tokenizer,
            order=VERSION,
            seed=seed,
            frontier=frontier,
            damaged=tuple(self.train.damaged),
        )

    def close(self) -> None:
        """End what reads ahead."""
        self.train.close()


def open_data(config: Config, *, tolerant: bool = False) -> Data:
    """What `data.source` names. tolerant, and errors, as of `Manifest.load`."""
    load = partial(Manifest.load, tolerant=tolerant, deadline_s=config.data.deadline_s)
    source = config.data.source
    if not isinstance(source, dict):
        return load(source)
    return Mixture([load(name) for name in source], shares(source))


def marker_ids(config: Config, tokenizer: PreTrainedTokenizerBase) -> Markers:
    """Ids of the config's think markers, which the tokenizer has been given."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary[config.model.think_open], vocabulary[config.model.think_close]


def open_corpus(config: Config, data: Data, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Check that the corpus fits the model's tokenizer and open its streams.

    Raises DataError (other tokenizer, no document long enough) and ConfigError.
    """
    manifests = data.manifests if isinstance(data, Mixture) else [data]
    for manifest in manifests:
        check_tokenizer(manifest, tokenizer_digest(tokenizer), config.model.spec)
    if config.evaluation.enabled and config.data.heldout_fraction == 0:
        raise ConfigError(
            "evaluation needs held-out documents: raise data.heldout_fraction above 0, or set "
            "evaluation.enabled to false"
        )
    if len(manifests) > 1 and config.data.max_documents:
        raise ConfigError(
            "data.max_documents counts the documents of one corpus, and data.source has "
            f"{len(manifests)}; take one of them away"
        )

    def stream(split: Split, manifest: Manifest, seed: int) -> ContextStream:
        # Evaluation sees every document once, whatever training makes of long ones.
        windows: Windows = config.data.windows if split == "train" else "one"
        return ContextStream(
            manifest,
            partial(encode, tokenizer),
            prefix_ids=prefix_ids(tokenizer),
            seed=seed,
            context_tokens=config.data.context_tokens,
            min_document_tokens=config.min_document_tokens,
            heldout_fraction=config.data.heldout_fraction,
            split=split,
            max_documents=config.data.max_documents if split == "train" else 0,
            markers=marker_ids(config, tokenizer),
            windows=windows,
            max_damaged=config.data.max_damaged,
        )

    def whole(split: Split, data: Data) -> Stream:
        seed = config.run.seed
        if not isinstance(data, Mixture):
            return stream(split, data, seed)
        parts = [stream(split, m, stream_seed(seed, m)) for m in data.manifests]
        return MixedStream(parts, data.shares)

    train = Reader(
        whole("train", data),
        workers=config.data.workers,
        kind=config.data.worker_kind,
        deadline_s=config.data.deadline_s,
    )
    if not config.evaluation.enabled:
        return Corpus(data, train, None, None)
    others = data
    if config.evaluation.source is not None:
        others = Manifest.load(config.evaluation.source)
        check_tokenizer(others, tokenizer_digest(tokenizer), config.model.spec)
    return Corpus(data, train, whole("heldout", others), others.digest)
