"""The sections of a config: every field with its unit, its meaning and its remedy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    model_validator,
)

from rntp.config.choice import Choice, Options
from rntp.config.choices import (
    ADVANTAGES,
    ALGORITHMS,
    DIVERGENCES,
    POLICIES,
    SCHEMES,
    TROUBLE,
    WEIGHTS,
    WEIGHTS_OF,
    Fraction,
    NonNegative,
    Positive,
    Weight,
)
from rntp.config.judges import Judges
from rntp.config.mirrors import Mirrors
from rntp.config.places import folder_or_url, is_task, sources
from rntp.config.section import Section
from rntp.config.tasks import Tasks

Interval = tuple[Weight, Weight]
Parameters = dict[str, FiniteFloat]


Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Source = Annotated[
    Path | str | Annotated[dict[str, Share], Field(min_length=1)], BeforeValidator(folder_or_url)
]


class Timeouts(Section):
    hang: Weight = 1800.0
    """End a rank, with its stacks in stacks/, after so long without a sign of life: more than one
    forward or one save takes. It is told after 45 s, and of many ranks the others give up after
    `ranks`. 0 watches nothing and writes no heartbeat."""
    ranks: Annotated[float, Field(gt=0)] = 600.0
    """Longest that a rank waits for the others; then the run ends and says for whom it waited.
    Raise it where one rank's share of a step or an evaluation takes longer."""


class Run(Section):
    name: str = "run"
    """Name of the run, in logs and in the report."""
    seed: NonNegative = 0
    """Every draw of the run is a function of this number and of what the draw is for."""
    steps: Positive
    """Optimizer steps to have done when the run ends."""
    dir: Path
    """Run folder. It belongs to one config; starting again with the same config resumes it."""
    timeouts_s: Timeouts = Timeouts()
    """How long nothing may happen, seconds."""
    on_trouble: Annotated[Choice, TROUBLE] = TROUBLE.choice("roll_back")
    """What a streak of non-finite steps and an alarm do, and how much damage is borne. roll_back:
    the streak sends the run back to the last checkpoint before it, with the streak's ordinals set
    aside, and the next one after `rollbacks` of them is exit code 6; alarms (a jump of loss or
    gradient, groups without signal, empty thoughts, a falling gain) are only said. stop: an alarm,
    too, is exit code 6."""


