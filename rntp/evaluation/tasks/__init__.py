"""Downstream tasks of lm-evaluation-harness, answered with and without a thought."""

from rntp.evaluation.tasks.tasks import evaluate_tasks as evaluate_tasks
