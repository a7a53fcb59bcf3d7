"""The rows of a step that only all ranks together say something about: its pages, its positions,
and what each thought earned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rntp.gate.features import WIDTH
from rntp.types import Page


@dataclass(frozen=True)
class StepTable:
    """Pages of a step, or of a rank's share of it, in order; P positions, G thoughts of each.

    reward_PG: of the scheme that drives. driving_PG: the same less a penalty. gain_PG: nats per
    continuation token. sensitivity_P: see `rntp.objective.rounding`. All float64, on the CPU.
    mismatch_max: nats, the farthest that sampler and trainer are apart on a sampled token.
    share_tokens: of the contexts of each share. verdict_PG: of judges outside of the run, NaN where
    one is missing; [P, 0] where none is asked.
    """

    pages: Sequence[Page]
    reward_PG: Tensor
    driving_PG: Tensor
    gain_PG: Tensor
    sensitivity_P: Tensor
    mismatch_max: float
    share_tokens: Sequence[int]
    verdict_PG: Tensor

    def packed(self) -> dict[str, Tensor]:
        """Give all of it as tensors of which those of other shares differ by their rows only."""
        pages = self.pages
        of_pages = [
            (p.ordinal, p.visit, -1 if p.replay_of is None else p.replay_of, p.length)
            for p in pages
        ]
        sizes = [len(page.positions) for page in pages]
        places = [p for page in pages for p in page.positions]
        before_P2 = torch.cat([torch.zeros(0, 2, dtype=torch.int64), *(p.before_K2 for p in pages)])
        entropy_P = torch.cat([torch.zeros(0), *(p.entropy_K for p in pages)])
        nll_P = torch.cat([torch.zeros(0), *(p.nll_K for p in pages)])
        return {
            "pages": torch.tensor(of_pages, dtype=torch.int64).view(len(pages), 4),
            "sizes": torch.tensor(sizes, dtype=torch.int64),
            "places": torch.tensor(places, dtype=torch.int64),
            "before": before_P2,
            "features": torch.cat(
                [torch.zeros(0, WIDTH), *(p.features_KF for p in pages if len(p.features_KF))]
            ),
            "expected": torch.stack([entropy_P, nll_P], dim=1).double(),
            "sensitivity": self.sensitivity_P,
            "thoughts": torch.stack([self.reward_PG, self.driving_PG, self.gain_PG], dim=1),
            "verdicts": self.verdict_PG,
            "mismatch": torch.tensor([self.mismatch_max], dtype=torch.float64),
            "share_tokens": torch.tensor(self.share_tokens, dtype=torch.int64),
        }

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Tensor]]) -> "StepTable":
        """Join what `packed` gave of all shares of a step, in order."""
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        sizes, known = whole["sizes"].tolist(), whole["features"]
        pages = [
            Page(ordinal, visit, None if again < 0 else again, length, at, before, *both, own)
            for (ordinal, visit, again, length), at, before, both, own in zip(
                whole["pages"].tolist(),
                (tuple(at.tolist()) for at in whole["places"].split(sizes)),
                whole["before"].split(sizes),
                ((part[:, 0], part[:, 1]) for part in whole["expected"].split(sizes)),
                known.split(sizes) if len(known) else [known] * len(sizes),
                strict=True,
            )
        ]
        reward, driving, gain = whole["thoughts"].unbind(dim=1)
        return cls(
            pages,
            reward,
            driving,
            gain,
            whole["sensitivity"],
            float(whole["mismatch"].max()),
            whole["share_tokens"].tolist(),
            whole["verdicts"],
        )
