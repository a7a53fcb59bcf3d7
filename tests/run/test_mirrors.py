"""Mirrors of the metrics: each step once, whatever a tracker does; and the real trackers, where
they are installed."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_run
from rich.console import Console

from rntp.config import Config
from rntp.config.mirrors import MLflow, TensorBoard, Trackio
from rntp.errors import ConfigError, Preempted
from rntp.run.log import RunLog, read_metrics
from rntp.run.mirrors import TRACKERS, feeder, mlflow, tensorboard, trackio
from rntp.run.mirrors.feeder import Feeder
from rntp.run.mirrors.protocol import RunFacts, numbers
from rntp.run.tail import Tail
from rntp.runtime.files import json_lines, write_bytes_atomic

CANARY = "canary-5b1f0c2e77aa"


def config(run_dir: Path, **mirrors: dict | None) -> Config:
    raw = tiny_run(Path("some/model"), Path("shards"), run_dir)
    return Config.parse({**raw, "log": {"mirrors": mirrors}})


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"), force_terminal=False)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def steps(*numbers: int) -> list[dict]:
    return [{"step": n, "gain/mean": n / 8, "data/digest": "d"} for n in numbers]


def write_steps(path: Path, *numbers: int) -> None:
    with path.open("ab") as file:
        file.write(json_lines(steps(*numbers)))


class FakeTracker:
    """Keeps what it is sent. failing: raise at the next so many writes. held: blocks writes."""

    def __init__(self, failing: int = 0) -> None:
        self.rows: list[dict] = []
        self.failing = failing
        self.held = threading.Event()
        self.held.set()
        self.ends: list[int] = []

    def last_step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    def write(self, rows: Sequence[Any]) -> None:
        self.held.wait(20)
        if self.failing:
            self.failing -= 1
            raise RuntimeError("the network is down")
        self.rows += rows

    def close(self, exit_code: int) -> None:
        self.ends.append(exit_code)


# The thread


def test_each_step_is_sent_once_and_what_was_there_before_too(tmp_path: Path) -> None:
    metrics, tracker = tmp_path / "metrics.jsonl", FakeTracker()
    write_steps(metrics, 1, 2)
    fed = Feeder("fake", lambda say: tracker, metrics)
    fed.wake()
    until(lambda: len(tracker.rows) == 2)
    write_steps(metrics, 3)
    fed.wake()
    until(lambda: len(tracker.rows) == 3)
    # A resume forgets step 3 and makes it again; another process goes on.
    fed.close(5)
    fed.wait(20)
    write_bytes_atomic(metrics, json_lines(steps(1, 2)))
    again = Feeder("fake", lambda say: tracker, metrics)
    write_steps(metrics, 3, 4)
    again.wake()
    again.close(0)
    again.wait(20)
    assert [row["step"] for row in tracker.rows] == [1, 2, 3, 4]
    assert tracker.ends == [5, 0]
    assert again.notes() == []


def test_a_rewound_file_in_the_middle_of_a_run_sends_nothing_twice(tmp_path: Path) -> None:
    metrics, tracker = tmp_path / "metrics.jsonl", FakeTracker()
    fed = Feeder("fake", lambda say: tracker, metrics)
    write_steps(metrics, 1, 2, 3, 4)
    fed.wake()
    until(lambda: len(tracker.rows) == 4)
    write_bytes_atomic(metrics, json_lines(steps(1, 2)))
    write_steps(metrics, 3, 4, 5)
    fed.wake()
    fed.close(0)
    fed.wait(20)
    assert [row["step"] for row in tracker.rows] == [1, 2, 3, 4, 5]


def test_a_tracker_that_fails_is_told_of_once_and_sent_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "RETRY_S", 0.01)
    metrics, tracker = tmp_path / "metrics.jsonl", FakeTracker(failing=3)
    fed = Feeder("fake", lambda say: tracker, metrics)
    write_steps(metrics, 1, 2)
    fed.wake()
    until(lambda: len(tracker.rows) == 2)
    write_steps(metrics, 3)
    until(lambda: not fed._failures)
    fed.wake()
    until(lambda: len(tracker.rows) == 3)
    first, second = fed.notes()
    assert first.startswith("the mirror fake failed (RuntimeError: the network is down) and is tr")
    assert "has the steps up to 0" in first
    assert second == "the mirror fake works again and has all steps"


def test_a_tracker_that_hangs_slows_nothing_and_is_not_waited_for(tmp_path: Path) -> None:
    metrics, tracker = tmp_path / "metrics.jsonl", FakeTracker()
    tracker.held.clear()
    fed = Feeder("fake", lambda say: tracker, metrics)
    begin = time.monotonic()
    for step in range(1, 200):
        write_steps(metrics, step)
        fed.wake()
    fed.close(0)
    fed.wait(0.05)
    assert time.monotonic() - begin < 5
    (note,) = fed.notes()
    assert note.startswith("the mirror fake takes too long and is not waited for; it has the steps")
    tracker.held.set()


def test_a_run_that_ends_while_its_tracker_is_away_says_so(tmp_path: Path) -> None:
    def away(say: Callable[[str], None]) -> FakeTracker:
        raise OSError("no route")

    write_steps(tmp_path / "metrics.jsonl", 1)
    fed = Feeder("fake", away, tmp_path / "metrics.jsonl")
    fed.wake()
    fed.close(0)
    fed.wait(20)
    told = fed.notes()
    assert "failed (OSError: no route)" in told[-1]
    assert "metrics.jsonl has all" in told[-1]


def test_a_tail_reads_whole_lines_once_and_begins_again_with_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b'{"step": 1}\n{"step": 2')
    assert tail.read() == [{"step": 1}]
    assert tail.restarted
    with path.open("ab") as file:
        file.write(b'}\nnot json\n[3]\n\n{"step": "\xe2\x80\xa8"}\n')
    assert tail.read() == [{"step": 2}, {"step": "\u2028"}]
    assert not tail.restarted
    assert tail.read() == []
    write_bytes_atomic(path, b'{"step": 9}\n')
    assert tail.read() == [{"step": 9}]
    assert tail.restarted
    path.write_bytes(b"")  # the same file, shorter
    assert tail.read() == []
    assert tail.restarted


def test_only_finite_numbers_are_drawn() -> None:
    row = {"step": 3, "a": 1, "b": None, "c": "text", "d": float("nan"), "e": True, "f": 0.5}
    assert numbers(row) == {"a": 1.0, "f": 0.5}


# The config


def test_mirrors_of_a_config() -> None:
    made = config(Path("x"), tensorboard=None, mlflow={"uri": "http://host:5000"})
    assert made.log.mirrors.chosen() == {
        "tensorboard": TensorBoard(),
        "mlflow": MLflow(uri="http://host:5000"),
    }
    # What is not named stays off when the resolved config is read back.
    assert Config.parse(json.loads(made.model_dump_json())) == made
    assert config(Path("x")).log.mirrors.chosen() == {}
    assert set(TRACKERS) == set(type(made.log.mirrors).model_fields)


@pytest.mark.parametrize(
    ("mirrors", "message"),
    [
        ({"tensorbord": None}, r"log.mirrors.tensorbord: no such .*did you mean `tensorboard`\?"),
        ({"comet": None}, r"log.mirrors.comet: no such .*tensorboard, trackio, wandb"),
        ({"mlflow": {"url": "x"}}, r"log.mirrors.mlflow.url: no such .*did you mean `uri`\?"),
        ({"wandb": {"mode": "off"}}, r"log.mirrors.wandb.mode: .*'online' or 'offline'"),
    ],
)
def test_mistakes_in_mirrors_are_explained(mirrors: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(Path("x"), **mirrors)


@pytest.mark.parametrize(("name", "kind"), TRACKERS.items())
def test_a_missing_package_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any
) -> None:
    monkeypatch.setitem(sys.modules, kind.package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'rntp\[{kind.extra}\]'"):
        RunLog(tmp_path, config(tmp_path, **{name: None}), console=quiet())


# The log


def stopped_run(run_dir: Path) -> None:
    with RunLog(run_dir, config(run_dir, trackio=None), console=quiet()) as log:
        log.step({"step": 1, "note": CANARY})
        log.step({"step": 2})
        raise Preempted("stop")


def test_a_run_sends_its_steps_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = FakeTracker()
    home = types.ModuleType("fake_home")
    home.open_tracker = lambda facts, settings, say: tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, TRACKERS["trackio"].home, home)
    monkeypatch.setitem(sys.modules, "trackio", types.ModuleType("trackio"))
    monkeypatch.setenv("MY_API_KEY", CANARY)
    with pytest.raises(Preempted):
        stopped_run(tmp_path)
    assert tracker.rows == [{"step": 1, "note": "[redacted]"}, {"step": 2}]
    assert tracker.ends == [5]


# wandb, made up: the real one is below, offline


class FakeRun:
    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.defined: list[tuple[str, str | None]] = []
        self.logged: list[dict] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def log(self, metrics: dict, step: int) -> None:
        assert step == metrics["step"]
        if self.broken:
            raise RuntimeError("the network is down")
        self.logged.append(metrics)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def fake_wandb(monkeypatch: pytest.MonkeyPatch, run: FakeRun) -> dict:
    given: dict = {}

    def init(**arguments: object) -> FakeRun:
        given.update(arguments)
        return run

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return given


def test_wandb_gets_the_metrics_under_our_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    given = fake_wandb(monkeypatch, run)
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    with RunLog(tmp_path, config(tmp_path, wandb=None), console=quiet()) as log:
        log.step({"step": 1, "reward/mean": 0.5})
    assert given["mode"] == "online"
    assert given["project"] == "rntp"
    assert run.defined == [("step", None), ("*", "step")]
    assert run.logged == [{"step": 1, "reward/mean": 0.5}]
    assert run.exit_code == 0
    assert CANARY not in str(given)
    # The next start sends what is new.
    with RunLog(tmp_path, config(tmp_path, wandb=None), console=quiet()) as log:
        log.step({"step": 2})
    assert run.logged == [{"step": 1, "reward/mean": 0.5}, {"step": 2}]


def test_wandb_without_a_key_is_offline_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fake_wandb(monkeypatch, FakeRun())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with RunLog(tmp_path, config(tmp_path, wandb=None), console=quiet()) as log:
        log.step({"step": 1})
    assert given["mode"] == "offline"
    assert "WANDB_API_KEY is not set: logging offline" in (tmp_path / "log.txt").read_text()


def test_trouble_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wandb(monkeypatch, FakeRun(broken=True))
    settings: Any = {"mode": "offline"}
    with RunLog(tmp_path, config(tmp_path, wandb=settings), console=quiet()) as log:
        log.step({"step": 1})
        until(lambda: bool(log._mirrors._feeders[0]._failures))
        for step in (2, 3):
            log.step({"step": step})
    said = (tmp_path / "log.txt").read_text()
    assert said.count("and is tried again") == 1
    assert said.count("a resumed run sends the rest") == 2  # once more at the end
    assert len(read_metrics(tmp_path)) == 3


# The real trackers


def facts(run_dir: Path, **more: Any) -> RunFacts:
    return RunFacts(run_dir, "demo", "0123456789abcdef", {"run": {"seed": 3}, **more})


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


def feed_twice(opening: Callable[..., Any], metrics: Path) -> None:
    """Steps 1 to 3, a stop, and 3 to 5 by the next start."""
    write_steps(metrics, 1, 2, 3)
    for more, code in (((), 5), ((4, 5), 0)):
        write_steps(metrics, *more)
        fed = Feeder("real", opening, metrics)
        fed.wake()
        fed.close(code)
        fed.wait(60)
        assert fed.notes() == []


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    needs("tensorboard")
    feed_twice(
        lambda say: tensorboard.open_tracker(facts(tmp_path), TensorBoard(), say),
        tmp_path / "metrics.jsonl",
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert read.Tags()["scalars"] == ["gain/mean"]
    scalars = read.Scalars("gain/mean")
    assert [(s.step, s.value) for s in scalars] == [(n, n / 8) for n in (1, 2, 3, 4, 5)]


def test_tensorboard_goes_on_behind_a_file_that_a_kill_cut_off(tmp_path: Path) -> None:
    needs("tensorboard")
    opened = tensorboard.open_tracker(facts(tmp_path), TensorBoard(dir=tmp_path / "tb"), print)
    opened.write(steps(1, 2, 3))
    opened.close(0)
    (file,) = (tmp_path / "tb").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    again = tensorboard.open_tracker(facts(tmp_path), TensorBoard(dir=tmp_path / "tb"), print)
    assert again.last_step() == 2
    again.close(0)


def test_trackio_reads_back_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    needs("trackio")
    import trackio.sqlite_storage as storage
    import trackio.utils

    for module in (storage, trackio.utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    feed_twice(
        lambda say: trackio_open(facts(tmp_path), Trackio(project="p"), say),
        tmp_path / "metrics.jsonl",
    )
    rows = storage.SQLiteStorage.get_logs("p", "demo")
    assert [(row["step"], row["gain/mean"]) for row in rows] == [
        (n, n / 8) for n in (1, 2, 3, 4, 5)
    ]
    assert storage.SQLiteStorage.get_run_config("p", "demo")["run"] == {"seed": 3}
    assert list((tmp_path / "trackio").glob("p.db"))
    assert capfd.readouterr().out == ""


trackio_open = trackio.open_tracker


@pytest.fixture
def mlflow_uri(tmp_path: Path) -> str:
    """RNTP_MLFLOW_URI, a server that runs; or a store of its own where MLflow is whole."""
    needs("mlflow")
    given = os.environ.get("RNTP_MLFLOW_URI")
    if given:
        return given
    if importlib.util.find_spec("sqlalchemy") is None:
        pytest.skip("the client alone is installed; RNTP_MLFLOW_URI names a server to try")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_mlflow_reads_back_what_was_written(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow.tracking import MlflowClient

    name = f"rntp-{time.time_ns()}"
    settings = MLflow(uri=mlflow_uri, experiment=name)
    feed_twice(
        lambda say: mlflow.open_tracker(facts(tmp_path, odd={"a±b": "x" * 900}), settings, say),
        tmp_path / "metrics.jsonl",
    )
    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "gain/mean")
    assert [(m.step, m.value) for m in history] == [(n, n / 8) for n in (1, 2, 3, 4, 5)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "demo"
    assert run.data.params["run.seed"] == "3"
    assert run.data.params["odd.a_b"] == "x" * 500


OFFLINE = """
import sys
from pathlib import Path
from rntp.config.mirrors import Wandb
from rntp.run.mirrors.feeder import Feeder
from rntp.run.mirrors.protocol import RunFacts
from rntp.run.mirrors.wandb import open_tracker

