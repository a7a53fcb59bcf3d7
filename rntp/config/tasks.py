"""Tasks in place of pages: where prompt and answer stand, how they are put, and who grades."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rntp.config.section import Section

CHAT = "chat:"


class Tasks(Section):
    prompt: str = "prompt"
    """Field of the rows that holds the prompt."""
    answer: str = "answer"
    """Field of the rows that holds the answer: a text, or a number."""
    answer_after: str = ""
    """What stands behind the last such mark in that field is the answer (`####`); "" takes all."""
    template: str = "{prompt} {answer}"
    """The text that model and thought see. The thought stands before the answer, and with it the
    spaces before `{answer}`. `chat:…{prompt}…`: a message of the user, in the tokenizer's chat
    template."""
    rule: Literal["own", "exact", "math"] = "own"
    """Who says whether an answer is right. exact: the text, upper and lower case, white space and
    a full stop aside. math: the value, by math-verify. own: reasoning-gym's scorer of its own
    tasks, exact elsewhere."""
    gym: dict[str, dict[str, Any]] = Field(default={})
    """Settings of reasoning-gym's generators, by name: `{chain_sum: {max_terms: 3}}`."""

    @model_validator(mode="after")
    def _has_places(self) -> Self:
        text = self.template
        if text.count("{prompt}") != 1:
            raise ValueError(f"template {text!r}: give {{prompt}} one place in it")
        if text.startswith(CHAT) and "{answer}" in text:
            raise ValueError(
                f"template {text!r}: in a chat the answer is the reply; take {{answer}} away"
            )
        if not text.startswith(CHAT) and not text.endswith("{answer}"):
            raise ValueError(
                f"template {text!r}: end it with {{answer}}; its end token comes behind it"
            )
        return self