class Model(Section):
    spec: str
    """Hub id, local folder, GGUF file, or `package:NAME` for an installed package with weights."""
    markers: tuple[str, str] = ("<think>", "</think>")
    """Before and after a thought. Added as new tokens where the tokenizer has no such tokens."""
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    """Type of the compute copy. Master weights and reductions are float32 or better."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    sharing: Literal["auto", "tree", "none"] = "auto"
    """tree: thoughts of a page share what they have in common, or the model is refused. none: one
    plain sequence a thought, for any causal model, with the same numbers and as many more tokens as
    --dry-run says. auto: tree where the check at load passes, else none, and the run says so."""

    @property
    def think_open(self) -> str:
        """Marker before a thought."""
        return self.markers[0]

    @property
    def think_close(self) -> str:
        """Marker after a thought."""
        return self.markers[1]


class Pages(Section):
    text_field: str = ""
    """Field of the rows that holds the text, where it is not `text`, `content` or `raw_content`;
    `page.text` is `text` within `page`."""
    html_field: str = ""
    """Field of the rows that holds HTML, where it is not `html`."""
    damaged: Literal["refuse", "use"] = "refuse"
    """What becomes of a file that is cut, or does not match its checksums: refuse it, or use what
    is whole in it."""


class Data(Section):
    source: Source
    """Folder of shards with a manifest.json, as `rntp data prep` writes it, or its URL; several
    with their weights are a mixture (`{build/web: 3, build/books: 1}`). Pages train unprepared,
    too, with weaker guarantees that the run says at start: `hf:NAME[:SPLIT]` or `hf:FOLDER` for
    what `datasets` streams (extra `hf`), and files by path or glob (`crawl/*.warc.gz`, .wet,
    .jsonl, .parquet, .tar, .html, .txt; extra `prep`). Tasks, alone or in a mixture:
    `task:FILE.jsonl`, `task:hf:NAME[:SPLIT]`, `task:gym:GENERATOR` (reasoning-gym, extra
    `tasks`)."""
    context_tokens: Annotated[int, Field(ge=8)]
    """Longest window of a document that one step sees, tokens (L)."""
    docs_per_step: Positive
    """Contexts in one step."""
    replay_docs: NonNegative = 0
    """Of these, contexts seen before, drawn by how far apart the gains of their thoughts lay (after
    2501.12599; see `rntp.training.replay`). The others are fresh, each once; step 1 has no
    others."""
    heldout_fraction: Fraction = 0.1
    """Share of the documents, chosen by a hash of their id, that only evaluation reads."""
    max_documents: NonNegative = 0
    """Train on so many documents only, drawn by the seed, again and again; 0 is on all."""
    windows: Literal["one", "all"] = "one"
    """one: a pass reads a window of each document, at a start drawn anew. all: long documents are
    cut into even pieces, and a pass reads every token once."""
    workers: (
        NonNegative | Annotated[dict[Literal["thread", "process"], Positive], Field(max_length=1)]
    ) = 0
    """Threads that read the next step's contexts ahead; 0 reads when they are needed. {process: N}:
    processes, which pay where tokenising takes longer than a step's own work leaves time for. The
    contexts are the same."""
    pages: Pages = Pages()
    """How pages that train unprepared are read, as `rntp data prep` has it: `text_field` and
    `html_field` of their rows, and `damaged: refuse | use` for files that are not whole."""
    tasks: Tasks = Tasks()
    """Of tasks: where prompt and answer stand, how they are put, and who grades; see the page on
    RLVR of the documentation."""

    @property
    def has_tasks(self) -> bool:
        """Some contexts are tasks."""
        return any(map(is_task, sources(self.source)))

    @property
    def has_pages(self) -> bool:
        """Some contexts are pages."""
        return not all(map(is_task, sources(self.source)))

    @property
    def num_workers(self) -> int:
        """How many threads or processes read ahead."""
        return self.workers if isinstance(self.workers, int) else sum(self.workers.values())

    @property
    def worker_kind(self) -> Literal["thread", "process"]:
        """What they are."""
        return "thread" if isinstance(self.workers, int) else next(iter(self.workers))


class Band(Section):
    entropy: Interval = (0.0, 100.0)
    """Of the prediction, nats. RPT (2506.08007) takes what lies above a threshold."""
    surprise: Interval = (0.0, 100.0)
    """Loss of the true token, nats. [0.1, 100] skips what is predicted without thinking."""


class Placement(Section):
    policy: Annotated[Choice, POLICIES] = POLICIES.choice("random")
    """Which positions to think at; see `rntp.placement`."""
    positions_per_doc: Positive
    """Positions in one context (K)."""
    interleaved: bool = False
    """Later thoughts of a context see one thought of each earlier position, drawn evenly, and so
    does their baseline. A page is read again for each position. Evaluation thinks in isolation."""
    min_prefix_tokens: Positive = 32
    """Earliest position, tokens: the first tokens of a window look harder than they are."""
    band: Band = Band()
    """Think where the no-think prediction lies in these bands; elsewhere only where too few
    positions are in them."""


class Reading(Section):
    window: NonNegative | None = None
    """Tokens of the page that are left where a continuation is read (w); a thought is then the
    memory of what stood before them. It is drawn in sight of the whole context and read as: start
    token, thought, last w tokens, continuation; the baseline is the same without the thought.
    Both are learnt by objective.continuation_weight. Positions come after w tokens at least, unless
    thought.tools have one that asks elsewhere; with 0 the thought is all that is left. null: the
    whole context is read."""
    piece: Positive | None = None
    """Read pages piece by piece: so many tokens (W), at whose end a memory is written from the
    memory before and the piece, and nothing else. Thoughts stand at the ends of the first
    placement.positions_per_doc pieces. One memory of each group goes on; in training the memory
    before, kept as it is, is one of thought.thoughts_per_position. null: memories are written in
    sight of the whole context."""
    mixing: bool | Annotated[float, Field(gt=0, lt=1)] = False
    """Read on with (1 - w) p(no think) + w p(think), where a small head says w of each token from
    both hidden states, so that a useless thought can be turned off (after Quiet-STaR, 2403.09629).
    The head is learnt by objective.continuation_weight and exported with the model. A number is
    the w that it starts from; true starts from 0.12."""


class Tools(Section):
    use: dict[str, dict[str, Any] | None] = Field(default={})
    """Tools that a thought may call, by name, with their settings or null; `{}` is none. See
    `rntp.tools`: `{search: {index: build/index}, python: null}`."""
    calls: Positive = 2
    """Calls of one thought; further ones get no result."""
    result_tokens: Annotated[int, Field(ge=1, lt=65536)] = 64
    """Tokens of a result; what comes behind is cut. They come on top of thought_tokens."""
    opening: str | None = None
    """The tool that every thought begins with a call of: its marker and its name are given, and the
    policy draws the arguments, up to `</tool>` or to the last of thought_tokens. So a model that
    has never called need not be taught to. null: thoughts begin as they like."""
    seconds: Annotated[float, Field(gt=0)] = 5.0
    """A call may take so long; then the thought reads that it was out of time."""
    workers: Positive = 2
    """Calls that run at a time, on each rank."""
    markers: tuple[str, str, str, str] = ("<tool>", "</tool>", "<result>", "</result>")
    """Around a call and around its result; each becomes a single token."""

    @property
    def most_given(self) -> int:
        """Most tokens of a thought that are not drawn: results with their markers, and what it
        begins with (of a name there are no more tokens than bytes)."""
        begins = 0 if self.opening is None else 2 + len(self.opening.encode())
        return self.calls * (self.result_tokens + 2) + begins if self.use else 0


class Thought(Section):
    thoughts_per_position: NonNegative
    """Thoughts in one group (G). A group of one has no group advantage; 0 trains without thinking,
    on the next-token loss alone (continued pretraining, the control)."""
    thought_tokens: Annotated[int, Field(ge=1, lt=65536)]
    """Sampled tokens of one thought at most; then the close marker is forced (T)."""
    source: Literal["policy", "policy_or_none", "pause"] = "policy"
    """policy_or_none closes the first thought of each training group at once, so that the policy
    can learn where not to think: see the page on placement of the documentation. pause puts full
    stops in place of thoughts, thought_tokens of them (2310.02226): the control for computation
    without content. Nothing is sampled then, so objective.pg_weight has to be 0."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Of sampler and policy alike. Sampling is never truncated (top-k, top-p) in training."""
    answer_tokens: Annotated[int, Field(ge=0, lt=65536)] = 0
    """Tokens that the policy itself writes after a thought at most, for the schemes that grade an
    answer (A); it ends earlier at the tokenizer's end token. 0 writes none."""
    tools: Tools = Tools()
    """What thoughts may call; see the page on tools of the documentation."""


