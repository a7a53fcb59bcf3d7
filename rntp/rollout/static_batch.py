"""Decoding with fixed shapes: every step is the same work on the same storage.

The number of the step lives on the device and nothing is read back, so that on CUDA one step is
captured as a graph and replayed: a small model's step is a few hundred kernels, and starting them
one by one takes longer than running them. OtherLogprobs the same step runs as it is.

Branches that have ended go along until those that have not fit half the rows, or a quarter, …:
then these go on by themselves, in a lane with a graph of its own that finds their tokens where
they are. A library may add up the terms of a product in another order for fewer rows, and does on
CUDA: last bits can then depend on which branches have ended, though never from run to run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rntp_kernels.tree_attention import DecodeAttention
from torch import Tensor

from rntp.model import LanguageModel
from rntp.rng import uniform
from rntp.rollout import Check
from rntp.rollout.sampling import Draw, logp_of

# Steps between two looks how many branches have ended: a look waits for the device.
STEPS_BETWEEN_LOOKS = 16
# A lane has at least so many branches of each document. Below them a step costs what starting its
# kernels costs, and reading the weights.
LEAST = 8


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
        """Pick as many branches of each document: int64 [D, B'], which of them."""
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


def still_going(ended: Tensor, number: int) -> Tensor:
    """Pick so many branches of each document, those first that have not ended: bool [D, B] -> int64
    [D, number], rising."""
    first = ended.byte().argsort(dim=1, stable=True)[:, :number]
    return first.sort(dim=1).values


def flat_rows(kept: Tensor, branches: int) -> Tensor:
    """int64 [D, B'], branches of each document, which has `branches` in all -> int64 [D · B']."""
    first = torch.arange(len(kept), device=kept.device)[:, None] * branches
    return (first + kept).flatten()


@dataclass(frozen=True)
class TokenSampler:
    """What a draw depends on besides the branch and the step; see `rntp.rng`.

    none_id: the token that the first thought of every group begins with whatever is drawn, the
    close marker, for a policy that may learn not to think; or None.
    """

    seed: int
    purpose: str
    temperature: float
    draw: Draw
    none_id: int | None = None

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
        token, logprob = self.draw(logits, noise, self.temperature)
        if self.none_id is None or (isinstance(step, int) and step > 0):
            return token, logprob
        none = (branches.member == 0) & (step == 0)
        own = logp_of(logits, self.none_id, self.temperature).to(logprob.dtype)
        return token.masked_fill(none, self.none_id), torch.where(none, own, logprob)


class StaticBatch:
    """At most `budget` steps for all branches at once.

    stop_id: the token behind which a branch's draws do not count, or None.
    """

    def __init__(
        self,
        model: LanguageModel,
        branches: Branches,
        attention: DecodeAttention,
        chance: TokenSampler,
        *,
        budget: int,
        stop_id: int | None,
    ) -> None:
        position = branches.position
        wide = torch.float64 if model.head.dtype == torch.float64 else torch.float32
        self._budget = budget
        self._stop_id = stop_id
        self._notes = DrawnTokens(
            step=torch.zeros(1, dtype=torch.int64, device=position.device),
            drawn=position.new_zeros(budget, len(position)),
            logprobs=torch.zeros(budget, len(position), dtype=wide, device=position.device),
        )
        row = torch.arange(len(position), device=position.device)
        widest = BatchSlots(model, branches, attention, chance, stop_id, self._notes, row)
        self._lanes = {widest.width: widest}  # by branches of a document, widest first

    def run(self, token_id: int, start: Tensor, check: Check) -> tuple[Tensor, Tensor]:
        """Feed `token_id` at positions `start`, int64 [N], then what is drawn.

        Returns tokens and log-probs, [N, T] on the CPU, T <= budget; what follows a stop token is
        to be cut. The attention has to stand where the branches are.
        """
        lane = self._widest
        lane.make_ready()
        lane.begin(token_id, start)
        done = 0
        for done in range(1, self._budget + 1):
            check()
            lane.step()
            look = done % STEPS_BETWEEN_LOOKS == 0 and done < self._budget
            if not look or self._stop_id is None:
                continue
            going = lane.going()
            if not going:
                break
            lane = self._that_holds(going, lane)
        return self._notes.drawn[:done].T.cpu(), self._notes.logprobs[:done].T.cpu()

    @property
    def _widest(self) -> "BatchSlots":
        return next(iter(self._lanes.values()))

    def _that_holds(self, going: int, lane: "BatchSlots") -> "BatchSlots":
        """The lane to go on in with so many branches of a document: this one, or a narrower one,
        which takes over."""
        width = lane.width
        while width // 2 >= max(going, LEAST):
            width //= 2
        if width == lane.width:
            return lane
        kept = still_going(lane.ended, width)
        if width not in self._lanes:
            self._lanes[width] = lane.narrowed(kept)
            self._lanes[width].make_ready()
        self._lanes[width].follow(lane, kept)
        return self._lanes[width]


@dataclass(frozen=True)
class DrawnTokens:
    """What lanes have in common, on the device: step, int64 [1], the number of the next one; drawn
    and logprobs, [budget, N], what came of those before it."""

    step: Tensor
    drawn: Tensor
    logprobs: Tensor

    def take(self, row: Tensor, token: Tensor, logprob: Tensor) -> None:
        """Tokens and log-probs of this step, of some of the N branches; all [N']."""
        at = self.step * self.drawn.shape[1] + row
        self.drawn.view(-1).index_copy_(0, at, token)
        self.logprobs.view(-1).index_copy_(0, at, logprob.to(self.logprobs.dtype))
        self.step.add_(1)


class BatchSlots:
    """Branches that decode together, as many of each document, and the graph of their step.

    row: int64 [N'], which of the N branches they are.
    """

    def __init__(
        self,
        model: LanguageModel,
        branches: Branches,
        attention: DecodeAttention,
        chance: TokenSampler,
        stop_id: int | None,
        notes: DrawnTokens,
        row: Tensor,
    ) -> None:
        self._model = model
        self._branches = branches
        self._attention = attention
        self._chance = chance
        self._stop_id = stop_id
        self._notes = notes
        self._row = row
        self._token = torch.zeros_like(row)
        self._next_position = torch.zeros_like(row)
        self._ended = torch.zeros_like(row, dtype=torch.bool)
        self._replay: Callable[[], None] | None = None

    @property
    def width(self) -> int:
        """Branches of a document."""
        return self._branches.visible.shape[1]

    @property
    def ended(self) -> Tensor:
        """bool [D, B']: which branches have drawn the stop token."""
        return self._ended.view(self._branches.visible.shape)

    def going(self) -> int:
        """The most branches of a document that have not ended; waits for the device."""
        return int((~self.ended).sum(dim=1).max())

    def begin(self, token_id: int, start: Tensor) -> None:
        """Feed this token first, at positions int64 [N']."""
        self._token.fill_(token_id)
        self._next_position.copy_(start)
        self._notes.step.zero_()
        self._ended.zero_()

    def step(self) -> None:
        """The next token of every branch."""
        if self._replay is None:
            self.advance()
        else:
            self._replay()

    def advance(self) -> None:
        """The same without the graph; nothing here reads a value back from the device."""
        hidden = self._model.hidden(self._token, self._next_position, self._attention)
        self._attention.advance()
        logits = self._model.logits(hidden)
        token, logprob = self._chance.next_token(logits, self._branches, self._notes.step)
        self._notes.take(self._row, token, logprob)
        if self._stop_id is not None:
            self._ended |= token == self._stop_id
        self._token.copy_(token)
        self._next_position += 1

    def narrowed(self, kept: Tensor) -> "BatchSlots":
        """A lane for some of the branches, int64 [D, B'']; `follow` tells it where they are."""
        return BatchSlots(
            self._model,
            self._branches.some(kept),
            self._attention.narrowed(kept),
            self._chance,
            self._stop_id,
            self._notes,
            self._row[flat_rows(kept, self.width)],
        )

    def follow(self, wide: "BatchSlots", kept: Tensor) -> None:
        """Take over these branches of another lane, int64 [D, B'']: as many as this one has."""
        rows = flat_rows(kept, wide.width)
        self._branches.become(wide._branches.some(kept))
        self._attention.follow(wide._attention, kept)
        for name in ("_row", "_token", "_next_position", "_ended"):
            getattr(self, name).copy_(getattr(wide, name)[rows])

    def make_ready(self) -> None:
        """Capture a step where there are graphs, once. What was drawn is left as it was, and so
        are branches, attention and storage, but for places that the next step writes anyhow; token
        and position are not."""
        if self._replay is not None or not has_graphs(self._row.device):
            return
        notes, lengths = self._notes, self._attention.lengths
        kept = notes.step.clone(), notes.drawn.clone(), notes.logprobs.clone()

        def stand() -> None:  # at the first position: for a step on trial as good as any
            self.begin(0, self._branches.position)
            self._attention.rewind(lengths)

        self._replay = as_graph(self.advance, stand)
        self._attention.rewind(lengths)
        for own, before in zip((notes.step, notes.drawn, notes.logprobs), kept, strict=True):
            own.copy_(before)


def has_graphs(device: torch.device) -> bool:
    """Tell whether work on this device can be captured and replayed."""
    return device.type == "cuda"


def as_graph(work: Callable[[], None], stand: Callable[[], None]) -> Callable[[], None]:
    """Capture `work` as a CUDA graph that does it again. stand: brings about the state that work
    begins in; work is done three times in all."""
    # Libraries choose kernels and take their memory at the first call, which may not be part of a
    # graph; PyTorch wants them on another stream.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            stand()
            work()
    torch.cuda.current_stream().wait_stream(side)
    stand()
    graph = torch.cuda.CUDAGraph()
    # Other threads may copy meanwhile: a checkpoint is written beside training.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
