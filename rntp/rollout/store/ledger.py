"""Which files of rollouts each step has used, written down before it uses them.

    run.dir/sampled/step_00000007.json
    run.dir/sampled/run_id               whose store it is

A start that does a step again uses the same files, so that it does the same, although no engine
samples the same twice on every machine.
"""

import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from rntp.runtime.files import write_json, write_text_atomic

FOLDER = "sampled"


@dataclass(frozen=True)
class Entry:
    """A step's files, by name and SHA-256. work: digest of its contexts. metrics: of its record."""

    step: int
    work: str
    files: tuple[tuple[str, ...], ...]
    metrics: dict[str, float | str]

    @property
    def digest(self) -> str:
        """Hash of names and hashes: SHA-256, 16 digits."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:16]


class Ledger:
    """The ledger of one run folder. last: the entry of the step that was sampled last."""

    def __init__(self, run_dir: Path) -> None:
        self.last: Entry | None = None
        self._folder = run_dir / FOLDER

    def run_id(self) -> str:
        """A name that no other run folder has, and that its copies keep."""
        path = self._folder / "run_id"
        if not path.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def read(self, step: int) -> Entry | None:
        """The entry of a step; None without a whole one."""
        try:
            facts = json.loads(self._path(step).read_text(encoding="utf-8"))
            files = tuple(tuple(map(str, file)) for file in facts["files"])
            return Entry(facts["step"], facts["work"], files, facts["metrics"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, entry: Entry) -> None:
        """Keep an entry, over an earlier one of the step."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entry.metrics["rollout/digest"] = entry.digest
        facts = {"step": entry.step, "work": entry.work, "files": [list(f) for f in entry.files]}
        write_json(self._path(entry.step), {**facts, "metrics": entry.metrics})
        self.last = entry

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}.json"