def scheme_label(scheme: str | Mapping[str, float | Mapping[str, float]]) -> str:
    """Write `reward.scheme` for people: `0.9 mean_prob + 0.1 format_only`."""
    if isinstance(scheme, str):
        return scheme
    return " + ".join(f"{weight:g} {name}" for name, weight in scheme_weights(scheme).items())


def scheme_weights(scheme: str | Mapping[str, float | Mapping[str, float]]) -> dict[str, float]:
    """Weights of the schemes that drive, by name."""
    if isinstance(scheme, str):
        return {scheme: 1.0}
    return {
        name: own if isinstance(own, int | float) else own.get("weight", 1.0)
        for name, own in scheme.items()
    }


class Reward(Section):
    scheme: str | Annotated[dict[str, FiniteFloat | Parameters], Field(min_length=1)] = "log_ratio"
    """The scheme that drives the update, or several with the weight of each in their sum
    (`{mean_prob: 0.9, format_only: 0.1}`); see `rntp.rewards`. A scheme's own parameters stand
    beside its weight: `{net_gain: {weight: 1, token_cost: 0.02}}`, and so does its weight on tasks
    where that is another: `{log_ratio: {on_tasks: 0}, correct: 1}`."""
    horizon: Positive
    """Held-out tokens that a thought is judged by (H)."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Weight ratio of one continuation token to the token before it (gamma)."""
    shadows: tuple[str, ...] | dict[str, Parameters] = ("log_ratio", "logprob", "exact_prefix")
    """Schemes that are only logged, on the same thoughts; with parameters `{net_gain: {…}}`."""
    judges: Judges = Judges()
    """Models behind an endpoint, whose verdict the scheme judge gives."""

    @property
    def weights(self) -> dict[str, float]:
        """The schemes that drive, each with its weight in the sum."""
        return scheme_weights(self.scheme)

    @property
    def weights_on_tasks(self) -> dict[str, float]:
        """The same where the context is a task."""
        named = self.scheme if isinstance(self.scheme, dict) else {}
        own = {name: of for name, of in named.items() if isinstance(of, dict)}
        return self.weights | {n: of["on_tasks"] for n, of in own.items() if "on_tasks" in of}

    @property
    def names(self) -> tuple[str, ...]:
        """All schemes that are computed: those that drive, then the shadows."""
        return tuple(dict.fromkeys([*self.weights, *self.shadows]))

    def parameters(self, scheme: str) -> dict[str, float]:
        """Parameters of a scheme: as they were set where it is named, or their defaults."""
        found = {name: p.default for name, p in SCHEMES.get(scheme, {}).items()}
        for named in (self.shadows, self.scheme):
            own = named.get(scheme) if isinstance(named, dict) else None
            if isinstance(own, dict):
                found |= {name: value for name, value in own.items() if name not in WEIGHTS_OF}
        return found

    @model_validator(mode="after")
    def _has_known_parameters(self) -> Self:
        for named, more in ((self.scheme, WEIGHTS_OF), (self.shadows, {})):
            for name, own in named.items() if isinstance(named, dict) else ():
                if isinstance(own, dict):
                    Options((name,), SCHEMES.get(name, {}) | more).choice(name, **own)
        return self

    @property
    def label(self) -> str:
        """What drives, for people."""
        return scheme_label(self.scheme)