folder = Path(sys.argv[1])
facts = RunFacts(folder, "demo", "0123456789abcdef", {"run": {"seed": 3}})
for lines, code in ((3, 5), (5, 0)):
    kept = (folder / "all.jsonl").read_bytes().splitlines(keepends=True)[:lines]
    (folder / "metrics.jsonl").write_bytes(b"".join(kept))
    settings = Wandb(mode="offline")
    fed = Feeder("w", lambda say: open_tracker(facts, settings, say), folder / "metrics.jsonl")
    fed.wake()
    fed.close(code)
    fed.wait(60)
    assert not fed.notes()
"""


def wandb_history(path: Path) -> list[dict]:
    """The rows in an offline file, which is a log in LevelDB's format, here of one block."""
    from wandb.proto import wandb_internal_pb2

    data, rows, at = path.read_bytes(), [], 7
    assert data[:4] == b":W&B"
    assert len(data) < 1 << 15
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1  # a whole record
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return rows


@pytest.mark.slow
def test_wandb_offline_writes_what_can_be_read_back(tmp_path: Path) -> None:
    needs("wandb")
    write_steps(tmp_path / "all.jsonl", 1, 2, 3, 4, 5)
    env = {**os.environ, "WANDB_SILENT": "true"}
    env.pop("WANDB_API_KEY", None)
    # In a process of its own: wandb leaves a service and handlers behind.
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    rows = [(row["step"], row["gain/mean"]) for row in wandb_history(first)]
    assert rows == [(n, n / 8) for n in (1, 2, 3)]
    later = wandb_history(second)
    assert [(row["step"], row["gain/mean"]) for row in later] == [(n, n / 8) for n in (4, 5)]
    # wandb's own count goes on, too: a sync of both would drop a number that comes twice.
    assert [row["_step"] for row in later] == [4, 5]
