"""How a model was trained to think: what an exported folder says beside its weights."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.errors import ConfigError

FILE = "rntp.json"


@dataclass(frozen=True)
class Settings:
    """What a thought was in training, and how its continuation was read.

    context_tokens: of a page that the model saw. thought_tokens: of a thought, at most. horizon:
    tokens that a thought was judged by. window: tokens of the page that are left beside a thought,
    None where all are. min_prefix_tokens: before the first thought. temperature: of thoughts.
    piece: tokens of a piece, where a memory is carried from piece to piece; None elsewhere. mixing:
    predictions with a thought are mixed with those without, by the head beside the weights. tools:
    `thought.tools` of the run, where its thoughts may call some; else empty.
    """

    think_open: str = "<think>"
    think_close: str = "</think>"
    context_tokens: int = 1024
    thought_tokens: int = 32
    horizon: int = 16
    window: int | None = None
    min_prefix_tokens: int = 32
    temperature: float = 1.0
    piece: int | None = None
    mixing: bool = False
    tools: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> "Settings":
        """Those of a run."""
        tools = config.thought.tools
        return cls(
            config.model.think_open,
            config.model.think_close,
            config.data.context_tokens,
            config.thought.thought_tokens,
            config.reward.horizon,
            config.reading.window,
            config.earliest_position,
            config.thought.temperature,
            config.reading.piece,
            bool(config.reading.mixing),
            tools.model_dump(mode="json") if tools.use else {},
        )

    @classmethod
    def beside(cls, spec: str) -> "Settings":
        """Those of an exported folder, or defaults for any other model. Raises ConfigError where
        the file is no such file."""
        path = Path(spec) / FILE
        if not path.is_file():
            return cls()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            known = {own.name for own in fields(cls)}
            return cls(**{name: value for name, value in found.items() if name in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}); export the run again (rntp ckpt export)"
            ) from error

    def text(self) -> str:
        """As `FILE` holds them."""
        return json.dumps(asdict(self), indent=2) + "\n"
