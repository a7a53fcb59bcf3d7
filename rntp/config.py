"""The configuration: strict, few fields, each with its unit, its meaning and its remedy.

One YAML file, one section a concern; `--set section.field=value` overrides. An unknown key is an
error that names the nearest field. The resolved config is written into every run folder.
"""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rntp.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Run(Section):
    name: str = "run"
    """Name of the run, in logs and in the report."""
    seed: NonNegative = 0
    """Every draw of the run is a function of this number and of what the draw is for."""
    steps: Positive
    """Optimizer steps to have done when the run ends."""
    dir: Path
    """Run folder. It belongs to one config; starting again with the same config resumes it."""


class Model(Section):
    spec: str
    """Hub id, local folder, GGUF file, or `package:NAME` for an installed package with weights."""
    think_open: str = "<think>"
    """Marker before a thought. Added as a new token where the tokenizer has no such token."""
    think_close: str = "</think>"
    """Marker after a thought; ditto."""
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    """Type of the compute copy. Master weights and reductions are float32 or better."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""


class Data(Section):
    source: Path
    """Folder of shards with a manifest.json, as `rntp data prep` writes it."""
    context_tokens: Annotated[int, Field(ge=8)]
    """Longest window of a document that one step sees, tokens (L)."""
    docs_per_step: Positive
    """Contexts in one step."""
    heldout_fraction: Fraction = 0.1
    """Share of the documents, chosen by a hash of their id, that only evaluation reads."""
    max_documents: NonNegative = 0
    """Train on so many documents only, drawn by the seed, again and again; 0 is on all."""


class Placement(Section):
    policy: str = "random"
    """Which positions to think at; see `rntp.placement`."""
    positions_per_doc: Positive
    """Positions in one context (K)."""
    min_prefix_tokens: Positive = 32
    """Earliest position, tokens: the first tokens of a window look harder than they are."""


class Thought(Section):
    thoughts_per_position: NonNegative
    """Thoughts in one group (G). A group of one has no group advantage; 0 trains without thinking,
    on the next-token loss alone (continued pretraining, the control)."""
    thought_tokens: Annotated[int, Field(ge=1, lt=65536)]
    """Sampled tokens of one thought at most; then the close marker is forced (T)."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Of sampler and policy alike. Sampling is never truncated (top-k, top-p) in training."""


class Reward(Section):
    scheme: str = "log_ratio"
    """The scheme that drives the update; see `rntp.rewards`."""
    horizon: Positive
    """Held-out tokens that a thought is judged by (H)."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Weight ratio of one continuation token to the token before it (gamma)."""
    shadows: tuple[str, ...] = ("log_ratio", "logprob", "exact_prefix")
    """Schemes that are only logged, on the same thoughts."""


class Baseline(Section):
    weights: Literal["current", "none", "frozen", "ema"] = "current"
    """Whose no-think log-probs a reward may subtract: those of the same forward, zeros, or those
    of the weights of the start or of a moving average, which cost a copy and a second forward."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """ema: share of the average that stays in a step (2510.01265)."""
    use: Literal["subtract", "clip", "group_member", "position_weight"] = "subtract"
    """subtract: as the scheme does. clip: floor the driving reward at zero (2602.11549).
    group_member: the empty thought joins the group's mean, without a gradient. position_weight:
    advantages count in proportion to the chance of being wrong without a thought."""


class Objective(Section):
    algorithm: Literal["policy_gradient", "clipped_ratio"] = "policy_gradient"
    """policy_gradient is on-policy, one update a rollout; clipped_ratio allows several."""
    advantage: Literal["group_mean", "leave_one_out"] = "leave_one_out"
    """Reward minus the mean of the group, or of the other members of the group."""
    advantage_std: bool = False
    """Divide by the group's standard deviation. Dense rewards rarely want it."""
    advantage_std_floor: Annotated[float, Field(gt=0)] = 0.05
    """Least divisor, in reward units: keep it well above `reward/noise_floor`."""
    pg_weight: Weight = 1.0
    """Weight of the policy-gradient term on thought tokens (g1)."""
    continuation_weight: Weight = 0.1
    """Weight of the continuation's NLL with the thought in context (g2)."""
    ntp_weight: Weight = 0.1
    """Weight of the plain next-token loss on the context."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """clipped_ratio: lower clip, ratio >= 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    """clipped_ratio: upper clip, ratio <= 1 + clip_high (clip-higher, 2503.14476)."""
    epochs_per_rollout: Positive = 1
    """clipped_ratio: updates over the same thoughts; one forward each."""


class Optim(Section):
    lr: Annotated[float, Field(gt=0)] = 1e-6
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up."""
    min_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Where the cosine ends, as a share of lr."""
    weight_decay: Weight = 0.0
    """Decoupled; not applied to vectors (norms, biases)."""
    beta1: Fraction = 0.9
    """AdamW: decay of the first moment."""
    beta2: Fraction = 0.95
    """AdamW: decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW: added to the root of the second moment."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Global gradient norm is clipped to this."""
    max_skipped_steps: Positive = 5
    """So many non-finite steps in a row end the run with exit code 6."""


