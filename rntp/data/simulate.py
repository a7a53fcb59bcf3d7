"""Which contexts which rank reads: the data of a run without its model."""

from collections.abc import Sequence
from typing import Any

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.data.live import refuse_live
from rntp.data.ordinals import fresh_contexts
from rntp.model.tokenizer import add_marker, load_tokenizer
from rntp.runtime.ranks import rank_share


def simulate(config: Config, steps: Sequence[int], world: int) -> dict[str, Any]:
    """Return what `world` ranks read in `steps`: facts of the corpus, and a row a context.

    Replayed contexts are left out: which come back depends on the training. Raises DataError and
    ConfigError as opening the corpus does, and for live pages.
    """
    refuse_live(config.data.source, "rntp data simulate")
    data = open_data(config, tolerant=True)
    tokenizer = load_tokenizer(config.model.spec)
    for marker in (config.model.think_open, config.model.think_close):
        add_marker(tokenizer, marker)
    corpus = open_corpus(config, data, tokenizer)
    rows = []
    for step in steps:
        ordinals = range(fresh_contexts(config, step - 1), fresh_contexts(config, step))
        for rank in range(world):
            for context in corpus.train.take(rank_share(ordinals, rank, world)):
                rows.append(
                    {
                        "step": step,
                        "rank": rank,
                        "ordinal": context.ordinal,
                        "document": context.document_id,
                        "start": context.start,
                        "tokens": len(context),
                        "visit": context.visit,
                    }
                )
    corpus.close()
    return {
        "corpus": data.digest,
        "documents": corpus.train.num_documents,
        "world": world,
        "contexts": rows,
        "damaged": [str(damage) for _, damage in corpus.train.damaged],
    }
