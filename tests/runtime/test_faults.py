"""Fault points: what can be armed, what is refused, and what fires when."""

import errno
import json
import time
from pathlib import Path

import pytest
import torch

from rntp.errors import ConfigError
from rntp.runtime import faults
from rntp.runtime.faults import Fault, InjectedFault, fault_point


@pytest.fixture(autouse=True)
def disarm():
    yield
    faults.arm({})


def test_a_specification_is_read() -> None:
    assert faults.parse("save.file@1#2=kill; forward#3-5=nan;save.rename.after=flip:w*") == [
        Fault("save.file", "kill", "", 1, 2, 2),
        Fault("forward", "nan", "", None, 3, 5),
        Fault("save.rename.after", "flip", "w*", None, 1, 1),
    ]
    assert faults.parse("") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("save.fiel=kill", "no fault point 'save.fiel'; did you mean save.file"),
        ("rollout=kil", "no action 'kil'; did you mean kill"),
        ("rollout", "is not point"),
        ("rollout#0=kill", "count from 1"),
        ("rollout#3-2=kill", "the earlier first"),
        (
            "rollout=nan",
            "nan works on tensors, and only forward, gradient, sampler.loaded have any",
        ),
        ("rollout=flip:*", "flip works on files, and only save.file"),
        ("save.file=flip", r"write save.file=flip:\*.safetensors"),
        ("save.file=kill:*", "write save.file=kill"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        faults.arm({faults.ARMED_BY: text})


def test_it_fires_at_its_time_and_rank_and_proves_it(tmp_path, monkeypatch) -> None:
    proof = tmp_path / "proof"
    monkeypatch.setenv(faults.PROOF_IN, str(proof))
    faults.arm({faults.ARMED_BY: "rollout#2=raise;step.end@1=enospc"})
    fault_point("rollout")
    fault_point("step.end")  # of rank 0
    assert not proof.exists()
    with pytest.raises(InjectedFault):
        fault_point("rollout")
    fault_point("rollout")
    monkeypatch.setenv("RANK", "1")
    faults.arm({faults.ARMED_BY: "step.end@1=enospc"})
    with pytest.raises(OSError, match="injected") as caught:
        fault_point("step.end")
    assert caught.value.errno == errno.ENOSPC
    lines = [json.loads(line) for line in proof.read_text().splitlines()]
    assert [(p["point"], p["rank"], p["nth"]) for p in lines] == [
        ("rollout", 0, 2),
        ("step.end", 1, 1),
    ]


def test_tensors_and_files_are_damaged(tmp_path: Path) -> None:
    tensor = torch.ones(3, requires_grad=True)
    faults.arm({faults.ARMED_BY: "forward=nan;gradient=inf;save.file#1-3=zero:a*"})
    fault_point("forward", tensor)
    assert tensor.isnan().all()
    fault_point("gradient", tensor)
    assert tensor.isinf().all()
    (tmp_path / "a.bin").write_bytes(b"\xff" * 10_000)
    (tmp_path / "b.bin").write_bytes(b"\xff" * 10_000)
    fault_point("save.file", files=tmp_path)
    assert (tmp_path / "a.bin").read_bytes().count(0) == 4096
    assert (tmp_path / "b.bin").read_bytes().count(0) == 0
    (tmp_path / "a.bin").unlink()
    with pytest.raises(AssertionError, match="no file fits"):
        fault_point("save.file", files=tmp_path)


@pytest.mark.parametrize(("how", "size", "bits"), [("truncate", 500, 0), ("flip", 1000, 1)])
def test_damage(tmp_path: Path, how: str, size: int, bits: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(1000))
    faults.damage(path, how)
    data = path.read_bytes()
    assert len(data) == size
    assert sum(byte.bit_count() for byte in data) == bits


def test_off_it_costs_nothing_to_speak_of() -> None:
    faults.arm({})
    start = time.process_time()
    for _ in range(10_000):
        fault_point("forward", None)
    assert time.process_time() - start < 0.1  # 10 µs each; a step has a few dozen
