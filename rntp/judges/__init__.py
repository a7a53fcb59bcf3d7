"""Judges outside of the run: models behind an endpoint that grade what the policy answers.

    case (page, answer, truth) → messages → endpoint → verdict P(yes) → panel → reward `judge`

A judge can be fooled, so an audit with known attacks belongs to every run that trains on one. A
verdict that does not come is missing, and never a 0.
"""

from rntp.judges.panel import Panel
from rntp.judges.prompts import Case

__all__ = ["Case", "Panel"]