class RolloutSection(Section):
    engine: Literal["inprocess"] = "inprocess"
    """inprocess samples with the trainer's own weights."""
    docs_per_batch: Positive = 8
    """Contexts that decode together. Changes speed and memory, not the thoughts."""


class Checkpoint(Section):
    every_steps: Positive = 100
    """Steps between checkpoints. The last step and a stop request are always saved."""
    keep: Positive = 2
    """Newest checkpoints to keep."""


class Evaluation(Section):
    enabled: bool = True
    """Measure think and no-think loss on held-out pages before and after training."""
    every_steps: NonNegative = 0
    """And every so many steps in between; 0 is never."""
    docs: Positive = 16
    """Held-out contexts."""
    reused_docs: NonNegative = 0
    """Also measure on the first so many contexts trained on: fresh against reused gain."""
    thoughts_per_position: Positive = 1
    """Thoughts at each position; the think loss is the mean over them."""
    placement: str = "random"
    """Where to think in evaluation: a placement policy; see `rntp.placement`."""
    positions_per_doc: NonNegative = 0
    """Positions in one held-out context; 0 is as many as in training."""
    controls: tuple[Literal["shuffled", "pause", "truncated", "empty", "oracle"], ...] = ()
    """Thoughts put in place of the sampled ones, each with its own gain; see `rntp.controls`."""
    decile_model: str = ""
    """Spec of a third model of the same tokenizer, whose loss says which tokens are hard; with ""
    it is the loss of the model before training."""
    bits_per_thought_token: Weight = 0.01
    """Price of a thought token in the net gain, bits (lambda); training does not know it."""


class Log(Section):
    wandb: Literal["off", "offline", "online"] = "off"
    """Mirror metrics.jsonl to wandb; online without a key falls back to offline, and says so."""
    wandb_project: str = "rntp"
    """Project in wandb."""


class Parallel(Section):
    tokens_per_microbatch: Annotated[int, Field(ge=16)] = 4096
    """Tree tokens of one forward. A context with its branches is never split; lower it when
    memory runs out. The gradient does not depend on it."""


