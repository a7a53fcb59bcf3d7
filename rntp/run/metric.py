"""What is said of one key of metrics.jsonl."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One key of metrics.jsonl.

    key: as written; `<scheme>` and `<class>` stand for names. unit: of the number. meaning: what
    is counted. reading: how to read it. bad: what should make you look; "" where nothing does.
    when: which runs write it; "" is every run that samples thoughts.
    """

    key: str
    unit: str
    meaning: str
    reading: str = ""
    bad: str = ""
    when: str = ""

    def matches(self, key: str) -> bool:
        """Tell whether a key of a run is this one."""
        pattern = re.sub(r"<\w+>", "[^/]+", re.escape(self.key).replace(r"\<", "<"))
        return re.fullmatch(pattern.replace(r"\>", ">"), key) is not None
