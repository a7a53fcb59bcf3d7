"""Answers that the model writes after a text: at once, or after a thought at its end.

It knows nothing of the harness. A stop text ends the answer; what the thought says ends nothing,
because the answer begins after the close marker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from rntp_kernels.tree_attention import DecodeAttention, PrefixRecorder
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.tasks.room import Cuts, room_for_text
from rntp.evaluation.tasks.stops import StoppedText
from rntp.evaluation.tasks.thinking import Ids, slots, thoughts_after
from rntp.model import LanguageModel
from rntp.model.thought_tree import thought_branch
from rntp.rng import uniform
from rntp.rollout.sampling import draw, greedy
from rntp.rollout.unshared import PlainDecoder

MOST_TOKENS = 256  # where a task does not say, as the harness has it


@dataclass(frozen=True, slots=True)
class Writing:
    """How an answer is written. stops: texts that end it and are no part of it. most_tokens: it
    ends at these at the latest. temperature: 0 takes the most likely token."""

    stops: tuple[str, ...] = ()
    most_tokens: int = MOST_TOKENS
    temperature: float = 0.0

    @classmethod
    def of(cls, wanted: Mapping[str, object]) -> "Writing":
        """Read a task's `generation_kwargs`. Raises ConfigError for what is not done here."""
        wanted = dict(wanted)
        stops = wanted.pop("until", ())
        most = next(
            (wanted.pop(key) for key in ("max_gen_toks", "max_new_tokens") if key in wanted),
            MOST_TOKENS,
        )
        sampled = wanted.pop("do_sample", None)
        given = wanted.pop("temperature", 1.0 if sampled else 0.0)
        temperature = 0.0 if sampled is False else float(str(given))
        # Without sampling these change nothing.
        for key in () if temperature else ("top_p", "top_k", "min_p"):
            wanted.pop(key, None)
        if wanted:
            raise ConfigError(
                f"a task asks for generation_kwargs {', '.join(sorted(wanted))}, which the adapter "
                "does not have; copy the task into a folder of your own without them "
                "(--tasks-folder)"
            )
        texts = (stops,) if isinstance(stops, str) else tuple(map(str, _listed(stops)))
        return cls(tuple(text for text in texts if text), int(str(most)), temperature)


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of a text, not empty, and how to go on after it."""

    text: Ids
    writing: Writing


@torch.no_grad()
def answers(
    model: LanguageModel,
    config: Config,
    questions: Sequence[Question],
    *,
    think: bool,
    cuts: Cuts | None = None,
) -> list[str]:
    """One for each question. think: after one thought of the run's config, which is left out.

    Texts longer than the model can see lose their beginning, and `cuts` counts them. Raises
    ConfigError where nothing would be left.
    """
    cuts = cuts or Cuts()
    texts = [
        cuts.shorten(q.text, room_for_text(model, config, q.writing.most_tokens, think=think))
        for q in questions
    ]
    groups = thoughts_after(model, config, texts, 1) if think else {}
    found: dict[int, str] = {}

    def kind(n: int) -> tuple[float, int]:
        return questions[n].writing.temperature, questions[n].writing.most_tokens

    for _, members in groupby(sorted(range(len(questions)), key=kind), key=kind):
        alike = list(members)
        for first in range(0, len(alike), config.rollout.docs_per_batch):
            some = alike[first : first + config.rollout.docs_per_batch]
            before = [
                torch.cat([torch.tensor(texts[n]), *_closed_thought(model, groups, texts[n])])
                for n in some
            ]
            written = _write(model, config, some, before, [questions[n].writing for n in some])
            found |= dict(zip(some, written, strict=True))
    return [found[n] for n in range(len(questions))]


def _write(
    model: LanguageModel,
    config: Config,
    numbers: Sequence[int],
    before: Sequence[Tensor],
    writings: Sequence[Writing],
) -> list[str]:
    """Answers decoded in lock-step. before: int64 ids up to the answer, of each question.

    writings: of one temperature and one limit. numbers: of the questions, which chance goes by.
    """
    if not model.shares:
        return _write_plainly(model, config, numbers, before, writings)
    device, lengths = model.device, tuple(len(ids) for ids in before)
    recorder = PrefixRecorder(lengths, slots(max(lengths)), device)
    places = torch.cat([torch.arange(n) for n in lengths]).to(device)
    hidden = model.hidden(torch.cat(list(before)).to(device), places, recorder)
    end = torch.tensor(lengths, device=device)
    hidden = hidden.index_select(0, end.cumsum(0) - 1)  # predicts the first token
    most, temperature = writings[0].most_tokens, writings[0].temperature
    attention = DecodeAttention(recorder, end[:, None], most)
    ordinal = torch.tensor(numbers, device=device)
    written = [StoppedText(model.tokenizer, writing.stops) for writing in writings]
    ended = [False for _ in before]
    for t in range(most):
        logits = model.logits(hidden)
        noise = uniform(config.run.seed, "task answer", ordinal, token=t)
        pick = draw if temperature else greedy
        token, _ = pick(logits, noise, temperature or 1.0)
        for i, new in enumerate(token.tolist()):
            ended[i] = ended[i] or new == model.eos_id or written[i].add(new)
        if all(ended) or t + 1 == most:
            break
        hidden = model.hidden(token, end + t, attention)
        attention.advance()
    return [answer.text() for answer in written]


def _write_plainly(
    model: LanguageModel,
    config: Config,
    numbers: Sequence[int],
    before: Sequence[Tensor],
    writings: Sequence[Writing],
) -> list[str]:
    """The same of a model that shares nothing: texts of one length decode together."""
    most, temperature = writings[0].most_tokens, writings[0].temperature
    written = [StoppedText(model.tokenizer, writing.stops) for writing in writings]
    ended = [False for _ in before]

    def length(i: int) -> int:
        return len(before[i])

    for _, alike in groupby(sorted(range(len(before)), key=length), key=length):
        some = list(alike)
        decoder = PlainDecoder(model, torch.stack([before[i] for i in some]))
        ordinal = torch.tensor([numbers[i] for i in some], device=model.device)
        for t in range(most):
            noise = uniform(config.run.seed, "task answer", ordinal, token=t)
            pick = draw if temperature else greedy
            token, _ = pick(decoder.logits, noise, temperature or 1.0)
            for i, new in zip(some, token.tolist(), strict=True):
                ended[i] = ended[i] or new == model.eos_id or written[i].add(new)
            if all(ended[i] for i in some) or t + 1 == most:
                break
            decoder.feed(token)
    return [answer.text() for answer in written]


def _closed_thought(
    model: LanguageModel, groups: Mapping[Ids, Sequence], text: Ids
) -> list[Tensor]:
    if not groups:
        return []
    [thought] = groups[text]
    return [
        thought_branch(
            thought.sampled_ids, thought.closed, model.think_open_id, model.think_close_id
        )
    ]


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else []
