"""The keys of metrics.jsonl of mixtures of experts."""

from rntp.run.metric import Metric

EXPERTS = "a mixture of experts"

MOE_METRICS = (
    Metric(
        "moe/load_max",
        "1",
        "Load of the busiest expert over that of an even spread; mean over layers.",
        "1 is even.",
        "Several times 1 and rising: set `objective.router_weight`.",
        EXPERTS,
    ),
    Metric(
        "moe/idle_frac",
        "share, 0 to 1",
        "Share of the experts without a token in the step.",
        when=EXPERTS,
    ),
    Metric(
        "moe/entropy",
        "nats",
        "Entropy of the router's distribution over experts, mean over tokens and layers.",
        when=EXPERTS,
    ),
)
