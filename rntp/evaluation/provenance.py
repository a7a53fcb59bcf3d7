"""What an evaluation is of, so that its numbers can be traced."""

from typing import Any

from rntp.config import Config
from rntp.data.corpus import Corpus


def provenance(config: Config, corpus: Corpus, step: int) -> dict[str, Any]:
    """Name the run and the pages that a result is of. step: of the checkpoint, 0 for a base."""
    return {
        "step": step,
        "seed": config.run.seed,
        "config_digest": config.digest(),
        "evaluation_digest": config.evaluation_digest(),
        "data_digest": corpus.manifest.digest,
        "heldout_digest": corpus.heldout_digest,
    }
