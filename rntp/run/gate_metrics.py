"""The keys of metrics.jsonl that say how good the gate is that is learnt along."""

from rntp.run.metric import Metric

KNOWN = "enough gains that the gate says anything: some 50 positions"

GATE_METRICS = (
    Metric(
        "thought/none_frac",
        "share, 0 to 1",
        "Share of the thoughts that the policy closed at once, of those that it drew.",
        "That `thought.source: policy_or_none` closes one of each group does not count.",
        "Near 1: nothing is thought any more. Begin with `policy`.",
        "`thought.source: policy_or_none`",
    ),
    Metric(
        "gate/auc",
        "probability",
        "Chance that of two positions of the step, one where thinking helped and one where it did "
        "not, the gate expected more of the first. It is asked before it learns from the step.",
        "From 0.5, chance, to 1.",
        "At 0.5 for long: where thinking pays cannot be told from the hidden state, or pays alike "
        "everywhere.",
        when=f"{KNOWN}; and thinking helped at some positions of the step, and not at all",
    ),
    Metric(
        "gate/loss",
        "nats",
        "−log density of the step's gains under what the gate expected and how unsure it was; the "
        "mean over positions.",
        "Falls as the gate learns.",
        when=KNOWN,
    ),
    Metric(
        "gate/expected",
        "nats a token",
        "Gain that the gate expected, mean over the step's positions.",
        "Near `gain/mean`.",
        when=KNOWN,
    ),
    Metric(
        "gate/pays_frac",
        "share, 0 to 1",
        "Share of the positions where the gate expected thinking to gain.",
        when=KNOWN,
    ),
)
