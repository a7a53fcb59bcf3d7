"""The piece of what a reading window has lost that the model itself would have chosen.

likely_piece: the one behind which the window is most likely. It is as honest as a rule can be: what
follows the position is not looked at. best_piece: the one behind which the continuation is most
likely, known afterwards: what choosing among pieces could bring at most. Each costs a forward over
the pieces of a position.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.evaluation.controls import Control
from rntp.evaluation.pieces import last_piece, lost_and_window, pieces, written
from rntp.model import LanguageModel
from rntp.model.forgetful import memory_logp
from rntp.types import Rollout, Thought

CHOSEN = ("likely_piece", "best_piece")
TRIED = 32  # pieces of a position at most, evenly spaced


def chosen_piece(
    model: LanguageModel,
    rollout: Rollout,
    position: int,
    rule: str,
    config: Config,
    most: int = TRIED,
) -> Tensor:
    """Choose a piece of what a window has lost: int64 [n], as long as a thought may be.

    rollout: of the page; positions and thoughts do not matter. rule: of `CHOSEN`. most: pieces that
    are tried, evenly spaced. With a window of no tokens likely_piece is the last one.
    """
    window = config.reading.window
    assert window is not None
    lost, kept = lost_and_window(rollout, position, window)
    if rule == "likely_piece" and not len(kept):
        return last_piece(lost, kept, config.thought.thought_tokens, 0.0)
    found = pieces(lost, config.thought.thought_tokens)
    if len(found) > most:
        chosen = torch.linspace(0, len(found) - 1, most).round().long().tolist()
        found = [found[n] for n in chosen]
    if len(found) == 1:
        return found[0]
    behind, horizon = window, config.reward.horizon
    if rule == "likely_piece":
        position, behind, horizon = position - len(kept), 0, len(kept)
    group = tuple(written(piece) for piece in found)
    one = replace(rollout, positions=(position,), thoughts=(group,))
    (logp,) = memory_logp(model, [one], behind, horizon)
    return found[int(logp[0].sum(dim=1).argmax())]


def chosen_controls(model: LanguageModel, config: Config) -> dict[str, Control]:
    """Make them controls of an evaluation."""
    if config.reading.window is None:
        return {}
    return {rule: partial(_in_place, rule, model, config) for rule in CHOSEN}


def _in_place(
    rule: str,
    model: LanguageModel,
    config: Config,
    rollouts: Sequence[Rollout],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Rollout]:
    """Put the chosen piece in the place of the thoughts at each position."""

    def memory(rollout: Rollout, position: int) -> tuple[Thought, ...]:
        return (written(chosen_piece(model, rollout, position, rule, config)),)

    return [replace(r, thoughts=tuple(memory(r, p) for p in r.positions)) for r in rollouts]
