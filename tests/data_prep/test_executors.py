"""Preparation on a cluster: what is asked of the user, and who says that a task is missing."""

import os
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="extra `prep`")

import rntp_data_prep.executors as executors

from rntp.cli import main
from rntp.data import Manifest
from rntp.errors import DataError

# What Slurm's command does, one task after the other; the task that FAILS names is lost.
SBATCH = """#!/bin/bash
last="${@: -1}"
tasks=$(grep -oP -- '--array=0-\\K[0-9]+' "$last")
for n in $(seq 0 "$tasks"); do
  [ "$n" = "$FAILS" ] && continue
  SLURM_ARRAY_TASK_ID=$n SLURM_JOB_ID=7 SLURM_NODELIST=n1 bash "$last" >> "$TOLD" 2>&1
done
echo Submitted batch job 7
"""


def call(*arguments: str) -> int:
    """Exit code of the program."""
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("options", "missing"),
    [({}, "partition and time"), ({"time": "1:00"}, "partition"), ({"partition": "cpu"}, "time")],
)
def test_slurm_wants_a_partition_and_a_time(options: dict[str, str], missing: str) -> None:
    with pytest.raises(executors.ConfigError, match=f"wants to know {missing}: give --sbatch"):
        executors.slurm(0, options)


def test_options_of_sbatch_without_slurm_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "prep.yaml"
    config.write_text("sources: [a.jsonl]\noutput: out\ntokenizer: none\n")
    assert call("data", "prep", str(config), "--sbatch", "time=1:00") == 2
    assert "--sbatch is for --on slurm" in capsys.readouterr().err
    assert call("data", "prep", str(config), "--on", "slurm", "--sbatch", "=cpu") == 2
    assert "NAME=VALUE" in capsys.readouterr().err


def test_a_task_without_a_marker_is_missed(tmp_path: Path) -> None:
    (tmp_path / "completions").mkdir()
    for n in (0, 2):
        (tmp_path / f"completions/{n:05d}").touch()
    with pytest.raises(DataError, match="1 of 3 tasks did not end well"):
        executors._check_all_ended(3, tmp_path)
    (tmp_path / "completions/00001").touch()
    executors._check_all_ended(3, tmp_path)
    executors._emptied(tmp_path)  # an earlier start's markers say nothing of the next
    with pytest.raises(DataError, match="3 of 3"):
        executors._check_all_ended(3, tmp_path)


def test_a_wait_that_is_broken_off_cancels_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("squeue", "echo 7_0 running"), ("scancel", f"echo $1 >> {tmp_path}/told")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        executors._wait_for("7")
    assert (tmp_path / "told").read_text() == "7\n"
    (tmp_path / "squeue").write_text("#!/bin/bash\nexit 1\n")  # it has ended
    executors._wait_for("7")
    assert (tmp_path / "told").read_text() == "7\n"


@pytest.mark.slow
def test_a_job_array_prepares_the_same_corpus_and_goes_on_behind_a_lost_task(
    tmp_path: Path,
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With commands of Slurm's names that run the tasks here."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("squeue", "#!/bin/bash\nexit 1\n"),  # it is not known any more: it has ended
        ("scontrol", "#!/bin/bash\necho n1\n"),
        (
            "srun",
            '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\n"$@"\n',
        ),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    for n in range(2):
        text = '{"text": "Page %d says a few words, and a few more of them.", "url": "%d"}\n' * 2
        (tmp_path / f"{n}.jsonl").write_text(text % (n, n, n + 5, n + 5))
    for name in ("here", "slurm"):
        (tmp_path / f"{name}.yaml").write_text(
            f"sources: ['{tmp_path}/*.jsonl']\noutput: {tmp_path / name}\nmin_chars: 1\n"
            f"min_tokens: 1\ntokenizer: {model_folders['llama']}\nworkers: 1\n"
        )
    assert call("data", "prep", str(tmp_path / "here.yaml")) == 0
    command = ["data", "prep", str(tmp_path / "slurm.yaml"), "--on", "slurm"]
    command += ["--sbatch", "partition=cpu", "--sbatch", "time=1:00"]
    monkeypatch.setenv("FAILS", "1")
    assert call(*command) == 3
    assert "1 of 2 tasks did not end well" in capsys.readouterr().err
    monkeypatch.setenv("FAILS", "")
    assert call(*command) == 0, (tmp_path / "told").read_text()
    one, other = (Manifest.load(tmp_path / name) for name in ("here", "slurm"))
    assert one.num_docs == 4
    assert one.digest == other.digest
