"""A file of lines that another process, or another thread, writes to while it is read."""

import json
from pathlib import Path

_MOST_AT_ONCE = 1 << 24  # bytes


class LineTail:
    """Reads what has been added to a file since the last time, line by line.

    A last line without its newline waits until it is whole. A file that was replaced by another or
    has become shorter, as a resume does that forgets steps, is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        """path: need not be there yet."""
        self._path = path
        self._offset = 0
        self._inode = 0
        self.restarted = False
        """Whether the last look began at the beginning, so that earlier lines count no more."""

    def lines(self) -> list[bytes]:
        """Return the new lines, some 16 MB of them at most; [] where none is new.

        Raises OSError but for a missing file.
        """
        try:
            with self._path.open("rb") as file:
                facts = self._path.stat()
                self.restarted = facts.st_ino != self._inode or facts.st_size < self._offset
                if self.restarted:
                    self._inode, self._offset = facts.st_ino, 0
                file.seek(self._offset)
                data = file.read(_MOST_AT_ONCE)
                if len(data) == _MOST_AT_ONCE and b"\n" not in data:
                    data += file.readline()  # one line that is longer
        except FileNotFoundError:
            self.restarted = self._inode != 0
            self._inode = self._offset = 0
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.split(b"\n")[:-1]


class Tail(LineTail):
    """Reads the objects that have been added to a JSON Lines file since the last time."""

    def read(self) -> list[dict]:
        """Return the objects of the new lines, as `lines`; what is no JSON object is left out."""
        return [row for row in map(json_object, self.lines()) if row is not None]


def json_object(line: bytes) -> dict | None:
    """Return the object of a line; None where it holds something else."""
    if not line:
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
