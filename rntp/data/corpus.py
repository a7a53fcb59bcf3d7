"""The corpus of a run: its manifest and the two streams that a config asks for."""

from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.data.manifest import Manifest
from rntp.data.stream import ContextStream, Split, check_tokenizer
from rntp.data.token_ids import Markers
from rntp.errors import ConfigError
from rntp.tokenizer import encode, prefix_ids, tokenizer_digest
from rntp.types import Context


@dataclass(frozen=True)
class Corpus:
    """Training contexts of a manifest, and held-out ones of the same or of another.

    heldout is None without evaluation.
    """

    manifest: Manifest
    train: ContextStream
    heldout: ContextStream | None

    def step_contexts(self, step: int, docs_per_step: int) -> list[Context]:
        """The contexts of step 1, 2, …: the next `docs_per_step` ordinals of the stream."""
        first = (step - 1) * docs_per_step
        return [self.train[n] for n in range(first, first + docs_per_step)]

    def heldout_contexts(self, count: int) -> list[Context]:
        """Held-out contexts, at most one a document, the same for every evaluation of a run."""
        assert self.heldout is not None, "evaluation is off"
        return [self.heldout[n] for n in range(min(count, self.heldout.num_documents))]

    def reused_contexts(self, count: int) -> list[Context]:
        """The first contexts of the training stream, at most one a document."""
        return [self.train[n] for n in range(min(count, self.train.num_documents))]


def marker_ids(config: Config, tokenizer: PreTrainedTokenizerBase) -> Markers:
    """Ids of the config's think markers, which the tokenizer has been given."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary[config.model.think_open], vocabulary[config.model.think_close]


def open_corpus(config: Config, manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Check that the corpus fits the model's tokenizer and open its streams.

    Raises DataError (other tokenizer, no document long enough) and ConfigError.
    """
    check_tokenizer(manifest, tokenizer_digest(tokenizer), config.model.spec)
    if config.evaluation.enabled and config.data.heldout_fraction == 0:
        raise ConfigError(
            "evaluation needs held-out documents: raise data.heldout_fraction above 0, or set "
            "evaluation.enabled to false"
        )

    def stream(split: Split, manifest: Manifest) -> ContextStream:
        return ContextStream(
            manifest,
            partial(encode, tokenizer),
            prefix_ids=prefix_ids(tokenizer),
            seed=config.run.seed,
            context_tokens=config.data.context_tokens,
            min_document_tokens=config.min_document_tokens,
            heldout_fraction=config.data.heldout_fraction,
            split=split,
            max_documents=config.data.max_documents if split == "train" else 0,
            markers=marker_ids(config, tokenizer),
        )

    heldout = None
    if config.evaluation.enabled:
        others = manifest
        if config.evaluation.source is not None:
            others = Manifest.load(config.evaluation.source)
            check_tokenizer(others, tokenizer_digest(tokenizer), config.model.spec)
        heldout = stream("heldout", others)
    return Corpus(manifest, stream("train", manifest), heldout)
