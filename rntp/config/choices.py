"""The choices of a config that have parameters of their own."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from rntp.config.choice import Options, Parameter

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

DECAY = Parameter(Share, 0.999, ("ema",), "share of the average that stays in a step (2510.01265)")

TROUBLE = Options(
    ("roll_back", "stop"),
    {
        "skipped_steps": Parameter(Positive, 5, (), "non-finite steps in a row that are a streak"),
        "rollbacks": Parameter(NonNegative, 2, (), "streaks that send the run back"),
        "damaged": Parameter(
            Annotated[float, Field(ge=0, lt=1)],
            0.001,
            (),
            "share of a corpus' documents that may be damaged, rounded down: they are replaced, "
            "counted and listed, and more end the run with exit code 3",
        ),
    },
)
AUDIT = Options(
    ("stop", "warn", "off"),
    {
        "every_steps": Parameter(Positive, 100, ("stop", "warn"), "steps between two audits"),
        "docs": Parameter(Positive, 8, ("stop", "warn"), "pages that every attack is tried on"),
        "fooled": Parameter(
            Annotated[float, Field(ge=0, le=1)],
            0.05,
            ("stop", "warn"),
            "share of an attack's tries that may be taken for right",
        ),
    },
)
_SIDE_BY_SIDE = (
    "by_class",
    "entropy",
    "even",
    "learnability",
    "oracle",
    "random",
    "sentence_starts",
    "surprise",
    "tiers",
)
POLICIES = Options(
    (),  # whoever registers them
    {
        "repeats": Parameter(
            Fraction,
            0.0,
            _SIDE_BY_SIDE,
            "share of positions_per_doc, rounded down, that are no new positions but "
            "thought.thoughts_per_position more thoughts at one of the others: where rewards "
            "have differed most lately; all thoughts of a position are one group",
        ),
        "ramp_steps": Parameter(
            Positive,
            0,
            ("tiers",),
            "steps over which the policy goes from easy to hard; it stays at its end from then on",
        ),
        "random_share": Parameter(
            Annotated[float, Field(ge=0, le=1)],
            0.25,
            ("gate",),
            "of the positions, rounded up: they go anywhere, whatever the gate says",
        ),
    },
)
PLACES = Options(
    (),  # the same
    {
        "positions_per_doc": Parameter(
            NonNegative, 0, (), "positions in one held-out context; 0 is as many as in training"
        )
    },
)
ENGINES = Options(
    ("inprocess", "vllm"),
    {
        "python": Parameter(
            str | None,
            None,
            ("vllm",),
            "interpreter of the environment that has vLLM; null: .venv-vllm/bin/python, which "
            "`make vllm` makes; the variable RNTP_VLLM_PYTHON comes before both",
        ),
        "cache_gib": Parameter(
            Annotated[float, Field(gt=0)],
            2.0,
            ("vllm",),
            "GiB of memory for vLLM's keys and values; with too little it works at fewer thoughts "
            "at a time",
        ),
    },
)
WEIGHTS = Options(("current", "none", "frozen", "ema"), {"decay": DECAY})
_RATIO = ("clipped_ratio", "cispo", "gspo")
ALGORITHMS = Options(
    ("policy_gradient", *_RATIO),
    {
        "clip_low": Parameter(
            Annotated[float, Field(gt=0, le=1)],
            0.2,
            _RATIO,
            "ratio >= 1 - clip_low; 1 leaves that side open, as cispo's authors do",
        ),
        "clip_high": Parameter(
            Annotated[float, Field(gt=0)],
            0.28,
            _RATIO,
            "ratio <= 1 + clip_high (clip-higher, 2503.14476)",
        ),
        "importance_cap": Parameter(
            Weight | None,
            None,
            (),
            "tokens count min(policy / sampler, cap): for stale or foreign samplers (1802.01561); "
            "at least 1, 0 is off; null: 2 where max_age of rollout.samplers is above 0 or "
            "rollout.engine is not inprocess, and the ratios of the algorithm do not start from "
            "the sampler anyhow; else off",
        ),
        "importance_mask": Parameter(
            Annotated[list[Weight], Field(min_length=2, max_length=2)] | None,
            None,
            (),
            "tokens with policy / sampler outside [low, high] do not count; [0, 0] is off; null: "
            "[0.5, 5] where max_age of rollout.samplers is above 0 or rollout.engine is not "
            "inprocess, else off (IcePop's)",
        ),
        "importance_of": Parameter(
            Literal["token", "thought"],
            "token",
            (),
            "the ratio that cap and mask look at: of each token, or the geometric mean over its "
            "thought",
        ),
    },
)
ADVANTAGES = Options(
    ("group_mean", "leave_one_out", "none", "step"),
    {
        "divide_by_std": Parameter(
            bool,
            False,
            ("group_mean",),
            "divide by the group's standard deviation; dense rewards rarely want it",
        ),
        "std_floor": Parameter(
            Annotated[float, Field(gt=0)],
            0.05,
            ("group_mean",),
            "least divisor, in reward units: keep it well above `reward/noise_floor`",
        ),
    },
)
DIVERGENCES = Options(
    ("k1", "k2", "k3"),
    {
        "weight": Parameter(
            Weight, 0.0, (), "of the divergence, nats; 0 keeps no reference for it"
        ),
        "in": Parameter(
            Literal["loss", "reward"],
            "loss",
            (),
            "loss: a term of its own; reward: taken off, summed over the thought, before centring",
        ),
        "reference": Parameter(
            Literal["frozen", "ema"],
            "frozen",
            (),
            "weights of the start, or their moving average; a copy and a forward",
        ),
        "decay": Parameter(Share, 0.999, (), "ema: share of the average that stays in a step"),
    },
)
SCHEDULES = Options(
    ("constant", "cosine"),
    {
        "min_lr_fraction": Parameter(
            Annotated[float, Field(ge=0, le=1)],
            0.1,
            ("cosine",),
            "where the cosine ends, as a share of lr",
        )
    },
)
# Parameters of reward schemes, beside the weight in the sum of those that drive.
WEIGHTS_OF = {
    "weight": Parameter(FiniteFloat, 1.0, (), "in the sum of the schemes that drive"),
    "on_tasks": Parameter(FiniteFloat, 1.0, (), "the weight on tasks, where it is another"),
}
SCHEMES: dict[str, dict[str, Parameter]] = {
    "net_gain": {
        "token_cost": Parameter(Weight, 0.01, (), "what a thought token costs, nats"),
        "token_cost_after": Parameter(
            NonNegative,
            0,
            (),
            "steps without the price: asked from the start, it ends thinking before any thought "
            "has paid",
        ),
        "call_cost": Parameter(Weight, 0.0, (), "what a call of a tool costs, nats"),
        "call_cost_after": Parameter(
            NonNegative,
            0,
            (),
            "steps without that price: until a policy has found what to ask, nearly all calls cost",
        ),
    },
    "length_triangle": {
        "length_budget": Parameter(
            NonNegative,
            0,
            (),
            "tokens that a thought should have at the start of training; 0 is half of "
            "thought.thought_tokens, so that the triangle is as wide as thoughts are long",
        ),
        "length_half_life": Parameter(
            NonNegative,
            0,
            (),
            "steps in which the budget halves; 0 keeps it; 2509.24375 ends at a fifth of it, "
            "which is a half-life of 0.43 run.steps",
        ),
    },
}
