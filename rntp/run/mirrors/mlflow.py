"""Metrics in MLflow, on a server or in a store of files."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rntp.config.mirrors import MLflow
from rntp.run.mirrors.protocol import Row, RunFacts, numbers

RUN_TAG = "rntp.run"
_PREEMPTED = 5
_MOST_METRICS = 900  # of one request; MLflow takes 1000
_MOST_PARAM_CHARS = 500
_NOT_ALLOWED = re.compile(r"[^\w\-. /]")


class MLflowRun:
    """The run of an experiment that bears our id as a tag, found again after a resume."""

    def __init__(self, facts: RunFacts, settings: MLflow) -> None:
        # By default a request to a server that is away takes minutes to fail.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # It would print addresses between the lines of the run.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=settings.uri or None)
        experiment = self._experiment(settings.experiment)
        found = self._client.search_runs(
            [experiment], filter_string=f"tags.`{RUN_TAG}` = '{facts.id}'", max_results=1
        )
        if found:
            self._id = found[0].info.run_id
            self._last = int(found[0].data.metrics.get("step", 0))
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._last = 0
            run = self._client.create_run(experiment, run_name=facts.name, tags={RUN_TAG: facts.id})
            self._id = run.info.run_id
            self._log_config(facts.config)

    def last_step(self) -> int:
        return self._last

    def write(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        batch: list[Any] = []
        now = int(time.time() * 1000)
        for row in rows:
            # `step` as a metric, too: its last value says how far the run has been sent.
            values = {**numbers(row), "step": float(row["step"])}
            if len(batch) + len(values) > _MOST_METRICS:
                self._client.log_batch(self._id, metrics=batch, synchronous=True)
                batch = []
            for key, value in values.items():
                batch.append(Metric(_NOT_ALLOWED.sub("_", key), value, now, row["step"]))
        self._client.log_batch(self._id, metrics=batch, synchronous=True)

    def close(self, exit_code: int) -> None:
        ends = {0: "FINISHED", _PREEMPTED: "KILLED"}
        self._client.set_terminated(self._id, ends.get(exit_code, "FAILED"))

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [
            Param(_NOT_ALLOWED.sub("_", name), str(value)[:_MOST_PARAM_CHARS])
            for name, value in _flat(config)
        ]
        for first in range(0, len(params), 100):  # as many as one request takes
            self._client.log_batch(self._id, params=params[first : first + 100], synchronous=True)


def open_tracker(facts: RunFacts, settings: MLflow, say: Callable[[str], None]) -> MLflowRun:
    """Open the run, or make it with its config as parameters."""
    return MLflowRun(facts, settings)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
