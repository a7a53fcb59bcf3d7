"""The optimizer: AdamW, its rate and its constants."""

from typing import Annotated

from pydantic import Field

from rntp.config.choice import Choice
from rntp.config.choices import SCHEDULES, Fraction, NonNegative, Weight
from rntp.config.section import Section


class AdamW(Section):
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the first and of the second moment."""
    weight_decay: Weight = 0.0
    """Decoupled; not applied to vectors (norms, biases)."""


class Optim(Section):
    lr: Annotated[float, Field(gt=0)] = 1e-6
    """Peak learning rate of AdamW."""
    schedule: Annotated[Choice, SCHEDULES] = SCHEDULES.choice("constant")
    """After the warm-up."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up."""
    adamw: AdamW = AdamW()
    """The optimizer's own constants: `{betas: [0.9, 0.95], weight_decay: 0.1}`."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Global gradient norm is clipped to this."""
