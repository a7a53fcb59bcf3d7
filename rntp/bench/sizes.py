"""Names and sizes of the benches; light, because the command line reads it."""

from dataclasses import asdict, dataclass

NAMES = ("head", "tree", "rollout", "step")

# One size at a time around the default step.
CURVE = {
    "positions": [1, 2, 4, 8],
    "thoughts": [2, 4, 8, 16],
    "context": [128, 256, 512],
    "budget": [8, 16, 32],
    "docs": [1, 2, 4],
}


def command_line(argv: list[str]) -> str:
    """As a user would type it, without the folder of the program."""
    return " ".join(["rntp", *argv[1:]])


@dataclass(frozen=True)
class Sizes:
    """Sizes of a step, in the symbols of the token tree.

    context: L, tokens of a page. positions: K of each. thoughts: G at each position. budget: T,
    tokens of a thought. horizon: H, tokens of the continuation. docs: pages of the step. window: w,
    tokens of the page that a continuation is read behind, with the thought; -1 for all.
    """

    context: int = 256
    positions: int = 4
    thoughts: int = 8
    budget: int = 24
    horizon: int = 16
    docs: int = 1
    window: int = -1

    @property
    def branches(self) -> int:
        """Thoughts of the step."""
        return self.docs * self.positions * self.thoughts

    def as_dict(self) -> dict[str, int]:
        """Return the fields by name, for JSON."""
        return asdict(self)


NAMED = {
    "L256": Sizes(),
    "L1024": Sizes(context=1024, positions=8, budget=32),
    "L2048": Sizes(context=2048, positions=16, budget=128, horizon=32),
}
"""Steps of sizes that people use; L2048 takes minutes a repeat on a CPU."""
