"""Explain the keys of metrics.jsonl: the one table that the documentation is made from.

A key that a run writes and this table lacks fails a test, and so does one that no run writes.
"""

from rntp.run.gate_metrics import GATE_METRICS
from rntp.run.metric import Metric as Metric
from rntp.run.mixing_metrics import MIXING_METRICS
from rntp.run.moe_metrics import MOE_METRICS
from rntp.run.sampler_metrics import SAMPLER_METRICS
from rntp.run.task_metrics import TASK_METRICS

ALWAYS = "every run"

METRICS = (
    # The step
    Metric("step", "count", "Number of the optimizer step, from 1.", when=ALWAYS),
    Metric("lr", "1", "Learning rate of the update.", when=ALWAYS),
    Metric(
        "grad_norm",
        "1",
        "Global norm of the gradient before clipping, of the step's last update.",
        "It is clipped to `optim.max_grad_norm`. A norm that is always far above that means that "
        "the length of every update is set by the clip.",
        "A jump to many times its usual value (an alarm watches for it), or 0: nothing is learnt.",
        ALWAYS,
    ),
    Metric(
        "skipped",
        "count",
        "Updates of the step that were dropped because loss or gradient was not finite.",
        "Weights and moments stay as they were; `quarantine/` has the ordinals.",
        "Anything above 0. A streak of them sends the run back (`run.on_trouble`).",
        ALWAYS,
    ),
    # Rewards and groups
    Metric(
        "reward/mean",
        "unit of the scheme",
        "Mean reward of the scheme that drives the update, over all thoughts of the step.",
        "Compare it with itself over time, beside `reward/sem`. Contexts differ from step to step, "
        "so single steps say little; a mean over 20 and more does.",
        "It rises while `gain/mean` does not: the scheme pays for something else.",
    ),
    Metric(
        "reward/std",
        "unit of the scheme",
        "Standard deviation of that reward over all thoughts of the step.",
        "It includes the differences between positions, which no group advantage sees; "
        "`group/reward_std` is the part that teaches.",
    ),
    Metric(
        "reward/sem",
        "unit of the scheme",
        "Standard error of `reward/mean` over pages, since thoughts of one page are alike.",
        "Two steps differ where their means lie more than about three of these apart.",
        when="two or more pages a step",
    ),
    Metric(
        "reward/noise_floor",
        "unit of the scheme",
        "What rounding of log-probs alone makes of the reward, as measured between sampler and "
        "trainer on the same tokens; with `rollout.samplers.max_age`, what the type of weights "
        "usually has.",
        "Differences of rewards below it are not differences between thoughts.",
        "Near `group/reward_std`: advantages are mostly rounding. Use `model.dtype: float32`.",
    ),
    Metric(
        "reward/<scheme>",
        "unit of the scheme",
        "Mean reward under each scheme that is computed: those that drive, and `reward.shadows`.",
        "All schemes see the same thoughts, so their columns can be compared without another run.",
    ),
    Metric(
        "group/reward_std",
        "unit of the scheme",
        "Mean over groups of the standard deviation within the group.",
        "This is the signal of the policy gradient.",
        "Falling towards `reward/noise_floor`: the thoughts of a position have become alike.",
    ),
    Metric(
        "group/dead_frac",
        "share, 0 to 1",
        "Share of the groups without signal: the rewards of all thoughts of the position are the "
        "same, up to rounding of log-probs as it arrives in the reward.",
        "A dead group has advantages of 0 and adds nothing to the policy gradient. Schemes with "
        "few values (`exact_token`, `exact_prefix`) have many dead groups by nature; dense ones "
        "(`log_ratio`, `mean_prob`) have few.",
        "Near 1: the policy is not trained. Raise `thought.temperature` or "
        "`thought.thoughts_per_position`, take a dense scheme, place thoughts elsewhere "
        "(`placement.policy: entropy`), or look whether all thoughts are empty.",
    ),
    Metric(
        "group/thoughts_max",
        "thoughts",
        "Thoughts of the largest group; see `repeats` of `placement.policy`.",
        when="`repeats` of `placement.policy` above 0",
    ),
    Metric(
        "group/dropped_frac",
        "share, 0 to 1",
        "Share of the groups that left the policy gradient.",
        when="`objective.drop_groups_below`",
        bad="Near 1: hardly anything is trained on.",
    ),
    # What a thought is worth
    Metric(
        "gain/mean",
        "nats a token",
        "Mean over thoughts and continuation tokens of log p(token with the thought) less "
        "log p(token without it).",
        "The question that the run is about. Above 0 thinking pays on the pages of this step.",
        "It falls while `reward/mean` rises. Or it rises only because `nll/no_think` rises, too: "
        "then the baseline is being spoilt.",
    ),
    Metric(
        "nll/no_think",
        "nats a token",
        "Loss of the continuation tokens without a thought.",
        "Watch it beside `gain/mean`: the gain is honest only while this does not rise.",
        "A steady rise. Raise `objective.ntp_weight`.",
    ),
    Metric("nll/think", "nats a token", "Loss of the same tokens after the thought."),
    *MIXING_METRICS,
    Metric(
        "nll/whole",
        "nats a token",
        "Loss of the same tokens without a thought and behind the whole context.",
        when="`reading.window`",
    ),
    Metric(
        "gain/whole",
        "nats a token",
        "What the whole context would be worth over the reading window: `nll/no_think` less "
        "`nll/whole`.",
        "The bound of what a memory of these tokens can bring back.",
        "Near 0: nothing is lost that these pages need. Lower `reading.window`, or raise "
        "`placement.min_prefix_tokens`, so that more is lost.",
        "`reading.window`",
    ),
    Metric(
        "gain/recovered",
        "share",
        "Share of the lost context that memories bring back: `gain/mean` over `gain/whole`; 0 "
        "where the latter is not above 0.",
        "A ratio of two means of one step: read it over many steps, or in an evaluation, where it "
        "has an interval.",
        "Below 0: memories do harm.",
        "`reading.window`",
    ),
    Metric(
        "class/<class>/gain",
        "nats a token",
        "Mean gain of the continuation tokens of a class.",
        "Says where thinking helps. The names are those of the corpus' labels.",
        when="a corpus with labels",
    ),
    # Thoughts
    Metric(
        "thought/tokens_mean",
        "tokens",
        "Mean number of sampled tokens of a thought, without its markers.",
        "At `thought.thought_tokens` thoughts are cut: compare `thought/closed_frac`.",
        "Falling to 0 in the first steps: the surest way to a better reward is to say nothing. "
        "Shorten `reward.horizon`, or weight by difficulty (`weighted_log_ratio`).",
    ),
    Metric(
        "thought/closed_frac",
        "share, 0 to 1",
        "Share of the thoughts that the model closed itself; the others were cut, and their close "
        "marker forced.",
        "0 is normal at first: the model has never seen the marker.",
        "0 after many steps: thoughts are as long as they may be, whatever they cost.",
    ),
    Metric(
        "entropy/thought",
        "nats a token",
        "Mean entropy of the distributions that thought tokens were sampled from.",
        "It falls as the policy settles.",
        "Near 0: all thoughts of a group are the same and nothing more is learnt. Raise "
        "`objective.entropy_weight`.",
    ),
    Metric(
        "answer/tokens_mean",
        "tokens",
        "Mean number of tokens of an answer.",
        when="`thought.answer_tokens`",
    ),
    Metric(
        "judge/missing_frac",
        "share, 0 to 1",
        "Share of thoughts that lack a verdict of a judge outside of the run: they leave their "
        "groups.",
        "Above 0 for long: see to the judges, or to their budget.",
        when="reward scheme `judge`",
    ),
    Metric(
        "judge/tokens",
        "tokens",
        "Tokens of the questions and replies that the step's verdicts took, as endpoints counted "
        "them.",
        when="reward scheme `judge`",
    ),
    Metric(
        "judge/disagreement",
        "share, 0 to 1",
        "How far the judges' highest and lowest verdict on an answer are apart, mean.",
        when="reward scheme `judge`",
    ),
    Metric(
        "judge/auc",
        "share, 0 to 1",
        "Chance that of a thought that raises the likelihood of the continuation and one that does "
        "not, the judges like the first one's answer better.",
        "0.5 says that the verdict has nothing to do with likelihood; a fall while the reward "
        "rises is how a fooled judge looks.",
        when="reward scheme `judge`",
    ),
    Metric(
        "judge/fooled",
        "share, 0 to 1",
        "Share of tries of the attack that worked most often, in the audit before this step.",
        "Above `fooled` of `reward.judges.audit` the run stops or warns.",
        when="steps behind an audit",
    ),
    Metric(
        "judge/gold",
        "share, 0 to 1",
        "Share of true continuations that the judges took for right, in the same audit.",
        when="steps behind an audit",
    ),
    Metric(
        "answer/ended_frac",
        "share, 0 to 1",
        "Share of the answers that the model ended itself.",
        when="`thought.answer_tokens`",
    ),
    *TASK_METRICS,
    # Sampler, policy, reference
    Metric(
        "kl/sampler",
        "nats a token",
        "Divergence between sampler and trainer on the sampled tokens, before the update.",
        "In-process sampling uses the trainer's own weights, so this is rounding alone: 0.002 in "
        "the quickstart, which runs in bfloat16, and far less in float32.",
        "Many times that, or rising: sampler and trainer no longer compute the same.",
    ),
    Metric(
        "kl/sampler_max_abs",
        "nats",
        "Largest difference of a sampled token's log-prob between sampler and trainer.",
        bad="Several nats on one token: the two computed different things there.",
    ),
    Metric(
        "kl/reference",
        "nats a token",
        "Divergence of the policy from the reference weights on sampled tokens (k3).",
        "How far training has moved what the model writes.",
        when="`objective.kl`",
    ),
    Metric(
        "policy/clip_frac",
        "share, 0 to 1",
        "Share of the sampled tokens whose ratio was clipped, in the epochs after the first.",
        "0 with one epoch a rollout.",
        "A large share: the thoughts are too old for another epoch. Lower "
        "`objective.epochs_per_rollout` or `optim.lr`.",
    ),
    Metric(
        "policy/truncated_frac",
        "share, 0 to 1",
        "Share of the sampled tokens whose importance weight was cut.",
        when="an `importance_cap` (`objective.algorithm`), as with `rollout.samplers.max_age`",
    ),
    Metric(
        "policy/masked_frac",
        "share, 0 to 1",
        "Share of the sampled tokens that do not count, because policy and sampler judge them too "
        "differently (`importance_mask` of `objective.algorithm`).",
        "Some in a thousand is usual a few updates behind.",
        "Rising to several in a hundred: rollouts are too old for this learning rate.",
        "`rollout.samplers.max_age`",
    ),
    Metric(
        "policy/ess_frac",
        "share, 0 to 1",
        "Effective sample size of the importance weights (Kish), over the number of tokens: how "
        "much of what was sampled is worth as much as what the policy itself would sample.",
        "1 where sampler and policy agree.",
        "Below about 0.5: lower `rollout.samplers.max_age` or `optim.lr`.",
        "an `importance_cap`, or `rollout.samplers.max_age`",
    ),
    *SAMPLER_METRICS,
    *GATE_METRICS,
    # Where it thought
    Metric(
        "placement/entropy",
        "nats",
        "Mean entropy of the no-think prediction at the positions that were thought at.",
    ),
    Metric("placement/nll", "nats", "Mean no-think loss of the true token at these positions."),
    Metric(
        "placement/hard_frac",
        "share, 0 to 1",
        "Share of the positions whose entropy is above 1.5 nats.",
    ),
    Metric(
        "placement/in_band_frac",
        "share, 0 to 1",
        "Share of the positions inside `placement.band`.",
        "Below 1 where a context has too few positions inside.",
    ),
    Metric(
        "placement/depth",
        "share, 0 to 1",
        "Mean place of the positions in their context, 0 first and 1 last.",
    ),
    Metric(
        "placement/precision",
        "share, 0 to 1",
        "Share of the positions at which a thought is known to help.",
        when="a corpus with labels",
    ),
    Metric(
        "placement/recall",
        "share, 0 to 1",
        "Share of the places at which a thought is known to help that were thought at.",
        when="a corpus with labels",
    ),
    # Loss
    Metric(
        "loss/total",
        "nats",
        "Sum of the weighted terms, whose gradient the update follows.",
        "It is no measure of progress: its terms have different signs and aims.",
        "Not finite: the step is skipped.",
        ALWAYS,
    ),
    Metric(
        "loss/pg",
        "1",
        "Policy-gradient term, before its weight.",
        "Near 0 by construction: advantages of a group add up to 0.",
        when=ALWAYS,
    ),
    Metric(
        "loss/continuation",
        "nats",
        "Loss of continuations behind thoughts, before its weight.",
        when=ALWAYS,
    ),
    Metric(
        "loss/ntp", "nats", "Plain next-token loss of the contexts, before its weight.", when=ALWAYS
    ),
    Metric(
        "loss/kl",
        "nats",
        "Divergence from the reference, before its weight.",
        when="`objective.kl` in the loss",
    ),
    Metric(
        "loss/entropy",
        "nats",
        "Mean entropy of sampled tokens, before its weight; the loss has it with a minus.",
        when="`objective.entropy_weight`",
    ),
    Metric(
        "loss/router",
        "1",
        "Load-balancing loss of a mixture of experts, before its weight.",
        when="`objective.router_weight`",
    ),
    # Sizes
    Metric("tokens/context", "tokens", "Tokens of the step's contexts.", when=ALWAYS),
    Metric(
        "tokens/thought",
        "tokens",
        "Sampled tokens of thoughts, close markers included.",
        when=ALWAYS,
    ),
    Metric(
        "tokens/spent",
        "tokens",
        "Tokens read and sampled: contexts, thoughts and answers. What `match: tokens` counts.",
        when=ALWAYS,
    ),
    Metric(
        "tokens/given",
        "tokens",
        "Tokens that tools gave to thoughts, with the markers of results. No policy drew them: "
        "they are in none of the lengths, nor in what the policy gradient counts.",
        when="`thought.tools`",
    ),
    Metric(
        "tools/calls",
        "count",
        "Calls of tools in the thoughts of the step, failed ones included.",
        when="`thought.tools`",
    ),
    Metric(
        "tools/failures",
        "count",
        "Calls without a result; the records of the step's thoughts have the kinds.",
        "A policy that learns writes fewer of them.",
        "All calls fail: look at a few in `rollouts/`.",
        "`thought.tools`",
    ),
    Metric(
        "tools/withheld",
        "count",
        "Passages that `search` found and did not give: of the page, of near-duplicates of it, or "
        "sharing words with the continuation.",
        when="`thought.tools`",
    ),
    Metric(
        "tools/calling_frac",
        "share",
        "Thoughts that called a tool at least once.",
        when="`thought.tools`",
    ),
    Metric("tokens/tree", "tokens", "Tokens of the forward, with documents shared.", when=ALWAYS),
    Metric("tokens/learning", "tokens", "Those of them that have gradients.", when=ALWAYS),
    Metric(
        "tokens/unshared",
        "tokens",
        "Tokens of the forward if every thought had a sequence of its own.",
        "Divided by `tokens/tree` it is what sharing saves.",
        when=ALWAYS,
    ),
    Metric(
        "compute/tflop",
        "TFLOP",
        "Matrix products of the step, computed from its real token counts.",
        "Runs are compared at equal sums of it (`match: flop`).",
        when=ALWAYS,
    ),
    # Time and memory
    Metric("time/step_s", "seconds", "The whole step on the clock.", when=ALWAYS),
    Metric("time/rollout_s", "seconds", "Reading contexts and sampling thoughts.", when=ALWAYS),
    Metric(
        "time/tools_s",
        "seconds",
        "Waiting for tools while no thought decodes. Part of `time/rollout_s`.",
        bad="Most of the rollout. Raise `workers` of `thought.tools`, or make the tool faster.",
        when="`thought.tools`, without `rollout.samplers`",
    ),
    Metric("time/forward_s", "seconds", "Forward, rewards, advantages and loss.", when=ALWAYS),
    Metric("time/backward_s", "seconds", "Backward.", when=ALWAYS),
    Metric("time/update_s", "seconds", "Reduction over ranks, clipping and AdamW.", when=ALWAYS),
    Metric("time/cpu_share", "0 to 1", "Time on a core, of all that it wanted.", when="Linux"),
    Metric(
        "memory/peak_gb",
        "GB",
        "Peak memory of the step: of the GPU, or of the process without one.",
        bad="Near what there is. Lower `parallel.tokens_per_microbatch`.",
        when=ALWAYS,
    ),
    # Data
    Metric(
        "data/ordinal_first",
        "count",
        "Ordinal of the step's first context.",
        "Contexts are numbered through the run; an ordinal is the same context on every machine.",
        when=ALWAYS,
    ),
    Metric(
        "data/digest",
        "hex",
        "Hash of the step's token ids and positions.",
        "Two runs with the same digests saw the same data and thought at the same places.",
        when=ALWAYS,
    ),
    Metric(
        "data/visits_max",
        "count",
        "How often the most-read document of the step had been handed out before.",
        "0 in the first pass over the corpus.",
        "Many passes: noise is learnt by heart (see `evaluation.docs`).",
        ALWAYS,
    ),
    Metric(
        "data/damaged",
        "count",
        "Documents that were damaged and replaced, so far.",
        bad="Rising. `rntp data verify` names them; more than `damaged` of `run.on_trouble` end "
        "the run.",
        when=ALWAYS,
    ),
    *MOE_METRICS,
)


def find(key: str) -> Metric | None:
    """Find the entry of a key; an exact one goes before a pattern. None where there is none."""
    exact = next((metric for metric in METRICS if metric.key == key), None)
    return exact or next((metric for metric in METRICS if metric.matches(key)), None)
