"""Metrics as event files, for `tensorboard --logdir RUN_DIR`."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rntp.config.mirrors import TensorBoard
from rntp.run.mirrors.protocol import Row, RunFacts, numbers


class TensorBoardFiles:
    """One event a step that holds all its scalars: a tenth of the size of an event for each."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._last = _last_step(folder)
        self._writer: Any = EventFileWriter(str(folder))

    def last_step(self) -> int:
        return self._last

    def write(self, rows: Sequence[Row]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            values = [Summary.Value(tag=k, simple_value=v) for k, v in numbers(row).items()]
            summary = Summary(value=values)
            self._writer.add_event(Event(wall_time=time.time(), step=row["step"], summary=summary))
        self._writer.flush()

    def close(self, exit_code: int) -> None:
        self._writer.close()


def open_tracker(
    facts: RunFacts, settings: TensorBoard, say: Callable[[str], None]
) -> TensorBoardFiles:
    """Open a new event file beside those of earlier starts."""
    return TensorBoardFiles(settings.dir or facts.run_dir / "tensorboard")


def _last_step(folder: Path) -> int:
    """The last step with values. A record that a kill cut off ends its file."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last = 0
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.HasField("summary"):
                last = max(last, event.step)
    return last
