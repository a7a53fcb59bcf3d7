"""A sampler: looks what there is to do in a store, does it, and looks again."""

import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from rntp import __version__
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model.opening import open_model
from rntp.placement.placer import training_placer
from rntp.placement.records import Record, open_record
from rntp.rollout import Check, Engine, no_check
from rntp.rollout.interleaved import open_training_engine
from rntp.rollout.store.fetching import Fetcher
from rntp.rollout.store.files import Files
from rntp.rollout.store.layout import HEAD, MODEL, RUN, Head, Unit, get_facts, work_name
from rntp.rollout.store.leases import Clock, Leases
from rntp.rollout.store.records import pack_rollouts
from rntp.rollout.store.sealed import Refused, key_of_environment, seal, unseal
from rntp.rollout.store.weights import (
    Published,
    canary,
    check_loaded,
    policy_weights,
    take_exactly,
)
from rntp.rollout.store.work import parts_of, unpack_contexts
from rntp.rollout.tool_calls import serving
from rntp.rollout.vllm.engine import running, vllm_of
from rntp.runtime.faults import fault_point
from rntp.types import Context

Did = Literal["sampled", "nothing", "done"]
IN_A_ROW = (
    3  # results that the trainer refuses, or weights that do not load: then something is wrong
)


class Sampler:
    """Samples for whichever run has the store, until that is done.

    name: of this start of it alone. say: a line for people. check: called often; raises to stop.
    device: instead of `model.device` of the run's config.
    """

    def __init__(
        self,
        files: Files,
        name: str,
        *,
        say: Callable[[str], None],
        check: Check = no_check,
        device: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.name = name
        self._files, self._say, self._check, self._device = files, say, check, device
        self._key, self._clock = key_of_environment(), clock
        self._fetcher = Fetcher(files, self._key, self._tell)
        self._open = ExitStack()
        self._bench: Bench | None = None
        self._leases: Leases | None = None
        self._step: tuple[str, list[Context]] = "", []
        self._failures: list[str] = []  # of loading, in a row
        self._told = ""

    def once(self) -> Did:
        """Look, and sample one part if there is one.

        Raises ConfigError where this sampler cannot do what the run needs, with the reason.
        """
        self._check()
        try:
            return self._once()
        except OSError as error:
            self._tell(f"the store does not answer ({error}); trying again")
        except Refused as refusal:
            self._tell(f"not used: {refusal}")
            if refusal.kind == "weights":
                self._failures.append(str(refusal))
        if len(self._failures) >= IN_A_ROW:
            raise ConfigError(
                f"this sampler does not compute what the trainer does, {IN_A_ROW} times in a row: "
                f"{self._failures[-1]}; run both with the same versions, model.dtype and kind of "
                "device"
            )
        return "nothing"

    def close(self) -> None:
        """Let go of model and tools."""
        self._open.close()

    def _once(self) -> Did:
        facts = get_facts(self._files, HEAD, self._key)
        if facts is None:
            self._tell("waiting for a trainer to open this store")
            return "nothing"
        head = Head.of(facts)
        if head.state == "done":
            return "done"
        if self._bench is None or self._bench.run != head.run:
            self._set_up(head)
        bench, leases = self._bench, self._leases
        assert bench is not None
        assert leases is not None
        leases.beat("looks for work")
        self._load(bench, head)
        taken = leases.take(head.units())
        self._count_refusals(leases)
        if taken is None:
            return "nothing"
        self._sample(bench, leases, head, *taken)
        return "sampled"

    def _set_up(self, head: Head) -> None:
        """Make model and engine of the run that has the store."""
        facts = get_facts(self._files, RUN, self._key)
        if facts is None or facts.get("digest") != head.run:
            raise Refused("foreign", f"{RUN} is not of the run that has opened steps")
        published = self._fetcher.fetch(head.version, head.digest)
        self._open.close()
        folder = Path(tempfile.mkdtemp(prefix="rntp-sampler-"))
        self._open.callback(shutil.rmtree, folder, ignore_errors=True)
        overrides = [f"model.spec={_model_folder(self._files, published, folder, self._key)}"]
        if self._device:
            overrides.append(f"model.device={self._device}")
        config = Config.parse(facts["config"], overrides, source=RUN)
        seconds = config.rollout.samplers.lease_s
        self._leases = Leases(self._files, self.name, self._key, seconds, self._clock)
        self._leases.beat("loads the model", now=True)
        self._bench = Bench(config, head.run, folder)
        self._open.enter_context(self._bench.serving(self._say))
        told = f"{config.run.name}: {self._bench.model.num_parameters / 1e6:.0f}M parameters"
        self._say(f"{self.name} samples for {told} on {self._bench.model.device}")

    def _load(self, bench: "Bench", head: Head) -> None:
        if bench.version == (head.version, head.digest):
            return
        bench.load(self._fetcher.fetch(head.version, head.digest))
        self._failures.clear()

    def _sample(self, bench: "Bench", leases: Leases, head: Head, unit: Unit, attempt: int) -> None:
        doing = f"step {unit.step}, part {unit.part + 1}"

        def alive() -> None:
            self._check()
            fault_point("sampler.inside")
            leases.beat(doing)

        leases.beat(doing, now=True)
        fault_point("sampler.leased")
        contexts = self._contexts(unit)
        part = parts_of(len(contexts), bench.config.contexts_per_lease)[unit.part]
        payload = bench.sample([contexts[n] for n in part], unit, self.name, alive)
        fault_point("sampler.sampled")
        name = unit.rollouts(attempt, self.name)
        staged = bench.folder / "staged"
        staged.write_bytes(seal(name, payload, self._key))
        fault_point("sampler.staged", files=bench.folder)
        self._files.put_new(name, staged.read_bytes())
        fault_point("sampler.put")

    def _contexts(self, unit: Unit) -> list[Context]:
        name = work_name(unit.step, unit.work)
        if self._step[0] != name:
            data = self._files.get(name)
            if data is None:
                raise Refused("torn", f"{name} is not there")
            self._step = name, unpack_contexts(unseal(name, data, self._key))
        return self._step[1]

    def _count_refusals(self, leases: Leases) -> None:
        if len(leases.refused) >= IN_A_ROW:
            raise ConfigError(
                f"the trainer took nothing of {len(leases.refused)} attempts of this sampler, the "
                f"last because of {leases.refused[-1]}; look at versions and memory of this machine"
            )

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._say(text)


class Bench:
    """Model, placement and engine of a run, as its trainer has them. run: digest of what is
    trained. folder: for its files. version: of the weights, with their digest."""

    def __init__(self, config: Config, run: str, folder: Path) -> None:
        self.config, self.run, self.folder = config, run, folder
        self.version: tuple[int, str] = -1, ""
        self.model = open_model(config)
        if config.model.dtype == "bfloat16":  # as the trainer's optimizer makes the copy
            for parameter in self.model.hf.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        self._record: Record | None = open_record(config)
        self._place = training_placer(config, self._record, self.model.tokenizer)
        self._engine: Engine = open_training_engine(self.model, config)
        self._canary: Tensor = torch.zeros(0)

    @contextmanager
    def serving(self, say: Callable[[str], None]) -> Iterator[None]:
        """Serve the tools of the config and run its vLLM, while the context is open."""
        with (
            serving(self._engine, self.model, self.config, self.folder / "tools"),
            running(self._engine, self.folder, say),
        ):
            yield

    def load(self, published: Published) -> None:
        """Take weights and what placing has learnt, and prove that the model computes with them.

        Raises Refused.
        """
        self.version = -1, ""
        take_exactly(self.model, published.weights)
        fault_point("sampler.loaded", *policy_weights(self.model).values())
        check_loaded(self.model, published, self.config.run.seed)
        self._canary = canary(self.model, self.config.run.seed)
        if self._record is not None:
            self._record.restore(published.placement)
        self.version = published.version, published.digest

    def sample(self, contexts: list[Context], unit: Unit, sampler: str, check: Check) -> bytes:
        """Sample thoughts for contexts of a part, as the file that the store takes."""
        version, digest = self.version
        rollouts = self._engine.sample(contexts, self._place, check, version)
        vllm = vllm_of(self._engine)
        facts = {
            "step": unit.step,
            "work": unit.work,
            "part": unit.part,
            "version": version,
            "weights": digest,
            "run": self.run,
            "seed": self.config.run.seed,
            "sampler": sampler,
            "host": platform.node(),
            "engine": f"{vllm.versions if vllm else 'inprocess'} of rntp {__version__}",
            "torch": torch.__version__,
        }
        found = vllm.canary if vllm else self._canary
        return pack_rollouts(rollouts, contexts, facts, {"canary": found})


def _model_folder(files: Files, published: Published, folder: Path, key: bytes) -> Path:
    """A folder that transformers loads: config and tokenizer of the store, and these weights."""
    listed = get_facts(files, f"{MODEL}/files.json", key)
    out = folder / "model"
    out.mkdir()
    for name in (listed or {}).get("names", []):
        full = f"{MODEL}/{name}"
        data = files.get(full)
        if data is None or "/" in name or name.startswith("."):
            raise Refused("torn", f"{full} is not there")
        (out / name).write_bytes(unseal(full, data, key))
    safetensors.torch.save_file(
        dict(published.weights), out / "model.safetensors", {"format": "pt"}
    )
    return out
