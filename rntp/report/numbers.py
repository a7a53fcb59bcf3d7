"""Numbers as people read them. None (not measured, not finite) is an en dash."""

from collections.abc import Sequence

MISSING = "\N{EN DASH}"


def number(value: float | None, digits: int = 3) -> str:
    """0.412; with a true minus sign."""
    if value is None:
        return MISSING
    # `z` takes the sign off what rounds to zero: a loss of −0.000 is none.
    return f"{value:z.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 3) -> str:
    """+0.412."""
    if value is None:
        return MISSING
    return f"{value:+z.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """+0.020 to +0.080."""
    if bounds is None or None in bounds:
        return MISSING
    return f"{signed(bounds[0], digits)} to {signed(bounds[1], digits)}"


def includes_zero(bounds: Sequence[float | None] | None) -> bool | None:
    """Tell whether 0 lies in the interval; None when there is no interval."""
    if bounds is None:
        return None
    low, high = bounds
    return None if low is None or high is None else low <= 0 <= high


def clip(text: str, limit: int) -> str:
    """The first `limit` characters, and how many were left out."""
    rest = len(text) - limit
    return text if rest <= 0 else f"{text[:limit]} … [{rest:,} more characters]"


def visible(token: str, keep_breaks: bool = False) -> str:
    """A token with a sign for each line break, so that its colour has something to stand on."""
    return token.replace("\n", "↵\n" if keep_breaks else "↵")
