"""What fields of a config have to be to each other: a table, one rule a row.

A broken rule stops the config with its message, which says what to set; what is told at start and
stops nothing stands in `rntp.config.warned`. Ranges of single fields stand with the fields
(`rntp.config.sections`); what needs more than the config to be known is checked at start
(`rntp.training.preflight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rntp.config.places import sources

if TYPE_CHECKING:
    from rntp.config.schema import Config


@dataclass(frozen=True)
class Rule:
    """fields: that it is about. broken: whether a config breaks it. message: what to do then, with
    {section.field} in place of values."""

    fields: tuple[str, ...]
    broken: Callable[[Config], bool]
    message: str

    def told(self, config: Config) -> str:
        """Fill in the values of a config."""
        sections = {name: getattr(config, name) for name in type(config).model_fields}
        made = {"slots": max(_slots(config), 0), "earliest": config.earliest_position}
        return self.message.format(**made, **sections)


def broken_rules(config: Config, rules: tuple[Rule, ...]) -> Iterator[str]:
    """Tell which rules of a table a config breaks, a message each, in the order of the table."""
    return (rule.told(config) for rule in rules if rule.broken(config))


def _slots(config: Config) -> int:
    """Positions that a context of full length has."""
    room = config.data.context_tokens - config.reward.horizon
    if config.reading.piece is not None:
        return room // config.reading.piece
    return room - config.earliest_position + 1


def _trains_more_than_pages(config: Config) -> bool:
    objective = config.objective
    terms = ("pg_weight", "continuation_weight", "entropy_weight", "kl_weight")
    return objective.ntp_weight == 0 or any(getattr(objective, term) > 0 for term in terms)


def _trains_what_is_sampled(config: Config) -> bool:
    objective = config.objective
    terms = (objective.pg_weight, objective.entropy_weight, objective.kl_weight)
    return any(weight > 0 for weight in terms) or config.thought.answer_tokens > 0


def _places(config: Config) -> bool:
    placement, default = config.placement, type(config.placement).model_fields
    return (
        placement.policy != default["policy"].default
        or placement.band != default["band"].default
        or placement.interleaved
        or config.evaluation.placement != "random"
    )


def in_group(config: Config) -> bool:
    """Whether advantages are differences within a group."""
    return config.objective.advantage in ("group_mean", "leave_one_out")


def _is_piece(control: str) -> bool:
    return control.endswith(("_tokens", "_piece"))


def _tasks_of(config: Config) -> set[str]:
    """Names of all sources of tasks, without what says that they are."""
    every = map(str, [*sources(config.data.source), config.evaluation.source])
    return {name.removeprefix("task:") for name in every if name.startswith("task:")}


def _drives(weights: dict[str, float], only_tasks: bool) -> bool:
    """Whether some scheme has a weight, of which `correct` counts on tasks alone."""
    return any(w != 0 and (only_tasks or name != "correct") for name, w in weights.items())


_LEAST_OF_VLLM = 0.01


def _is_query(control: str) -> bool:
    return control.endswith("_words")


_OF_RESULTS = ("other_results", "no_results")

RULES = (
    Rule(
        ("data.context_tokens", "placement.positions_per_doc", "evaluation.placement"),
        lambda c: _slots(c) < c.most_positions,
        "a context of {data.context_tokens} tokens has {slots} positions with "
        "{earliest} tokens before and {reward.horizon} after them, but "
        "placement.positions_per_doc is {placement.positions_per_doc} and "
        "positions_per_doc of evaluation.placement {evaluation.positions_per_doc}; raise "
        "data.context_tokens, or lower placement.min_prefix_tokens, reading.window, the "
        "positions_per_doc or reward.horizon",
    ),
    Rule(
        ("data.replay_docs", "data.docs_per_step"),
        lambda c: c.data.replay_docs >= c.data.docs_per_step,
        "data.replay_docs {data.replay_docs} of data.docs_per_step {data.docs_per_step} leaves no "
        "fresh context; lower it",
    ),
    Rule(
        ("data.replay_docs", "thought.thoughts_per_position"),
        lambda c: c.data.replay_docs > 0 and c.thought.thoughts_per_position < 2,
        "data.replay_docs goes by how far apart the gains of a group lie; set "
        "thought.thoughts_per_position to 2 or more, or data.replay_docs to 0",
    ),
    Rule(
        ("thought.thoughts_per_position", "objective.advantage", "objective.pg_weight"),
        lambda c: (
            c.thought.thoughts_per_position == 1 and in_group(c) and c.objective.pg_weight > 0
        ),
        "a group of one thought has no advantage, so the policy would not learn; set "
        "thought.thoughts_per_position to 2 or more, or objective.pg_weight to 0",
    ),
    Rule(
        ("thought.thoughts_per_position", "objective.ntp_weight"),
        lambda c: c.thought.thoughts_per_position == 0 and _trains_more_than_pages(c),
        "without thoughts (thought.thoughts_per_position: 0) only the next-token loss is left; set "
        "objective.pg_weight, continuation_weight, entropy_weight and kl_weight to 0 and "
        "objective.ntp_weight above 0",
    ),
    Rule(
        ("placement.interleaved", "thought.answer_tokens"),
        lambda c: c.placement.interleaved and c.thought.answer_tokens > 0,
        "placement.interleaved: later thoughts would have to see answers or to miss them; set "
        "thought.answer_tokens to 0, or placement.interleaved to false",
    ),
    Rule(
        ("placement.interleaved", "thought.thoughts_per_position"),
        lambda c: c.placement.interleaved and c.thought.thoughts_per_position == 0,
        "placement.interleaved: there are no thoughts to see (thought.thoughts_per_position: 0); "
        "set it to false",
    ),
    Rule(
        ("placement.policy", "placement.interleaved", "reading.piece", "objective.advantage"),
        lambda c: (c.repeated_positions > 0 and (c.reads_again or c.objective.advantage == "step")),
        "placement.policy: repeats goes without placement.interleaved, reading.piece and "
        "objective.advantage: step; change that, or set it to 0",
    ),
    Rule(
        ("thought.source", "objective.pg_weight"),
        lambda c: c.thought.source == "pause" and _trains_what_is_sampled(c),
        "thought.source: pause samples nothing, so there is no policy to train; set "
        "objective.pg_weight, entropy_weight and kl_weight and thought.answer_tokens to 0",
    ),
    Rule(
        ("objective.epochs_per_rollout", "objective.algorithm"),
        lambda c: (
            c.objective.algorithm == "policy_gradient" and c.objective.epochs_per_rollout > 1
        ),
        "objective.epochs_per_rollout > 1 reuses thoughts of older weights; set "
        "objective.algorithm to clipped_ratio, cispo or gspo",
    ),
    Rule(
        ("objective.drop_groups_below", "thought.thoughts_per_position"),
        lambda c: c.objective.drops_groups and c.thought.thoughts_per_position < 2,
        "a group of fewer than two thoughts is always dead; set "
        "objective.drop_groups_below to null",
    ),
    Rule(
        ("objective.algorithm",),
        lambda c: 0 < (c.objective.algorithm.get("importance_cap") or 0) < 1,
        "importance_cap of objective.algorithm below 1 cuts the weight of tokens that the sampler "
        "drew as the policy would; set it to 0 (off), or to 1 or more",
    ),
    Rule(
        ("objective.algorithm",),
        lambda c: (
            (c.objective.algorithm.get("importance_cap") or 0) > 0
            and c.objective.algorithm == "gspo"
            and c.objective.algorithm.get("importance_of") == "token"
        ),
        "importance_cap weighs tokens and gspo whole thoughts; take it away, set importance_of to "
        "thought, or set objective.algorithm to another",
    ),
    Rule(
        ("objective.algorithm",),
        lambda c: bool(mask := c.objective.algorithm.get("importance_mask"))
        and mask != [0, 0]
        and not mask[0] < 1 < mask[1],
        "importance_mask of objective.algorithm has to hold 1, where policy and sampler agree: "
        "[0.5, 5], say; [0, 0] is off",
    ),
    Rule(
        ("rollout.samplers",),
        lambda c: c.rollout.samplers.max_age > 0 and c.store is None,
        "rollout.samplers: max_age {rollout.samplers.max_age} is of samplers, and there are none: "
        "set start or store beside it, or max_age to 0",
    ),
    Rule(
        ("rollout.samplers", "data.replay_docs"),
        lambda c: c.rollout.samplers.max_age > 0 and c.data.replay_docs > 0,
        "data.replay_docs goes by what the step before has shown, and with max_age of "
        "rollout.samplers {rollout.samplers.max_age} steps are sampled before that; set one of "
        "them to 0",
    ),
    Rule(
        ("reading.piece", "rollout.samplers"),
        lambda c: c.store is not None and c.reading.piece is not None,
        "reading.piece: each memory of a page is written behind the one before, and results of "
        "samplers do not carry such chains yet; take rollout.samplers away",
    ),
    Rule(
        ("rollout.samplers", "thought.thoughts_per_position"),
        lambda c: c.store is not None and c.thought.thoughts_per_position == 0,
        "thought.thoughts_per_position: 0 leaves samplers nothing to do; take "
        "rollout.samplers away",
    ),
    Rule(
        ("thought.source", "thought.thoughts_per_position"),
        lambda c: c.thought.source == "policy_or_none" and c.thought.thoughts_per_position < 2,
        "thought.source: policy_or_none takes one thought of each group for none, and leaves no "
        "other; set thought.thoughts_per_position to 2 or more",
    ),
    Rule(
        ("thought.source", "thought.tools", "reading.piece"),
        lambda c: (
            c.thought.source == "policy_or_none"
            and (c.thought.tools.opening is not None or c.reading.piece is not None)
        ),
        "thought.source: policy_or_none closes thoughts at once, and thought.tools.opening and the "
        "memories of reading.piece leave none that does; take these away, or set it to policy",
    ),
    Rule(
        ("rollout.engine", "thought.source"),
        lambda c: c.rollout.engine == "vllm" and c.thought.source != "policy",
        "rollout.engine: vllm draws all that is thought, and with thought.source: {thought.source} "
        "not all is drawn; set rollout.engine to inprocess",
    ),
    Rule(
        ("rollout.engine", "thought.thoughts_per_position"),
        lambda c: c.rollout.engine == "vllm" and c.thought.thoughts_per_position == 0,
        "rollout.engine: vllm has nothing to do without thoughts (thought.thoughts_per_position: "
        "0); set it to inprocess",
    ),
    Rule(
        ("rollout.engine", "model.dtype"),
        lambda c: c.rollout.engine == "vllm" and c.model.dtype == "float64",
        "rollout.engine: vllm has no float64; set model.dtype to float32, or rollout.engine to "
        "inprocess",
    ),
    Rule(
        ("rollout.engine", "thought.temperature"),
        lambda c: c.rollout.engine == "vllm" and c.thought.temperature < _LEAST_OF_VLLM,
        "rollout.engine: vllm raises a thought.temperature of {thought.temperature} to 0.01 on its "
        "own; set it to 0.01 or more, or rollout.engine to inprocess",
    ),
    Rule(
        ("baseline.weights", "objective.kl"),
        lambda c: (
            c.objective.kl_weight > 0
            and c.baseline.weights in ("frozen", "ema")
            and c.baseline.weights != c.objective.kl.get("reference")
        ),
        "baseline.weights: {baseline.weights} and the other reference of objective.kl would be two "
        "more copies of the weights; set them to the same, or baseline.weights to current",
    ),
    Rule(
        ("reward.judges", "baseline.weights", "objective.kl"),
        lambda c: c.reward.judges.itself == "frozen" and c.reference_weights == "ema",
        "reward.judges.itself: frozen and a moving average (baseline.weights or objective.kl) "
        "would be two more copies of the weights; set both to frozen, or reward.judges.itself to "
        "policy",
    ),
    Rule(
        ("baseline.use", "baseline.weights"),
        lambda c: c.baseline.use != "subtract" and c.baseline.weights == "none",
        "baseline.use: {baseline.use} compares with a prediction without a thought, and "
        "baseline.weights is none; set baseline.weights to current, or baseline.use to subtract",
    ),
    Rule(
        ("placement.band",),
        lambda c: c.placement.band.entropy[0] >= c.placement.band.entropy[1],
        "placement.band: entropy [{placement.band.entropy[0]}, {placement.band.entropy[1]}] holds "
        "nothing; give the lower end first",
    ),
    Rule(
        ("placement.band",),
        lambda c: c.placement.band.surprise[0] >= c.placement.band.surprise[1],
        "placement.band: surprise [{placement.band.surprise[0]}, {placement.band.surprise[1]}] "
        "holds nothing; give the lower end first",
    ),
    Rule(
        ("baseline.use", "objective.advantage"),
        lambda c: c.baseline.use == "group_member" and c.objective.advantage == "none",
        "baseline.use: group_member joins a mean, and objective.advantage: none takes none; set "
        "baseline.use to subtract, or objective.advantage to another",
    ),
    Rule(
        ("thought.tools", "model.markers"),
        lambda c: bool(c.thought.tools.use)
        and len({*c.thought.tools.markers, c.model.think_open, c.model.think_close, ""}) < 7,
        "thought.tools.markers and the think markers must all differ, and none may be empty",
    ),
    Rule(
        ("thought.tools",),
        lambda c: c.thought.tools.opening not in (None, *c.thought.tools.use),
        "thought.tools.opening: thoughts begin with a call of a tool that thought.tools.use does "
        "not name; name it there, or set opening to null",
    ),
    Rule(
        ("thought.tools", "reading.window"),
        lambda c: "recall" in c.thought.tools.use and c.reading.window is None,
        "thought.tools: recall searches what a reading window loses, and reading.window is null; "
        "set it, or take recall out",
    ),
    Rule(
        ("evaluation.controls", "thought.tools"),
        lambda c: not c.thought.tools.use and bool({*c.evaluation.controls} & {*_OF_RESULTS}),
        "evaluation.controls other_results and no_results change what tools gave, and "
        "thought.tools names no tool; take them away, or name one",
    ),
    Rule(
        ("evaluation.controls", "thought.tools"),
        lambda c: "search" not in c.thought.tools.use
        and any(map(_is_query, c.evaluation.controls)),
        "evaluation.controls last_words, rare_words and others_words are searches, and "
        "thought.tools does not name search; take them away, or name it",
    ),
    Rule(
        ("evaluation.controls", "thought.tools"),
        lambda c: "python" not in c.thought.tools.use and "expression" in c.evaluation.controls,
        "evaluation.controls expression is a computation, and thought.tools does not name python; "
        "take it away, or name python",
    ),
    Rule(
        ("thought.tools", "thought.source"),
        lambda c: bool(c.thought.tools.use) and c.thought.source == "pause",
        "thought.source pause samples nothing, so that nothing calls thought.tools; take them away",
    ),
    Rule(
        ("model.markers",),
        lambda c: c.model.think_open == c.model.think_close,
        "model.markers must differ",
    ),
    Rule(
        ("model.markers",),
        lambda c: not c.model.think_open or not c.model.think_close,
        "the think markers must not be empty",
    ),
    Rule(
        ("reading.window", "thought.answer_tokens"),
        lambda c: c.reading.window is not None and c.thought.answer_tokens > 0,
        "reading.window: an answer is written in sight of what the window loses, so that it says "
        "nothing of a memory; set thought.answer_tokens to 0, or reading.window to null",
    ),
    Rule(
        ("reading.piece", "reading.window"),
        lambda c: (
            c.reading.piece is not None
            and (c.reading.window is None or c.reading.window > c.reading.piece)
        ),
        "reading.piece {reading.piece}: the next piece is read behind a memory and a window of "
        "this one; set reading.window to 0 or more, up to reading.piece",
    ),
    Rule(
        ("reading.piece", "thought.thoughts_per_position"),
        lambda c: c.reading.piece is not None and c.thought.thoughts_per_position < 2,
        "reading.piece: of the thoughts at a position one is the memory before, so that another "
        "has to be written; set thought.thoughts_per_position to 2 or more",
    ),
    Rule(
        ("reading.piece", "placement.policy", "placement.band", "placement.interleaved"),
        lambda c: c.reading.piece is not None and _places(c),
        "reading.piece: memories stand at the ends of pieces, so there is nothing to place; leave "
        "placement.policy, placement.band, placement.interleaved and evaluation.placement out",
    ),
    Rule(
        ("reading.piece", "thought.tools"),
        lambda c: c.reading.piece is not None and bool({*c.thought.tools.use} - {"recall"}),
        "reading.piece: of the tools only recall goes with pages that are read piece by piece; "
        "take the others out of thought.tools, or set reading.piece to null",
    ),
    Rule(
        ("reading.mixing", "objective.continuation_weight"),
        lambda c: bool(c.reading.mixing) and c.objective.continuation_weight == 0,
        "reading.mixing: its head is learnt by the likelihood of continuations alone; set "
        "objective.continuation_weight above 0, or reading.mixing to false",
    ),
    Rule(
        ("reading.mixing", "reading.piece", "thought.answer_tokens"),
        lambda c: (
            bool(c.reading.mixing) and (c.reading.piece is not None or c.thought.answer_tokens > 0)
        ),
        "reading.mixing: answers and carried memories are read without mixing; set reading.mixing "
        "to false, or reading.piece to null and thought.answer_tokens to 0",
    ),
    Rule(
        ("evaluation.controls", "reading.window"),
        lambda c: c.reading.window is None and any(map(_is_piece, c.evaluation.controls)),
        "evaluation.controls: pieces of what a reading window loses, and reading.window is null; "
        "set it, or take first_tokens and the names that end in _piece out",
    ),
    Rule(
        ("data.source", "placement.positions_per_doc", "evaluation.placement"),
        lambda c: c.data.has_tasks and c.most_positions > 1,
        "a task of data.source has one position, where its answer begins; set "
        "placement.positions_per_doc to 1, and take that of evaluation.placement away",
    ),
    Rule(
        ("data.source", "placement.interleaved", "reading.window"),
        lambda c: c.data.has_tasks and (c.placement.interleaved or c.reading.window is not None),
        "tasks of data.source are read whole, with one thought in each: set placement.interleaved "
        "to false, and reading.window to null",
    ),
    Rule(
        ("data.source", "placement.policy", "placement.band", "evaluation.placement"),
        lambda c: c.data.has_tasks and not c.data.has_pages and _places(c),
        "there is nothing to place in tasks; leave placement.policy, placement.band and "
        "evaluation.placement out",
    ),
    Rule(
        ("data.source", "rollout.samplers"),
        lambda c: c.data.has_tasks and c.store is not None,
        "samplers of a store do not get tasks yet; take start and store out of rollout.samplers",
    ),
    Rule(
        ("data.source", "data.tasks", "evaluation.source"),
        lambda c: not _tasks_of(c) and c.data.tasks != type(c.data).model_fields["tasks"].default,
        "data.tasks says how tasks are read, and data.source names none; take it away, or name one "
        "(task:FILE.jsonl)",
    ),
    Rule(
        ("data.source", "data.tasks"),
        lambda c: bool(_tasks_of(c)) and not {f"gym:{n}" for n in c.data.tasks.gym} <= _tasks_of(c),
        "data.tasks.gym has settings of a generator that data.source does not name; take them "
        "away, or add task:gym:GENERATOR",
    ),
    Rule(
        ("data.source", "reward.scheme"),
        lambda c: c.data.has_tasks and c.data.has_pages and not _drives(c.reward.weights, False),
        "reward.scheme {reward.label}: on the pages of data.source every thought would earn 0; add "
        "a scheme for them, such as log_ratio, with on_tasks: 0",
    ),
    Rule(
        ("data.source", "reward.scheme"),
        lambda c: c.data.has_tasks and not _drives(c.reward.weights_on_tasks, True),
        "reward.scheme {reward.label}: on_tasks is 0 for all that drives, so that tasks teach "
        "nothing; give one of them a weight, or take the tasks out of data.source",
    ),
)