class Config(Section):
    """The whole configuration of a run."""

    run: Run
    model: Model
    data: Data
    placement: Placement
    thought: Thought
    reward: Reward
    baseline: Baseline = Baseline()
    objective: Objective = Objective()
    optim: Optim = Optim()
    rollout: RolloutSection = RolloutSection()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    log: Log = Log()
    parallel: Parallel = Parallel()

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply `section.field=value` overrides.

        Raises ConfigError with one line a mistake; nothing is read or written besides the file.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"there is no config file {path}")
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        return cls.parse(raw, overrides, source=str(path))

    @classmethod
    def parse(cls, raw: object, overrides: Sequence[str] = (), source: str = "config") -> Self:
        """Validate a nested dict; see `load`."""
        if not isinstance(raw, dict):
            raise ConfigError(f"{source}: expected sections such as `run:` and `model:`")
        raw = copy.deepcopy(raw)
        for override in overrides:
            _apply_override(raw, override)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = [_explain(problem) for problem in error.errors()]
            raise ConfigError("\n".join([f"{source} cannot be used:", *lines])) from error

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        earliest, horizon = self.placement.min_prefix_tokens, self.reward.horizon
        slots = self.data.context_tokens - horizon - earliest + 1
        if slots < self.most_positions:
            raise ValueError(
                f"a context of {self.data.context_tokens} tokens has {max(slots, 0)} positions "
                f"with {earliest} tokens before and {horizon} after them, but "
                f"placement.positions_per_doc is {self.placement.positions_per_doc} and "
                f"evaluation.positions_per_doc {self.evaluation.positions_per_doc}; raise "
                "data.context_tokens, or lower placement.min_prefix_tokens, the positions_per_doc "
                "or reward.horizon"
            )
        if self.thought.thoughts_per_position == 1 and self.objective.pg_weight > 0:
            raise ValueError(
                "a group of one thought has no advantage, so the policy would not learn; set "
                "thought.thoughts_per_position to 2 or more, or objective.pg_weight to 0"
            )
        if self.thought.thoughts_per_position == 0 and (
            self.objective.pg_weight > 0
            or self.objective.continuation_weight > 0
            or self.objective.ntp_weight == 0
        ):
            raise ValueError(
                "without thoughts (thought.thoughts_per_position: 0) only the next-token loss is "
                "left; set objective.pg_weight and objective.continuation_weight to 0 and "
                "objective.ntp_weight above 0"
            )
        if self.objective.algorithm == "policy_gradient" and self.objective.epochs_per_rollout > 1:
            raise ValueError(
                "objective.epochs_per_rollout > 1 reuses thoughts of older weights; set "
                "objective.algorithm to clipped_ratio"
            )
        if self.objective.advantage_std and self.objective.advantage == "leave_one_out":
            raise ValueError(
                "objective.advantage_std belongs to objective.advantage: group_mean; with "
                "leave_one_out set it to false"
            )
        if self.baseline.use != "subtract" and self.baseline.weights == "none":
            raise ValueError(
                f"baseline.use: {self.baseline.use} compares with a prediction without a thought, "
                "and baseline.weights is none; set baseline.weights to current, or baseline.use to "
                "subtract"
            )
        if self.model.think_open == self.model.think_close:
            raise ValueError("model.think_open and model.think_close must differ")
        if not self.model.think_open or not self.model.think_close:
            raise ValueError("the think markers must not be empty")
        return self

    @property
    def branch_tokens(self) -> int:
        """Most tokens of one branch: open marker, thought, forced close marker, continuation."""
        return self.thought.thought_tokens + 2 + self.reward.horizon

    @property
    def span_tokens(self) -> int:
        """Longest sequence that the model ever sees, in positions."""
        return self.data.context_tokens + self.thought.thought_tokens + 2

    @property
    def min_document_tokens(self) -> int:
        """A shorter document cannot hold the positions of a context."""
        return self.placement.min_prefix_tokens + self.reward.horizon + self.most_positions - 1

    @property
    def most_positions(self) -> int:
        """Positions of one context in training or in evaluation, whichever has more."""
        return max(self.placement.positions_per_doc, self.evaluation.positions_per_doc)

    def warnings(self) -> Iterator[str]:
        """What is allowed but probably not meant."""
        # The weights of this scheme come from the baseline, so there it does not cancel.
        inert = self.baseline.use == "subtract" and self.reward.scheme != "weighted_log_ratio"
        if self.baseline.weights != "none" and inert:
            yield (
                "baseline.use: subtract cancels within a group: it changes the logged reward, not "
                "the gradient (clip, group_member and position_weight do change it)"
            )
        if self.baseline.weights in ("frozen", "ema") and inert:
            yield (
                f"baseline.weights: {self.baseline.weights} keeps a copy of the weights and runs a "
                "second forward, and with baseline.use: subtract only the logged reward knows"
            )
        if self.objective.continuation_weight == 0 and self.objective.ntp_weight == 0:
            yield (
                "objective.continuation_weight and objective.ntp_weight are both 0: the model is "
                "never taught to read on after a thought, and base models drift"
            )

    def to_yaml(self) -> str:
        """The resolved configuration, every field written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what the run computes.

        Left out is what may change between two starts of one run without changing a number:
        where it lies, how long it goes on, and how it saves, logs and cuts its work.
        """
        facts = self.model_dump(mode="json", exclude={"checkpoint", "log", "parallel", "rollout"})
        for name in ("name", "dir", "steps"):
            del facts["run"][name]
        del facts["data"]["source"]  # the manifest's digest is the corpus' identity, not its path
        if self.optim.schedule == "cosine":
            facts["optim"]["steps"] = self.run.steps
        return facts

    def digest(self) -> str:
        """SHA-256 of `identity`, hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, field = name.strip().partition(".")
    if not (equals and dot and section and field):
        raise ConfigError(f"--set wants section.field=value, not {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error
    if not isinstance(raw.setdefault(section, {}), dict):
        raise ConfigError(f"--set {override}: {section} is not a section")
    raw[section][field] = value


def _sections() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        found[name] = set(section.model_fields)
    return found


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"  {place}: no such {_suggest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"  {place}: required and not given"
    message = problem["msg"].removeprefix("Value error, ")
    return f"  {place}: {message} (given: {problem['input']!r})" if place else f"  {message}"


def _suggest(location: tuple[Any, ...]) -> str:
    sections = _sections()
    if len(location) == 1:
        near = difflib.get_close_matches(str(location[0]), sections, n=1)
        return "section" + (
            f"; did you mean `{near[0]}:`?" if near else f" (there are: {', '.join(sections)})"
        )
    section, field = str(location[0]), str(location[1])
    elsewhere = [name for name, fields in sections.items() if field in fields]
    if elsewhere:
        return f"field; `{field}` belongs under `{elsewhere[0]}:`"
    near = difflib.get_close_matches(field, sections[section], n=1)
    if near:
        return f"field; did you mean `{section}.{near[0]}`?"
    near = difflib.get_close_matches(
        field, {f for fields in sections.values() for f in fields}, n=1
    )
    if near:
        home = next(name for name, fields in sections.items() if near[0] in fields)
        return f"field; did you mean `{home}.{near[0]}`?"
    return f"field (`{section}:` has: {', '.join(sorted(sections[section]))})"
