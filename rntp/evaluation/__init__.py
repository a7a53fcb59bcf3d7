"""What thinking is worth on held-out pages: the same continuations with and without a thought.

The four cells are {before, after training} × {no-think, think}. Contexts, positions and random
numbers are the same for every evaluation of a run, so that all differences are paired; intervals
are bootstrapped over documents, the unit that is drawn independently.
"""

from rntp.evaluation.compare import compare as compare
from rntp.evaluation.measure import evaluate as evaluate
from rntp.evaluation.target import evaluate_target as evaluate_target
