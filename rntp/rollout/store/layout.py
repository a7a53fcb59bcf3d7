"""Names of a store's files, and the small facts that travel in them."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rntp.rollout.store.files import Files
from rntp.rollout.store.sealed import Refused, seal, unseal

FORMAT = 2
HEAD, RUN, MODEL = "head.json", "run.json", "model"
DIGITS = 16  # of a SHA-256 in a name


@dataclass(frozen=True)
class Unit:
    """A part of a step, as it is leased. work: digest of the step's contexts."""

    step: int
    work: str
    part: int

    @property
    def folder(self) -> str:
        """Of its leases and rollouts, within theirs."""
        return f"step_{self.step:08d}-{self.work}"

    def lease(self, attempt: int) -> str:
        """Who samples it, at which attempt, from 1."""
        return f"leases/{self.folder}/part_{self.part:03d}.a{attempt:03d}"

    def refusal(self, attempt: int) -> str:
        """Why the trainer took nothing of that attempt."""
        return f"{self.lease(attempt)}.refused"

    def rollouts(self, attempt: int, sampler: str) -> str:
        """What that attempt gave."""
        return f"rollouts/{self.folder}/part_{self.part:03d}.a{attempt:03d}.{sampler}"


def work_name(step: int, work: str) -> str:
    """Name the contexts of a step."""
    return f"work/step_{step:08d}-{work}"


def weights_name(version: int, digest: str) -> str:
    """Name the folder of a policy version."""
    return f"weights/v{version:08d}-{digest}"


def sampler_name(sampler: str) -> str:
    """Name a sampler's sign of life."""
    return f"samplers/{sampler}"


@dataclass(frozen=True)
class Head:
    """What samplers look at first. run: digest of what is trained. version, digest: of the newest
    weights. steps: those that may be sampled, with the digests of their work. parts: of a step.
    state: open, or done once the run needs no more.
    """

    run: str
    version: int
    digest: str
    steps: dict[int, str] = field(default_factory=dict)
    parts: int = 1
    state: str = "open"

    def units(self) -> list[Unit]:
        """All parts that may be sampled, in the order in which they are needed."""
        return [Unit(s, self.steps[s], p) for s in sorted(self.steps) for p in range(self.parts)]

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Head":
        """Read what `facts` gave. Raises Refused for another format."""
        if facts.get("format") != FORMAT:
            raise Refused("foreign", f"the store has format {facts.get('format')}, not {FORMAT}")
        known = {name: facts[name] for name in ("run", "version", "digest", "parts", "state")}
        return cls(**known, steps={int(s): str(w) for s, w in facts["steps"].items()})


def put_facts(files: Files, name: str, facts: dict[str, Any], key: bytes) -> None:
    """Write facts as a sealed file, over what was there."""
    files.put(name, seal(name, json.dumps(facts).encode(), key))


def put_new_facts(files: Files, name: str, facts: dict[str, Any], key: bytes) -> bool:
    """Write facts as a sealed file unless there is one."""
    return files.put_new(name, seal(name, json.dumps(facts).encode(), key))


def get_facts(files: Files, name: str, key: bytes) -> dict[str, Any] | None:
    """Read facts; None without such a file. Raises Refused and OSError."""
    data = files.get(name)
    if data is None:
        return None
    try:
        facts = json.loads(unseal(name, data, key))
    except ValueError as error:
        raise Refused("malformed", f"{name} holds no facts") from error
    if not isinstance(facts, dict):
        raise Refused("malformed", f"{name} holds no facts")
    return facts
