"""The trainer's side of a store: publish weights, open steps, take in what samplers bring."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.rollout.store.checks import Expected
from rntp.rollout.store.files import Files, UrlFiles
from rntp.rollout.store.layout import (
    HEAD,
    MODEL,
    RUN,
    Head,
    Unit,
    get_facts,
    put_facts,
    put_new_facts,
    weights_name,
    work_name,
)
from rntp.rollout.store.leases import Clock, Lookout
from rntp.rollout.store.manifest import Version
from rntp.rollout.store.publishing import Publisher, Written
from rntp.rollout.store.records import unpack_rollouts
from rntp.rollout.store.sealed import Refused, key_of_environment, seal, unseal
from rntp.rollout.store.waiting import Say, Waiting
from rntp.rollout.store.weights import canary, policy_weights
from rntp.rollout.store.work import digest_of_work, pack_contexts, parts_of
from rntp.types import Context, Rollout

AGAIN = 3  # times that a version is written again for samplers which cannot read it


class Taken(NamedTuple):
    """A file of rollouts that a step uses."""

    name: str
    sha256: str


@dataclass
class Collected:
    """What samplers brought for a step. attempts, refused: how many, over all parts. canary: the
    largest distance, nats."""

    rollouts: dict[int, list[Rollout]] = field(default_factory=dict)
    taken: dict[int, Taken] = field(default_factory=dict)
    attempts: int = 0
    refused: int = 0
    canary: float = 0.0


class Desk:
    """One run's side of a store. say: a line for people, with its level.

    clock: monotonic. pause: between two looks, seconds.
    """

    def __init__(
        self,
        files: Files,
        config: Config,
        model: LanguageModel,
        say: Say,
        clock: Clock = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.versions: dict[int, str] = {}
        self._canaries: dict[int, Tensor] = {}
        self._files, self._config, self._model, self._say = files, config, model, say
        self._key, self._clock = key_of_environment(), clock
        self._publisher = Publisher(files, self._key, config.rollout.samplers.whole_every)
        self._again = 0
        self._work: dict[int, tuple[str, Sequence[Context]]] = {}
        self._refused: set[str] = set()
        self._tidied = -1
        self._dtype = model.head.dtype
        seconds = config.rollout.samplers.lease_s
        self._lookout = Lookout(files, self._key, seconds, clock)
        self._waiting = Waiting(config.rollout.samplers.wait_s, say, clock, pause)

    def open(self, run_id: str, check: Check) -> None:
        """Claim the store for this run, with its config and the model's. Raises ConfigError where
        it is another run's. run_id: of the run's folder."""
        config, digest, model = self._config, self._config.digest(), _model_files(self._model)

        def claim() -> None:
            there = get_facts(self._files, RUN, self._key)
            if there and (there.get("digest"), there.get("id")) != (digest, run_id):
                raise ConfigError(
                    f"the store {self._files.where} is of another run ({there.get('name')}); set "
                    "rollout.samplers.store to another place, or remove it"
                )
            # Whom the run tells is nobody's business here.
            sent = config.model_dump(mode="json", exclude={"log"})
            facts = {"digest": digest, "id": run_id, "name": config.run.name, "config": sent}
            put_facts(self._files, RUN, facts, self._key)
            for name, data in model.items():
                full = f"{MODEL}/{name}"
                self._files.put(full, seal(full, data, self._key))
            put_facts(self._files, f"{MODEL}/files.json", {"names": sorted(model)}, self._key)

        try:
            self._waiting.through(claim, "open the store", check)
            told = f"thoughts come from samplers of {self._files.where}"
            self._say(f"{told}, up to {config.rollout.samplers.max_age} updates old", "info")
            if isinstance(self._files, UrlFiles) and not self._files.conditional:
                self._say(
                    f"{self._files.where} knows no conditional writes: a part may be sampled twice",
                    "info",
                )
        except Refused as refusal:
            raise ConfigError(
                f"{RUN} in the store {self._files.where} is not used ({refusal}); set "
                "$RNTP_STORE_KEY to the key that it was sealed with, or rollout.samplers.store to "
                "another place"
            ) from refusal

    def publish(
        self, version: int, placement: dict[str, Tensor], check: Check
    ) -> tuple[Written, float]:
        """Write the weights as they are: the policy after step `version`. What that took, with the
        seconds."""
        probe = canary(self._model, self._config.run.seed)
        began_s = self._clock()
        weights = policy_weights(self._model)
        draft = self._publisher.draft(version, weights, placement, probe)
        put = partial(self._publisher.put, draft)
        written = self._waiting.through(put, "publish weights", check)
        # Later ones are of a line that the run has gone back from.
        self.versions = {v: digest for v, digest in self.versions.items() if v < version}
        self.versions[version] = draft.version.digest
        self._canaries[version] = probe
        self._again = 0
        return written, self._clock() - began_s

    def offer(self, version: int, steps: dict[int, Sequence[Context]], check: Check) -> None:
        """Open steps for samplers, with the newest weights; all others are closed."""
        for step, contexts in steps.items():
            payload = pack_contexts(contexts)
            work = digest_of_work(payload)
            if self._work.get(step, ("", ()))[0] != work:
                name = work_name(step, work)
                data = seal(name, payload, self._key)
                self._waiting.through(
                    partial(self._files.put_new, name, data), "open a step", check
                )
            self._work[step] = work, contexts
        self._work = {step: self._work[step] for step in steps}
        self._put_head(version, "open", check)

    def finish(self, version: int, check: Check) -> None:
        """Tell samplers that the run needs no more of them."""
        self._work = {}
        self._put_head(version, "done", check)

    def work(self, step: int) -> str:
        """The digest of an open step's contexts."""
        return self._work[step][0]

    def collect(self, step: int, check: Check) -> Collected:
        """Wait until samplers have brought every part of an open step.

        Raises SamplersLost once nobody has given a sign of life for `rollout.samplers.wait_s`.
        """
        work, contexts = self._work[step]
        parts = dict(enumerate(self._parts(len(contexts))))
        units = {part: Unit(step, work, part) for part in parts}
        found = Collected()
        self._waiting.begin()
        while missing := [units[part] for part in parts if part not in found.rollouts]:
            check()
            try:
                lives = self._look(missing, contexts, parts, found)
                if len(found.rollouts) < len(parts):
                    self._write_again()
            except OSError as error:
                self._waiting.away(error)
                continue
            if len(found.rollouts) == len(parts):
                break
            self._waiting.wait(lives, partial(self._who_is_missing, step, missing, len(parts)))
        return found

    def read(self, step: int, taken: Sequence[Taken], check: Check) -> list[Rollout] | None:
        """Read again what a step has used before; None where a file is not what it was."""
        _, contexts = self._work[step]
        parts = self._parts(len(contexts))
        if len(taken) != len(parts):
            return None
        rollouts: list[Rollout] = []
        for part, file in zip(parts, taken, strict=True):
            data = self._waiting.through(
                partial(self._files.get, file.name), "read stored rollouts", check
            )
            if data is None or sha256(data).hexdigest() != file.sha256:
                return None
            mine = [contexts[n] for n in part]
            rollouts += unpack_rollouts(unseal(file.name, data, self._key), mine)[0]
        return rollouts

    def tidy(self, step: int, version: int) -> None:
        """Remove what no start of the run can need: rollouts up to a step, weights before a
        version but for those that it is written as changes of. What cannot be removed stays."""
        try:
            first = self._first_needed(version)
            for number in [v for v in self.versions if v < first]:
                self._files.remove(weights_name(number, self.versions[number]))
                del self.versions[number]
                self._canaries.pop(number, None)
            self._publisher.forget(first)
            if step != self._tidied:  # since the last checkpoint
                self._remove_up_to(step, first)
                self._tidied = step
        except OSError as error:
            self._say(f"the store could not be tidied up ({error})", "warning")

    def _first_needed(self, version: int) -> int:
        """The number of the version that those from `version` on go back to."""
        kept = [Version(v, digest) for v, digest in self.versions.items() if v >= version]
        return min([version, *map(self._publisher.anchor, kept)])

    def _remove_up_to(self, step: int, version: int) -> None:
        """The same by what is listed: what earlier starts have left, too."""
        for folder in ("work", "leases", "rollouts"):
            for name in self._files.names(folder):
                if _number(name) <= step:
                    self._files.remove(f"{folder}/{name}")
        for name in self._files.names("weights"):
            if _number(name) < version:
                self._files.remove(f"weights/{name}")

    def _write_again(self) -> None:
        """Write the newest weights whole where a sampler could not read them."""
        if self._again >= AGAIN or (why := self._publisher.complaint()) is None:
            return
        self._again += 1
        self._say(f"the newest weights are written again, whole: a sampler says {why}", "warning")
        self._publisher.answer()

    def _look(
        self,
        missing: Sequence[Unit],
        contexts: Sequence[Context],
        parts: dict[int, range],
        found: Collected,
    ) -> bool:
        """Take in what is there; whether anybody gives signs of life."""
        lives = False
        for unit in missing:
            newest = self._lookout.newest(unit)
            if newest is None:
                continue
            lives = lives or not self._lookout.lost(newest)
            for attempt in range(1, newest.attempt + 1):
                holder = self._holder(unit, attempt)
                if self._take(
                    unit, attempt, holder, [contexts[n] for n in parts[unit.part]], found
                ):
                    found.attempts += attempt - 1
                    lives = True
                    break
        return lives

    def _take(
        self,
        unit: Unit,
        attempt: int,
        holder: str,
        contexts: Sequence[Context],
        found: Collected,
    ) -> bool:
        """Take one attempt's rollouts, if they are there and what was asked for."""
        name = unit.rollouts(attempt, holder)
        if name in self._refused:
            return False
        data = self._files.get(name)
        if data is None:
            return False
        try:
            expected = self._expected()
            rollouts, facts, tensors = unpack_rollouts(unseal(name, data, self._key), contexts)
            expected.age(unit, facts)
            distance = expected.canary(facts, tensors)
            expected.check(rollouts, contexts)
        except Refused as refusal:
            self._refused.add(name)
            found.refused += 1
            self._say(f"refused {name}: {refusal}; it is sampled again", "warning")
            put_new_facts(self._files, unit.refusal(attempt), {"why": str(refusal)}, self._key)
            return False
        found.rollouts[unit.part] = rollouts
        found.taken[unit.part] = Taken(name, sha256(data).hexdigest())
        found.canary = max(found.canary, distance)
        return True

    def _expected(self) -> Expected:
        model = self._model
        return Expected(
            self._config,
            model.vocabulary,
            model.think_close_id,
            self._dtype,
            self.versions,
            self._canaries,
        )

    def _holder(self, unit: Unit, attempt: int) -> str:
        try:
            facts = get_facts(self._files, unit.lease(attempt), self._key)
        except Refused:
            return "?"
        return str((facts or {}).get("sampler", "?"))

    def _who_is_missing(self, step: int, missing: Sequence[Unit], parts: int) -> str:
        """Tell for whom the run waits."""
        told = []
        for unit in missing:
            newest = self._lookout.newest(unit)
            if newest is None:
                told.append(f"nobody has taken part {unit.part + 1}")
                continue
            state = "is silent" if self._lookout.lost(newest) else "has it"
            told.append(f"part {unit.part + 1}: {newest.holder} {state}")
        return f"step {step} lacks {len(missing)} of {parts} parts ({'; '.join(told)})"

    def _parts(self, contexts: int) -> list[range]:
        return parts_of(contexts, self._config.contexts_per_lease)

    def _put_head(self, version: int, state: str, check: Check) -> None:
        steps = {step: work for step, (work, _) in self._work.items()}
        sizes = {len(self._parts(len(contexts))) for _, contexts in self._work.values()}
        head = Head(
            self._config.digest(),
            version,
            self.versions[version],
            steps,
            max(sizes, default=1),
            state,
        )
        self._waiting.through(
            lambda: put_facts(self._files, HEAD, head.facts(), self._key), "open steps", check
        )


def _model_files(model: LanguageModel) -> dict[str, bytes]:
    """Config and tokenizer as transformers reads them; the weights travel by version."""
    with TemporaryDirectory() as folder:
        model.hf.config.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}


def _number(name: str) -> int:
    """Of the step or version that a file's name begins with."""
    digits = name.removeprefix("step_").removeprefix("v")[:8]
    return int(digits) if digits.isdigit() else 1 << 40
