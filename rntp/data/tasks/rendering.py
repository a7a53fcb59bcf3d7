"""From a task to the context that a model sees: token ids of the prompt, then of the answer."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.config.tasks import CHAT
from rntp.data.tasks.rows import Row
from rntp.errors import ConfigError
from rntp.model.tokenizer import encode, prefix_ids
from rntp.types import Context, Task

_PLACE = "\N{WHITE SQUARE}prompt\N{WHITE SQUARE}"


class Renderer:
    """Renders tasks by a template (`data.tasks.template`), and says which are too long.

    horizon: tokens that a context has behind the prompt. context_tokens: of a context, at most.
    answer_tokens: that the policy may write; 0 where it writes none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        rule: Literal["exact", "math", "own"],
        *,
        horizon: int,
        context_tokens: int,
        answer_tokens: int,
    ) -> None:
        """Raises ConfigError for a chat where the tokenizer has no chat template."""
        self._tokenizer, self._rule = tokenizer, rule
        self._horizon, self._most = horizon, context_tokens
        self._answer_tokens = answer_tokens
        eos = tokenizer.eos_token_id
        self._end: list[int] = [eos] if isinstance(eos, int) else []
        self._head: list[int] = list(prefix_ids(tokenizer))
        self._tail: list[int] = []
        self._gap = ""
        if template.startswith(CHAT):
            self._before, self._after = self._chat(template.removeprefix(CHAT))
        else:
            self._before, _, after = template.removesuffix("{answer}").partition("{prompt}")
            # A tokenizer has the spaces before a word in the word's own token.
            self._after = after.rstrip(" ")
            self._gap = after[len(self._after) :]

    def context(self, row: Row, ordinal: int, visit: int, source: str) -> Context:
        """The context of a task. The caller asks `complaint` first."""
        prompt, answer = self._ids(row)
        filled = self._horizon - len(answer)
        fill = answer.new_full((filled,), int(answer[-1]))
        task = Task(
            answer=row.answer,
            num_tokens=len(answer),
            filled=filled,
            ended=bool(self._end),
            rule=self._rule,
            made=row.made,
            source=source,
        )
        return Context(
            ordinal=ordinal,
            document_id=task_id(row.prompt),
            token_ids=torch.cat([prompt, answer, fill]),
            title=source,
            visit=visit,
            task=task,
        )

    def complaint(self, row: Row) -> str:
        """Say why a task does not fit; "" where it does."""
        prompt, answer = self._ids(row)
        written = len(answer) - len(self._end)
        if len(answer) > self._horizon:
            return (
                f"its answer has {len(answer)} tokens with its end token, and reward.horizon is "
                f"{self._horizon}; raise it"
            )
        if 0 < self._answer_tokens < written:
            return (
                f"its answer has {written} tokens, and thought.answer_tokens is "
                f"{self._answer_tokens}, so that nobody could write it; raise it"
            )
        if len(prompt) + self._horizon > self._most:
            return (
                f"its prompt has {len(prompt)} tokens, and data.context_tokens {self._most} less "
                f"reward.horizon {self._horizon} leaves {self._most - self._horizon}; raise "
                "data.context_tokens"
            )
        return "" if len(answer) else "its answer has no token; give it one"

    def _ids(self, row: Row) -> tuple[Tensor, Tensor]:
        """Token ids of the prompt, and of the answer with its end token."""
        text = encode(self._tokenizer, self._before + row.prompt + self._after)
        prompt = torch.cat([_ids(self._head), text, _ids(self._tail)])
        answer = encode(self._tokenizer, self._gap + row.answer)
        return prompt, torch.cat([answer, _ids(self._end)])

    def _chat(self, message: str) -> tuple[str, str]:
        """What of the user's message stands around the prompt; the turns around it become ids."""
        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": _PLACE}], tokenize=False, add_generation_prompt=True
            )
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"data.tasks.template: {CHAT}… needs a tokenizer with a chat template ({error}); "
                "take a template without it, or an instruction-tuned model"
            ) from error
        before, found, after = str(text).partition(_PLACE)
        if not found:
            raise ConfigError(
                "data.tasks.template: the tokenizer's chat template changes what users say, so the "
                f"prompt cannot be found in it; take a template without {CHAT}"
            )
        # The template's own special tokens are meant; what a prompt spells is not.
        self._head, self._tail = self._special(before), self._special(after)
        own_before, _, own_after = message.partition("{prompt}")
        return own_before, own_after

    def _special(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def task_id(prompt: str) -> str:
    """Name a task by its prompt: in whichever split one is, all its copies are."""
    return f"task-{hashlib.sha256(prompt.encode()).hexdigest()[:24]}"


def _ids(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64)
