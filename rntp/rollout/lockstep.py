"""Decoding with fixed shapes: every step is the same work on the same storage.

The number of the step lives on the device and nothing is read back, so that on CUDA one step is
captured as a graph and replayed: a small model's step is a few hundred kernels, and starting them
one by one takes longer than running them. Elsewhere the same step runs as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rntp_kernels.tree_attention import DecodeAttention
from torch import Tensor

from rntp.chance import uniform
from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.rollout.sampling import Draw

# Steps between two looks whether all branches have ended: a look waits for the device.
STEPS_BETWEEN_LOOKS = 16


@dataclass(frozen=True)
class Branches:
    """N = D · K · G branches that decode together: of which context, where, and which thought.

    ordinal, position, page_position, member: int64 [N]; page_position is what chance goes by.
    visible: int64 [D, K · G], what each sees of its context.
    """

    ordinal: Tensor
    position: Tensor
    page_position: Tensor
    member: Tensor
    visible: Tensor

    def some(self, kept: Tensor) -> "Branches":
        """As many of each document: int64 [D, B'], which of its branches."""
        rows = flat_rows(kept, self.visible.shape[1])
        return Branches(
            ordinal=self.ordinal[rows],
            position=self.position[rows],
            page_position=self.page_position[rows],
            member=self.member[rows],
            visible=self.visible.gather(1, kept),
        )

    def become(self, other: "Branches") -> None:
        """Take over the values of as many others, in place."""
        for name, own in vars(self).items():
            own.copy_(getattr(other, name))


def flat_rows(kept: Tensor, branches: int) -> Tensor:
    """int64 [D, B'], branches of each document, which has `branches` in all -> int64 [D · B']."""
    first = torch.arange(len(kept), device=kept.device)[:, None] * branches
    return (first + kept).flatten()


@dataclass(frozen=True)
class Chance:
    """What a draw depends on besides the branch and the step; see `rntp.chance`."""

    seed: int
    purpose: str
    temperature: float
    draw: Draw

    def next_token(
        self, logits: Tensor, branches: Branches, step: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """A token a branch and its log-prob, [N] each, from logits [N, V] of that step."""
        noise = uniform(
            self.seed,
            self.purpose,
            branches.ordinal,
            branches.page_position,
            branches.member,
            step,
        )
        return self.draw(logits, noise, self.temperature)


class LockStep:
    """At most `budget` steps for all branches at once.

    stop_id: the token behind which a branch's draws do not count, or None.
    """

    def __init__(
        self,
        model: LanguageModel,
        branches: Branches,
        attention: DecodeAttention,
        chance: Chance,
        *,
        budget: int,
        stop_id: int | None,
    ) -> None:
        self._model = model
        self._branches = branches
        self._attention = attention
        self._chance = chance
        self._budget = budget
        self._stop_id = stop_id
        position = branches.position
        wide = torch.float64 if model.head.dtype == torch.float64 else torch.float32
        self._token = torch.zeros_like(position)
        self._next_position = torch.zeros_like(position)
        self._step = torch.zeros(1, dtype=torch.int64, device=position.device)
        self._ended = torch.zeros_like(position, dtype=torch.bool)
        self._drawn = position.new_zeros(budget, len(position))
        self._logprobs = torch.zeros(budget, len(position), dtype=wide, device=position.device)
        self._replay: Callable[[], None] | None = None

    def run(self, token_id: int, start: Tensor, check: Check) -> tuple[Tensor, Tensor]:
        """Feed `token_id` at positions `start`, int64 [N], then what is drawn.

        Returns tokens and log-probs, [N, T] on the CPU, T <= budget; what follows a stop token is
        to be cut. The attention has to stand where the branches are.
        """
        if self._replay is None and start.is_cuda:
            self._replay = self._capture(token_id, start)
        step = self._replay or self.advance
        self._begin(token_id, start)
        done = 0
        for done in range(1, self._budget + 1):
            check()
            step()
            look = done % STEPS_BETWEEN_LOOKS == 0 and done < self._budget
            if look and self._stop_id is not None and bool(self._ended.all()):
                break
        return self._drawn[:done].T.cpu(), self._logprobs[:done].T.cpu()

    def advance(self) -> None:
        """One step: nothing here reads a value back from the device."""
        hidden = self._model.hidden(self._token, self._next_position, self._attention)
        self._attention.advance()
        logits = self._model.logits(hidden)
        token, logprob = self._chance.next_token(logits, self._branches, self._step)
        self._drawn.index_copy_(0, self._step, token[None])
        self._logprobs.index_copy_(0, self._step, logprob[None].to(self._logprobs.dtype))
        if self._stop_id is not None:
            self._ended |= token == self._stop_id
        self._token.copy_(token)
        self._next_position += 1
        self._step += 1

    def _begin(self, token_id: int, start: Tensor) -> None:
        self._token.fill_(token_id)
        self._next_position.copy_(start)
        self._step.zero_()
        self._ended.zero_()

    def _capture(self, token_id: int, start: Tensor) -> Callable[[], None]:
        """One step as a CUDA graph. Branches, attention and storage are left as they were, but for
        places that the first steps write anyhow."""
        lengths = self._attention.lengths
        # Libraries choose kernels and take their memory at the first call, which may not be part
        # of a graph; PyTorch wants them on another stream.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._begin(token_id, start)
                self.advance()
                self._attention.rewind(lengths)
        torch.cuda.current_stream().wait_stream(side)
        self._begin(token_id, start)
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy meanwhile: a checkpoint is written beside training.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.advance()
        self._attention.rewind(lengths)
        return graph.replay
