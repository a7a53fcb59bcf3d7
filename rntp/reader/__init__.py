"""Use a trained model: read a text and think where it pays, or write one and think on the way.

    reader = rntp.reader.Reader("my-model")
    for thought in reader.read(text).thoughts: …
    for piece in reader.generate("Once upon a time"): …

An exported folder is enough (`rntp ckpt export`); any other model of `rntp.load_model` will do,
with settings by hand.
"""

from rntp.reader.page import ReadPage, ReadThought
from rntp.reader.reader import Reader
from rntp.reader.writing import Written
from rntp.run.settings import Settings

__all__ = ["ReadPage", "ReadThought", "Reader", "Settings", "Written"]