class Baseline(Section):
    weights: Annotated[Choice, WEIGHTS] = WEIGHTS.choice("current")
    """Whose no-think log-probs a reward may subtract: those of the same forward, zeros, or those
    of the weights of the start or of a moving average, which cost a copy and a second forward."""
    use: Literal["subtract", "clip", "group_member", "position_weight", "gate"] = "subtract"
    """subtract: as the scheme does. clip: floor the driving reward at zero (2602.11549).
    group_member: the empty thought joins the group's mean, without a gradient. position_weight:
    advantages count in proportion to the chance of being wrong without a thought. gate: only groups
    whose mean reward is above zero count; where thoughts do not pay yet, nothing is learnt."""

    @property
    def rereads(self) -> bool:
        """Contexts go through other weights than those in training as well."""
        return self.weights in ("frozen", "ema")


class Objective(Section):
    algorithm: Annotated[Choice, ALGORITHMS] = ALGORITHMS.choice("policy_gradient")
    """policy_gradient is on-policy, one update a rollout; the others allow several. clipped_ratio:
    PPO's, a token. cispo: a clipped weight, so that no token loses its gradient (2506.13585). gspo:
    one ratio a thought (2507.18071), closer to 1: its authors clip at 3e-4 below and 4e-4 above."""
    advantage: Annotated[Choice, ADVANTAGES] = ADVANTAGES.choice("leave_one_out")
    """Reward minus the mean of the group, or of the other members of the group. none: the reward
    itself, for schemes that are centred already. step: minus the mean of the whole step and over
    its standard deviation (2501.03262), which costs a second forward."""
    normalize: Literal["tokens", "thoughts", "budget"] = "tokens"
    """Sums over sampled tokens are divided by their number (DAPO), or averaged in each thought
    first (GRPO; favours short good thoughts), or divided by thoughts times the most tokens a
    thought may have (2503.20783)."""
    drop_groups_below: Fraction | None = None
    """Groups whose rewards have a standard deviation below this share of its running mean leave
    the policy gradient and its denominator; RLPR takes 0.5 (2506.18254). 0: those whose thoughts
    all earn the same. null keeps all. Their contexts count as seen: no fresh ones are drawn instead
    (2503.14476). A second forward, without them where no other term reads their thoughts."""
    pg_weight: Weight = 1.0
    """Weight of the policy-gradient term on thought tokens (g1)."""
    continuation_weight: Weight = 0.1
    """Weight of the continuation's NLL with the thought in context (g2). With 0 continuations have
    no backward."""
    continuation_use: Literal["uniform", "reward", "positive", "posterior"] = "uniform"
    """Share of each thought in that term: 1; its reward, 0 where that is negative (2505.21493); 1
    where the advantage is positive (2512.12576); its share of the group's probability, times G
    (2503.19618)."""
    ntp_weight: Weight = 0.1
    """Weight of the plain next-token loss on the context."""
    entropy_weight: Weight = 0.0
    """Weight of the entropy of sampled tokens, nats, which the update raises."""
    router_weight: Weight = 0.0
    """Weight of the load-balancing loss of a mixture of experts (2101.03961), as transformers has
    it: over the tokens of the whole step that have gradients, each once. Its shares of experts are
    counted ahead, by a second forward. Balancing biases (e_score_correction_bias) stay as they are:
    no gradient reaches them."""
    kl: Annotated[Choice, DIVERGENCES] = DIVERGENCES.choice("k3")
    """Divergence from a reference, by its estimator of a token, with d its log-ratio to the
    reference: k1 is d, k2 d squared half, k3 exp(-d) - 1 + d. In the reward k1 is LaTRO's
    (2411.04282); in the loss only k2 has the divergence's own gradient. Its weight is 0: off."""
    epochs_per_rollout: Positive = 1
    """Updates over the same thoughts, one forward each; not with policy_gradient."""

    @property
    def kl_weight(self) -> float:
        """Weight of the divergence from the reference; 0 keeps none for it."""
        return float(self.kl.get("weight"))

    @property
    def needs_whole_step(self) -> bool:
        """Advantages, denominators or the load of experts depend on more than one microbatch."""
        return self.advantage == "step" or self.drops_groups or self.router_weight > 0

    @property
    def drops_groups(self) -> bool:
        """Some groups may leave the policy gradient."""
        return self.drop_groups_below is not None

    @property
    def skips_groups(self) -> bool:
        """Groups that left it are left out of the backward: no other term reads their thoughts."""
        kl_weight = self.kl_weight if self.kl.get("in") == "loss" else 0
        others = self.continuation_weight + self.entropy_weight + kl_weight + self.router_weight
        return self.drops_groups and others == 0


