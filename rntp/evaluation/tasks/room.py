"""How much of a prompt a model can see beside thought and answer, and what is told of the rest."""

from dataclasses import dataclass

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.tasks.thinking import Ids
from rntp.model import LanguageModel


@dataclass(slots=True)
class Cuts:
    """Counts the prompts of a task, and those that lost their beginning. longest: tokens of one."""

    prompts: int = 0
    cut: int = 0
    longest: int = 0

    def shorten(self, text: Ids, room: int) -> Ids:
        """Take the last `room` tokens of a prompt, and count it."""
        self.prompts += 1
        self.cut += len(text) > room
        self.longest = max(self.longest, len(text))
        return text[-room:]

    def told(self, spec: str) -> str:
        """Say how many were cut; an empty text where none was."""
        if not self.cut:
            return ""
        return (
            f"{self.cut} of {self.prompts} prompts are longer than {spec} can see beside thought "
            f"and answer and lost their beginning (the longest has {self.longest} tokens): their "
            "scores are not those of the whole prompts"
        )


def thought_span(config: Config) -> int:
    """Count the most tokens of a thought with its markers."""
    return config.thought.thought_tokens + 2


def room_for_text(model: LanguageModel, config: Config, answer_tokens: int, *, think: bool) -> int:
    """Count the tokens of a prompt that the model sees before a thought and so long an answer.

    It is the model's own limit: what the run trained on may be much shorter. Raises ConfigError
    where not a single one is left.
    """
    beyond = answer_tokens + (thought_span(config) if think else 0)
    if model.max_span - beyond < 1:
        raise ConfigError(
            f"a thought and an answer of {answer_tokens} tokens reach {beyond} positions, and "
            f"{model.spec} sees {model.max_span}; choose tasks with shorter answers "
            "(max_gen_toks), or lower thought.thought_tokens"
        )
    return model.max_span - beyond
