"""The keys of metrics.jsonl of runs that mix predictions with a thought and without one."""

from rntp.run.metric import Metric

MIXES = "`reading.mixing`"

MIXING_METRICS = (
    Metric(
        "mixing/weight",
        "share, 0 to 1",
        "Weight of the prediction with the thought in the mixture, mean over thoughts and "
        "continuation tokens.",
        "It begins at 0.12 and rises where thoughts help. Beside `nll/alone` it says whether the "
        "head trusts thoughts as far as they deserve.",
        "Near 0: thoughts are turned off, and rewards with them.",
        when=MIXES,
    ),
    Metric(
        "nll/alone",
        "nats a token",
        "Loss of the continuation tokens after the thought without mixing: `nll/think` at a weight "
        "of 1.",
        "`nll/alone` less `nll/think` is what mixing is worth.",
        when=MIXES,
    ),
)
