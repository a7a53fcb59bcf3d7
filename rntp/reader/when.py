"""Where to think: rules that look at what the model says of the next token anyhow."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rntp.errors import ConfigError
from rntp.gate import Gate
from rntp.run.settings import Settings

HELP = (
    "never, every:N (tokens), entropy:X (nats; where the next token is less certain than X), gate, "
    "or gate:PRICE (nats a thought token; where a thought is expected to gain more than it costs, "
    "and as long as pays best where the gate knows several lengths)"
)


@dataclass(frozen=True)
class Here:
    """What is known before a token. entropy: nats, of its prediction. since: tokens since the last
    thought, or since the start. hidden: [D], last hidden state of the token before. Where a memory
    is carried from piece to piece, entropy is the mean over the piece and hidden is empty."""

    entropy: Tensor
    since: int
    hidden: Tensor


# Whether to think before a token; or with how many tokens at most, 0 for none.
When = Callable[[Here], bool | int]


def most_tokens(said: bool | int, most: int) -> int:
    """Tokens of a thought that a rule asks for, 0 for none. most: of the model's thoughts."""
    if isinstance(said, bool):
        return most if said else 0
    return min(said, most)


def usual(spec: str) -> str:
    """Name the rule that is meant where none is given: where the next token is uncertain, or, for
    a model that carries a memory from piece to piece, at the end of every piece."""
    return "entropy:2" if Settings.beside(spec).piece is None else "every:1"


def parse_when(text: str, spec: str = "", least: int = 1) -> When:
    """Make a rule of its name. spec: of the model, whose folder holds the gate. least: tokens
    between two thoughts. Raises ConfigError.
    """
    name, _, value = text.partition(":")
    try:
        if text == "never":
            return lambda here: False
        if name == "every":
            every = int(value)
            if every < 1:
                raise ValueError
            return lambda here: here.since >= every
        if name == "entropy":
            bound = float(value)
            return lambda here: here.since >= least and float(here.entropy) > bound
        if name == "gate":
            price = float(value) if value else 0.0
            if Settings.beside(spec).piece is not None:
                raise ConfigError(
                    "--think gate: a gate looks at single tokens, and this model writes its "
                    "memories at the ends of pieces; take every:N or entropy:X"
                )
            gate = Gate.beside(spec)

            def length(here: Here) -> int:
                if here.since < least:
                    return 0
                return int(gate.lengths(here.hidden[None], here.entropy[None], price))

            return length
    except ValueError:
        pass
    raise ConfigError(f"--think {text}: write {HELP}")
