"""The keys of metrics.jsonl that runs on tasks write; see `rntp.run.metric_keys`."""

from rntp.run.metric import Metric

WITH_TASKS = "tasks in `data.source`, `thought.answer_tokens`"

TASK_METRICS = (
    Metric(
        "task/pass_rate",
        "share, 0 to 1",
        "Share of the answers to tasks that their rule finds right: pass@1 at the temperature of "
        "training.",
        "What RLVR raises. Tasks differ from step to step; the evaluations, on held-out tasks and "
        "with intervals, say more.",
        when=WITH_TASKS,
    ),
    Metric(
        "task/solved_frac",
        "share, 0 to 1",
        "Share of the step's tasks that at least one attempt solves: pass@G, G being "
        "`thought.thoughts_per_position`.",
        "Where it stays while `task/pass_rate` rises, the policy becomes surer of what it could "
        "do.",
        when=WITH_TASKS,
    ),
    Metric(
        "task/mixed_frac",
        "share, 0 to 1",
        "Share of the step's tasks that some attempts solve and others do not.",
        "These alone teach under the scheme `correct`.",
        "Near 0: the tasks are too hard (`task/solved_frac` near 0) or too easy (near 1).",
        when=WITH_TASKS,
    ),
)
