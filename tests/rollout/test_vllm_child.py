"""The child's process and its protocol, and what is said where vLLM is missing."""

import socket
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_run

from rntp.config import Config
from rntp.errors import ConfigError, Preempted, SamplersLost
from rntp.rollout.vllm import environment
from rntp.rollout.vllm.child import FOLDER, ClosedError, Frame, Served, receive, rows, send
from rntp.rollout.vllm.environment import Environment, check_environment, find_environment
from rntp.rollout.vllm.process import CHILD, Child
from rntp.training.diagnosis import diagnose

# A child that does as it is told, without anything but the protocol.
PROGRAM = f"""
import importlib.util, os, signal, socket, sys, time
spec = importlib.util.spec_from_file_location("child", {str(CHILD)!r})
child = importlib.util.module_from_spec(spec)
sys.modules["child"] = child
spec.loader.exec_module(child)
def answer(frame):
    if frame.kind == "die":
        print("out of memory, says the kernel", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if frame.kind == "leave":
        os._exit(3)
    if frame.kind == "sleep":
        time.sleep(30)
    if frame.kind == "fail":
        raise KeyError("no such layer")
    if frame.kind == "environment":
        return child.Frame("told", {{"threads": os.environ.get("OMP_NUM_THREADS")}})
    print("to standard output")
    return child.Frame("echo", frame.facts, frame.arrays)
child.serve(socket.socket(fileno=int(sys.argv[-1])), answer)
"""


@pytest.fixture
def child(tmp_path: Path) -> Child:
    log, variables = tmp_path / "logs" / "vllm.txt", {"OMP_NUM_THREADS": "7"}
    started = Child([sys.executable, "-c", PROGRAM], log, variables)
    yield started
    started.close()


def test_arrays_come_back_as_they_were(child: Child) -> None:
    arrays = {
        "ids": np.arange(70_000, dtype=np.int32),
        "seed": np.asarray([0, (1 << 63) - 1]),
        "logprobs": np.asarray([-0.1, -1e-30], dtype=np.float32),
        "none": np.zeros(0, dtype=np.int64),
    }
    found = child.ask(Frame("echo", {"salt": "vé"}, arrays), "echo")
    assert dict(found.facts) == {"salt": "vé"}
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    told = child.ask(Frame("environment"), "told")
    assert told.facts["threads"] == "7"
    assert [part.tolist() for part in rows(np.arange(5), np.asarray([2, 0, 3]))] == [
        [0, 1],
        [],
        [2, 3, 4],
    ]
    assert rows(np.zeros(0), np.zeros(0, dtype=np.int64)) == []


@pytest.mark.parametrize(("kind", "how"), [("die", "by signal 9"), ("leave", "with exit code 3")])
def test_a_child_that_ends_is_told_of(child: Child, kind: str, how: str) -> None:
    with pytest.raises(SamplersLost, match=how) as lost:
        child.ask(Frame(kind), "echo")
    assert lost.value.exit_code == 5
    assert f"while it was to {kind}" in str(lost.value)
    if kind == "die":
        assert "out of memory, says the kernel" in str(lost.value)
    with pytest.raises(SamplersLost):
        child.ask(Frame("echo"), "echo")


def test_what_fails_there_is_told_here(child: Child) -> None:
    with pytest.raises(ConfigError, match="vLLM cannot fail: KeyError: 'no such layer'"):
        child.ask(Frame("fail"), "echo")
    assert child.ask(Frame("echo"), "echo").kind == "echo"  # it goes on
    with pytest.raises(ConfigError, match="another version of rntp"):
        child.ask(Frame("echo"), "sampled")


def test_a_stop_request_ends_it_at_once(child: Child) -> None:
    begun = time.monotonic()

    def check() -> None:
        raise Preempted("stop")

    with pytest.raises(Preempted):
        child.ask(Frame("sleep"), "echo", check)
    child.close()
    assert time.monotonic() - begun < 25  # it sleeps for 30
    assert child._process.returncode is not None


def test_a_child_that_hangs_is_given_up(tmp_path: Path) -> None:
    hangs = Child([sys.executable, "-c", PROGRAM], tmp_path / "log.txt", {}, patience_s=0.3)
    signs: list[None] = []
    try:
        with pytest.raises(SamplersLost, match=r"not answered for 0\.3 s .* to sleep"):
            hangs.ask(Frame("sleep"), "echo", lambda: signs.append(None))
    finally:
        hangs.close()
    assert len(signs) >= 2


def test_weights_of_a_parent_that_was_killed_are_removed(tmp_path: Path) -> None:
    served, others = Served(), tmp_path / "mine"
    for folder in (tmp_path / f"{FOLDER}x", others):
        folder.mkdir()
        served._folder = str(folder)
        served.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_is_no_frame_is_refused() -> None:
    one, other = socket.socketpair()
    one.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ValueError, match="no frame"):
        receive(other)
    one, other = socket.socketpair()
    send(one, Frame("a", {}, {"x": np.zeros(3)}))
    whole = other.recv(1 << 16)
    one.sendall(whole[:-4])
    one.close()
    with pytest.raises(ClosedError):
        receive(other)
    one, other = socket.socketpair()
    other.settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive(other)


def config_of(tmp_path: Path, *overrides: str) -> Config:
    raw = tiny_run(tmp_path, tmp_path, tmp_path / "run")
    return Config.parse(raw, ["rollout.engine=vllm", *overrides])


def fake_python(folder: Path, version: str) -> Path:
    """An interpreter that says so much of its vLLM."""
    path = folder / "bin" / "python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_without_an_environment_the_make_target_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(environment.NAMED_BY, raising=False)
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path)
    with pytest.raises(ConfigError, match=r"no \.venv-vllm/bin/python: `make vllm`"):
        check_environment(config)
    monkeypatch.setenv(environment.NAMED_BY, sys.executable)  # it has rntp, and no vLLM
    with pytest.raises(ConfigError, match=r"has none: `make vllm`"):
        check_environment(config)
    monkeypatch.setenv(environment.NAMED_BY, str(fake_python(tmp_path / "old", "0.9.1")))
    with pytest.raises(ConfigError, match=r"has vLLM 0\.9\.1, and rntp drives 0\.32 only"):
        check_environment(config)
    monkeypatch.delenv(environment.NAMED_BY)
    check_environment(config_of(tmp_path, "rollout.samplers=1"))  # these start it
    check_environment(config_of(tmp_path, "rollout.engine=inprocess"))


def test_the_environment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environment.NAMED_BY, raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    here = fake_python(tmp_path / "env", "0.32.0")
    asked = config_of(tmp_path, f"rollout.engine={{vllm: {{python: {here}}}}}")
    assert find_environment(asked) == Environment(here, "0.32.0")
    assert find_environment(asked).variables(3) == {
        "OMP_NUM_THREADS": "3",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    library = tmp_path / "env" / "lib" / "libiomp5.so"
    library.parent.mkdir()
    library.touch()
    assert Environment(here, "0.32.0").variables(1)["LD_PRELOAD"] == str(library)
    monkeypatch.chdir(tmp_path)
    facts, missing = diagnose(None)
    assert facts["vLLM"] == "absent"
    assert any(line.startswith("vLLM") and "make vllm" in line for line in missing)
    monkeypatch.setenv(environment.NAMED_BY, str(here))
    facts, _ = diagnose(None)
    assert facts["vLLM"] == f"0.32.0 ({here})"
