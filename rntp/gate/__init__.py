"""Where thinking pays: an estimate of the gain of a thought from what the model says without one.

hidden state, entropy → features → expected gain ± its error → worth the price of its tokens?
"""

from rntp.gate.along import GateAlong
from rntp.gate.gain_model import GainModel
from rntp.gate.gate import Gate
from rntp.gate.net import GainNet

__all__ = ["GainModel", "GainNet", "Gate", "GateAlong"]
