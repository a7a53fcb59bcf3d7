"""Where to think: rules that look at what the model expects of the next token anyhow."""

from collections.abc import Callable

from rntp.errors import ConfigError

# (entropy of the next token in nats, tokens since the last thought or the start) -> think here?
When = Callable[[float, int], bool]

HELP = "never, every:N (tokens), or entropy:X (nats; where the next token is less certain than X)"


def parse_when(text: str, least: int = 1) -> When:
    """Make a rule of its name. least: tokens between two thoughts. Raises ConfigError."""
    name, _, value = text.partition(":")
    try:
        if name == "never" and not value:
            return lambda entropy, since: False
        if name == "every":
            every = int(value)
            if every < 1:
                raise ValueError
            return lambda entropy, since: since >= every
        if name == "entropy":
            bound = float(value)
            return lambda entropy, since: entropy > bound and since >= least
    except ValueError:
        pass
    raise ConfigError(f"--think {text}: write {HELP}")
