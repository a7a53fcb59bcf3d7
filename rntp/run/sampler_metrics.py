"""The keys of metrics.jsonl that runs with samplers write; see `rntp.run.metric_keys`."""

from rntp.run.metric import Metric

WITH_SAMPLERS = "samplers of a store"
WITH_VLLM = "`rollout.engine: vllm`, without a store"

SAMPLER_METRICS = (
    Metric(
        "rollout/age_mean",
        "updates",
        "Mean age of the step's rollouts: updates between the weights that sampled and those that "
        "train.",
        "0 with `rollout.samplers.max_age: 0`; close to it with quick samplers.",
        when=WITH_SAMPLERS,
    ),
    Metric("rollout/age_max", "updates", "Age of the oldest of them.", when=WITH_SAMPLERS),
    Metric(
        "rollout/age/<age>",
        "share, 0 to 1",
        "Share of the rollouts of that age.",
        when=WITH_SAMPLERS,
    ),
    Metric(
        "rollout/again",
        "count",
        "Attempts at parts of the step beside the first: leases that ran out, results that were "
        "refused.",
        bad="Often above 0: samplers die, or `rollout.samplers.lease_s` is too short.",
        when=WITH_SAMPLERS,
    ),
    Metric(
        "rollout/refused",
        "count",
        "Results that were refused: torn, foreign, forged, stale, malformed, of other weights. The "
        "console says which and why.",
        bad="Anything above 0.",
        when=WITH_SAMPLERS,
    ),
    Metric(
        "rollout/canary",
        "nats a token",
        "How far log-probs of fixed sequences lie apart between trainer and sampler, on average; "
        "the largest over the step's parts.",
        "0 for the same kernels; rounding for others. Far ones are refused.",
        when=WITH_SAMPLERS,
    ),
    Metric(
        "rollout/weights_bytes",
        "bytes",
        "Size of the weights as the step has written them to the store; 0 where an earlier start "
        "has.",
        "The whole model, or far less with `rollout/weights_delta` 1.",
        when=WITH_SAMPLERS,
    ),
    Metric(
        "rollout/weights_delta",
        "0 or 1",
        "1: they are written as what has changed since the version before.",
        "0 at every version of `rollout.samplers.whole_every`, at the first of a start, and where "
        "more than a quarter has changed.",
        when=WITH_SAMPLERS,
    ),
    Metric(
        "rollout/weights_changed",
        "share, 0 to 1",
        "Elements of the weights, in the type that is computed in, that the last update has "
        "changed.",
        "In bfloat16 a few per cent at rates around 1e-6; in float32 nearly all.",
        when=f"{WITH_SAMPLERS}, where versions were compared",
    ),
    Metric(
        "rollout/publish_s",
        "seconds",
        "Copying the weights, finding what has changed, and writing them to the store. Part of "
        "`time/rollout_s`.",
        when=WITH_SAMPLERS,
    ),
    Metric(
        "sampler/canary",
        "nats a token",
        "How far log-probs of fixed sequences lie apart between the trainer and vLLM, on average, "
        "after the last load of weights.",
        "Rounding: about 1e-5 in float32, 0.01 to 0.03 in bfloat16. Far ones end the run.",
        when=WITH_VLLM,
    ),
    Metric(
        "sampler/load_s",
        "seconds",
        "Writing the weights for vLLM, loading them, and scoring the fixed sequences.",
        when=WITH_VLLM,
    ),
    Metric(
        "rollout/digest",
        "hash",
        "Of the names and hashes of the step's files of rollouts; `sampled/` of the run folder "
        "lists them.",
        when=WITH_SAMPLERS,
    ),
)
