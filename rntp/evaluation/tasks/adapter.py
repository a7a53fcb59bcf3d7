"""The model as lm-evaluation-harness asks for it. Imports the harness, so import it late."""

from typing import Any

from lm_eval.api.model import TemplateLM

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.tasks.answers import Question, Writing, answers
from rntp.evaluation.tasks.choices import likelihoods
from rntp.evaluation.tasks.room import Cuts
from rntp.model import LanguageModel
from rntp.model.tokenizer import encode, prefix_ids


class ThinkingLM(TemplateLM):
    """Ranks given answers and writes its own; thinks before it does if `thoughts` is above 0.

    Given answers are ranked by so many thoughts, one of its own is written after a single thought.
    Text is encoded as pages are: a marker that a question spells is letters.
    """

    def __init__(self, model: LanguageModel, config: Config, thoughts: int) -> None:
        super().__init__()
        self._model = model
        self._config = config
        self._thoughts = thoughts
        self.cuts = Cuts()

    @property
    def eot_token_id(self) -> int:
        begin = prefix_ids(self._model.tokenizer)
        end = begin[0] if begin else self._model.tokenizer.eos_token_id
        assert isinstance(end, int)
        return end

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        return [int(i) for i in encode(self._model.tokenizer, string)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        begin = prefix_ids(self._model.tokenizer)
        choices = []
        for _strings, text, continuation in requests:
            # For an empty text the harness has put the beginning there itself.
            bare = text[1:] if begin and text[:1] == [begin[0]] else text
            choices.append(((*begin, *bare), tuple(continuation)))
        found = likelihoods(
            self._model, self._config, choices, thoughts=self._thoughts, cuts=self.cuts
        )
        return [(each.logprob, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise ConfigError("a task of perplexities has no answer to think before; use `rntp eval`")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        begin = prefix_ids(self._model.tokenizer)
        questions = []
        for text, wanted in (request.args for request in requests):
            ids = (*begin, *self.tok_encode(text)) or (self.eot_token_id,)
            questions.append(Question(ids, Writing.of(wanted)))
        return answers(
            self._model, self._config, questions, think=self._thoughts > 0, cuts=self.cuts
        )
