"""What is measured, on what, and beside which controls."""

from pathlib import Path
from typing import Annotated, Literal

from rntp.config.choice import Choice
from rntp.config.choices import PLACES, NonNegative, Positive
from rntp.config.section import Section

Control = Literal[
    "shuffled",
    "pause",
    "truncated",
    "empty",
    "oracle",
    "first_tokens",
    "last_piece",
    "random_piece",
    "bm25_piece",
    "likely_piece",
    "best_piece",
    "other_results",
    "no_results",
    "last_words",
    "rare_words",
    "others_words",
    "expression",
]


class Evaluation(Section):
    docs: NonNegative | dict[Literal["heldout", "reused"], NonNegative] = 16
    """Held-out contexts on which think and no-think loss are measured, before and after training;
    0 measures nothing. {heldout: N, reused: M}: also on the first M contexts that are trained on,
    fresh against reused gain."""
    every_steps: NonNegative = 0
    """And every so many steps in between; 0 is never."""
    source: Path | None = None
    """Corpus whose held-out pages are read, where that is not data.source: for training on made
    pages and measuring on ordinary ones. Tasks (`task:FILE.jsonl`) are held out altogether; where
    training has the same prompt the run does not start."""
    thoughts_per_position: Positive = 1
    """Thoughts at each position; the think loss is the mean over them."""
    placement: Annotated[Choice, PLACES] = PLACES.choice("random")
    """Where to think in evaluation: a placement policy; see `rntp.placement`."""
    controls: tuple[Control, ...] = ()
    """Thoughts put in place of the sampled ones, each with its own gain; see
    `rntp.evaluation.controls`. first_tokens, last_piece, random_piece and bm25_piece are memories
    by rule, with a reading window; see `rntp.evaluation.pieces`. likely_piece and best_piece are
    what the model itself would have chosen, before and after; see `rntp.evaluation.chosen_pieces`.
    last_words, rare_words and others_words are searches by rule, and expression is a computation;
    see `rntp.evaluation.fixed_calls`."""
    decile_model: str = ""
    """Spec of a third model of the same tokenizer, whose loss says which tokens are hard; with ""
    it is the loss of the model before training."""

    @property
    def enabled(self) -> bool:
        """Whether anything is measured."""
        return self.heldout_docs > 0

    @property
    def heldout_docs(self) -> int:
        """Held-out contexts that are measured on."""
        return self.docs if isinstance(self.docs, int) else self.docs.get("heldout", 16)

    @property
    def reused_docs(self) -> int:
        """Contexts trained on that are measured on as well."""
        return 0 if isinstance(self.docs, int) else self.docs.get("reused", 0)

    @property
    def positions_per_doc(self) -> int:
        """Positions in one held-out context; 0 is as many as in training."""
        return int(self.placement.get("positions_per_doc"))