class Checkpoint(Section):
    every_steps: Positive = 100
    """Steps between checkpoints. The last step and a stop request are always saved."""
    keep: Positive = 2
    """Newest checkpoints to keep."""
    asynchronous: (
        bool
        | Annotated[dict[Literal["copies_gib"], Annotated[float, Field(gt=0)]], Field(min_length=1)]
    ) = False
    """Write while training goes on. What is not on the disk when the next update comes is copied
    to the host's memory, with {copies_gib: N} so many GiB at most a rank: then that update waits
    for the rest. The last step and a stop request wait for the disk."""

    @property
    def copies_bytes(self) -> float | None:
        """Bytes that copies of a rank may take; None is no limit."""
        gib = self.asynchronous.get("copies_gib") if isinstance(self.asynchronous, dict) else None
        return None if gib is None else gib * (1 << 30)


class Log(Section):
    rollouts_per_step: Annotated[int, Field(ge=1)] | None = None
    """Thoughts of a step that rollouts/ keeps, at most but for a whole group; null keeps all. Which
    groups is a function of seed, page and position, so the same on any number of ranks. A few
    hundred are enough to look at; `rntp traces` has no others."""
    mirrors: Mirrors = Mirrors()
    """Trackers that metrics.jsonl is copied to, by name, with their settings or null:
    `{tensorboard: null, mlflow: {uri: http://host:5000}}`. There are tensorboard, trackio, mlflow
    and wandb; see `rntp.config.mirrors`."""


class Parallel(Section):
    tokens_per_microbatch: Annotated[int, Field(ge=16)] = 4096
    """Tree tokens of one forward. A context with its branches is never split; lower it when
    memory runs out. The gradient does not depend on it."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Keep only the inputs of layers for the backward and compute the rest again: less memory for
    about a third more compute; auto does where a step would not fit otherwise, and says so: by
    an estimate, and where that leaves doubt by the forward of a page. The gradient does not depend
    on it."""
