"""The policy, or what it was at the start, as the judge of its answers: how likely it says yes.

A tree of its own, without gradients: the page up to the position, and for every answer a branch
that holds the answer in a question. The judge sees no thought, and the true continuation only where
it is asked to compare (2509.19249 asks another model for 0 or 1).
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel
from rntp.model.thought_tree import TokenTree
from rntp.model.tokenizer import encode
from rntp.rewards import NEEDS, JudgeKind
from rntp.types import Rollout

# The page stands before, " yes" or " no" after.
QUESTIONS: dict[JudgeKind, str] = {
    "self": (
        "\n\n[Somebody guesses that the text goes on like this:{answer}]\n"
        "[Is the guess right? Answer yes or no:"
    ),
    "gold": (
        "\n\n[Somebody guesses that the text goes on like this:{answer}]\n"
        "[It really goes on like this:{truth}]\n"
        "[As far as it goes, does the guess say the same? Answer yes or no:"
    ),
}


class Judge:
    """Grades the answers of rollouts under the weights that the model has at that moment.

    kinds: of the questions to ask; without any, nothing is computed. horizon: tokens of the
    continuation that "gold" shows. Raises ConfigError if the longest question does not fit.
    """

    def __init__(
        self,
        model: LanguageModel,
        kinds: Sequence[JudgeKind],
        *,
        horizon: int,
        context_tokens: int = 0,
        answer_tokens: int = 0,
    ) -> None:
        self._model, self._horizon = model, horizon
        self._questions: dict[JudgeKind, list[Tensor | str]] = {}
        if not kinds:
            return
        shared, self._yes_no = _verdict_ids(model)
        self._questions = {kind: _pieces(model, QUESTIONS[kind], shared) for kind in kinds}
        nothing = torch.zeros(0, dtype=torch.int64)
        longest = max(len(self._ask(kind, nothing, nothing)) for kind in kinds)
        span = context_tokens + longest + answer_tokens  # a position leaves room for the truth
        if span > model.max_span:
            raise ConfigError(
                f"the judge's question reaches {span} positions, and {model.spec} sees "
                f"{model.max_span}; lower data.context_tokens or thought.answer_tokens, or take "
                "the judges out of reward.scheme and reward.shadows"
            )

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """p(yes) / (p(yes) + p(no)) by kind, float32 [P, G]; 0 for an empty answer."""
        if not self._questions:
            return {}
        positions = sum(len(r.positions) for r in rollouts)
        thoughts = [t for r in rollouts for group in r.thoughts for t in group]
        shape = (positions, len(thoughts) // max(positions, 1))
        device = self._model.device
        if not thoughts:
            return {kind: torch.zeros(shape, device=device) for kind in self._questions}
        tree, ends = self._tree(rollouts)
        hidden = tree.hidden(self._model).index_select(0, ends.to(device))
        # Of the head, two rows are enough.
        yes, no = self._model.logits(hidden, of=self._yes_no).float().unbind(1)
        written = torch.tensor([len(t.answer) > 0 for t in thoughts], device=device).view(shape)
        verdicts = torch.sigmoid(yes - no).view(*shape, len(self._questions))
        return {
            kind: torch.where(written, verdicts[:, :, i], 0)
            for i, kind in enumerate(self._questions)
        }

    def num_tokens(self, rollouts: Sequence[Rollout]) -> int:
        """Tokens of the judge's tree, for the account of the step's work."""
        return sum(len(ids) for ids, _, _ in self._segments(rollouts))

    def _tree(self, rollouts: Sequence[Rollout]) -> tuple[TokenTree, Tensor]:
        """The tree, and the last row of every branch: thoughts in order, each by every kind."""
        segments = self._segments(rollouts)
        tree = TokenTree.build(segments)
        ends = [
            after - 1
            for after, (_, parent, _) in zip(tree.layout.offsets[1:], segments, strict=True)
            if parent != -1
        ]
        return tree, torch.tensor(ends)

    def _segments(self, rollouts: Sequence[Rollout]) -> list[tuple[Tensor, int, int]]:
        """Of `TokenTree.build`: the pages, and the questions that hang from them."""
        segments: list[tuple[Tensor, int, int]] = []
        if not self._questions:
            return segments
        for rollout in rollouts:
            if not rollout.positions:
                continue
            root, ids = len(segments), rollout.context.token_ids
            segments.append((ids[: max(rollout.positions)], -1, 0))
            for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
                truth = ids[position : position + rollout.context.num_scored(self._horizon)]
                for thought in group:
                    for kind in self._questions:
                        segments.append((self._ask(kind, thought.answer, truth), root, position))
        return segments

    def _ask(self, kind: JudgeKind, answer: Tensor, truth: Tensor) -> Tensor:
        given = {"{answer}": answer, "{truth}": truth}
        return torch.cat([given[p] if isinstance(p, str) else p for p in self._questions[kind]])


def open_judge(model: LanguageModel, config: Config, frozen: LanguageModel | None = None) -> Judge:
    """The judge that the named schemes ask for; of no question if none does.

    frozen: the model of the start, which `reward.judges.itself: frozen` needs.
    """
    if config.reward.judges.itself == "frozen":
        assert frozen is not None
        model = frozen
    needs = (NEEDS[name].judge for name in config.reward.names)
    return Judge(
        model,
        list(dict.fromkeys(kind for kind in needs if kind)),
        horizon=config.reward.horizon,
        context_tokens=config.data.context_tokens,
        answer_tokens=config.thought.answer_tokens,
    )


def _pieces(model: LanguageModel, question: str, end: Tensor) -> list[Tensor | str]:
    """The ids of a question with its slots between them: text is spliced in as ids."""
    pieces = re.split(r"(\{\w+\})", question)
    ids = [p if p.startswith("{") else encode(model.tokenizer, p) for p in pieces]
    return [*ids, end]


def _verdict_ids(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Ids that " yes" and " no" begin with alike, and the first two that differ, int64 [2].

    Raises ConfigError if a tokenizer cannot tell them apart.
    """
    yes, no = (encode(model.tokenizer, word).tolist() for word in (" yes", " no"))
    same = 0
    while same < min(len(yes), len(no)) and yes[same] == no[same]:
        same += 1
    if same == min(len(yes), len(no)):
        raise ConfigError(
            f"the tokenizer of {model.spec} has no different tokens for ' yes' and ' no'; take the "
            "judges out of reward.scheme and reward.shadows"
        )
    return torch.tensor(yes[:same], dtype=torch.int64), torch.tensor([yes[same], no[same]])
