"""How long a step of a config takes here: measured on a model of a few of its layers.

A whole step (sampling, tree, forward, backward, update) of the config's sizes runs with a random
model of one layer and with one of a few; what a layer adds, times their number, is the step. Speeds
of single products would not tell: a step is made of many small operations besides, and how much of
it they are depends on the processor.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rntp.bench.job import Job
from rntp.bench.sizes import Sizes
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel, adopt_model, pick_device
from rntp.model.sources import localize
from rntp.model.tokenizer import load_tokenizer
from rntp.runtime.memory import keep_freed_memory
from rntp.training.estimate import Shape, full_flop
from rntp.training.optimizer import Optimizer

FEW = 4  # layers of the deeper of the two models
ENOUGH_S = 10.0  # of measuring
LEAST, MOST = 3, 6  # times, the first of which does not count


@dataclass(frozen=True)
class Measured:
    """seconds: of a step. layers: of the models that ran. runs: of each. spread: seconds between
    its quickest and its slowest run, times what was multiplied."""

    seconds: float
    layers: tuple[int, int]
    runs: int
    spread: float


def measure_step(config: Config) -> Measured:
    """Measure a step of full-length thoughts.

    Raises ConfigError where no model of fewer layers can be made.
    """
    keep_freed_memory()  # as the program does
    whole = AutoConfig.from_pretrained(localize(config.model.spec)).get_text_config()
    layers = whole.num_hidden_layers
    shallow, deep = 1, min(FEW, layers)
    docs = min(config.data.docs_per_step, config.rollout.docs_per_batch)
    jobs = {n: _OneStep(config, n, docs) for n in dict.fromkeys((shallow, deep))}
    times: dict[int, list[float]] = {n: [] for n in jobs}
    began = time.perf_counter()
    while len(times[shallow]) < LEAST or (
        len(times[shallow]) < MOST and time.perf_counter() - began < ENOUGH_S
    ):
        for n, job in jobs.items():
            times[n].append(job.seconds())
    # The first run of each is slower: libraries choose and allocate.
    best = {n: min(found[1:]) for n, found in times.items()}
    worst = {n: max(found[1:]) for n, found in times.items()}
    slope = (best[deep] - best[shallow]) / max(deep - shallow, 1)
    steepest = (worst[deep] - best[shallow]) / max(deep - shallow, 1)
    # Other passes than the plain step's (epochs, references, judges) by their products.
    more = full_flop(config, jobs[deep].shape) / jobs[deep].flop
    return Measured(
        seconds=more * (best[shallow] + (layers - shallow) * max(slope, 0.0)),
        layers=(shallow, deep),
        runs=len(times[shallow]) - 1,
        spread=more * (layers - shallow) * max(steepest - slope, 0.0),
    )


class _OneStep:
    """The step of a config with a random model of `layers` layers. flop: of what runs."""

    def __init__(self, config: Config, layers: int, docs: int) -> None:
        model = _shortened(config, layers)
        sizes = Sizes(
            context=config.data.context_tokens,
            positions=config.placement.positions_per_doc,
            # A group has two at least; a step of fewer counts by its products.
            thoughts=max(config.thought.thoughts_per_position, 2),
            budget=config.thought.thought_tokens,
            horizon=config.reward.horizon,
            docs=docs,
        )
        self._job = Job(model, sizes, config.objective.continuation_weight)
        self.shape = Shape.of(model.hf, shares=model.shares)
        self.flop = full_flop(self._job.config, self.shape)
        dtype = getattr(torch, config.model.dtype)
        self._optimizer = Optimizer(model.hf, config.optim, dtype=dtype, total_steps=1 << 20)
        self._steps = 0

    def seconds(self) -> float:
        """Run once, all of it, and wait for the device."""
        start = time.perf_counter()
        self._job.step()
        self._steps += 1
        self._optimizer.step(self._steps, loss_is_finite=True)
        if self._job.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def _shortened(config: Config, layers: int) -> LanguageModel:
    spec = config.model.spec
    hf_config = AutoConfig.from_pretrained(localize(spec))
    text = hf_config.get_text_config()
    whole, text.num_hidden_layers = text.num_hidden_layers, layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(text, name, value[:layers])  # one entry a layer
    try:
        hf = AutoModelForCausalLM.from_config(hf_config)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ConfigError(f"no model of {layers} layers of {spec} can be made: {error}") from error
    nn.Module.to(hf, pick_device(config.model.device))
    return adopt_model(
        hf,
        load_tokenizer(spec),
        spec,
        think_open=config.model.think_open,
        think_close=config.model.think_close,
        sharing=config.model.sharing,
        span=config.span_tokens,
    )
