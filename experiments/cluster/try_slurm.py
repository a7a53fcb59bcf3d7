"""Runs on a Slurm cluster of three nodes on this machine: `make cluster-slurm`.

A run on two nodes, undisturbed; the same preempted by an urgent job; the same with a rank killed; a
grid as a job array; a run whose samplers are an array, of which one task is requeued and one
cancelled. Preempted, killed and sampled runs have to come to the undisturbed one's numbers.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from slurm_local import Slurm, missing, slurm
from transcript import (
    HERE,
    Transcript,
    environment,
    numbers,
    prepare,
    rntp,
    same,
    steps_done,
    wait_for_step,
)

SCRIPT = str(HERE / "slurm.sh")
SAMPLERS = str(HERE.parents[1] / "examples" / "samplers" / "slurm.sh")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave nothing behind
    said = Transcript("slurm")
    if lacking := missing():
        sys.exit(f"apt-get install slurm-wlm munge: there is no {', '.join(lacking)}")
    os.environ |= environment()
    with tempfile.TemporaryDirectory(prefix="rntp-slurm-") as name:
        folder = Path(name)
        config = prepare(folder)
        with slurm(folder / "slurm", nodes=3) as cluster:
            said.say(cluster.out("sinfo", "--version") + "\n" + cluster.out("sinfo"))
            try:
                undisturbed(said, cluster, folder, config)
                preempted(said, cluster, folder, config)
                killed(said, cluster, folder, config)
                array(said, cluster, folder, config)
                sampled(said, cluster, folder, config)
            except (TimeoutError, RuntimeError) as error:
                said.check(f"{type(error).__name__}: {error}", False)
    sys.exit(0 if said.write() else 1)


def submit(
    cluster: Slurm, folder: Path, config: Path, name: str, more: str = "", nodes: int = 2
) -> tuple[str, Path]:
    """Submit slurm.sh, as a user does; job and run folder. more: arguments of `rntp train`."""
    run = folder / name
    os.environ |= {"CONFIG": str(config), "RNTP_ARGS": f"--run-dir {run} {more}".strip()}
    cluster.environment |= {k: os.environ[k] for k in ("CONFIG", "RNTP_ARGS", "PATH")}
    job = cluster.submit(
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        "--gpus-per-node=0",
        f"--output={folder}/{name}.log",
        SCRIPT,
    )
    return job, run


def undisturbed(said: Transcript, cluster: Slurm, folder: Path, config: Path) -> None:
    job, run = submit(cluster, folder, config, "undisturbed")
    said.say(f"job {job}: slurm.sh on two nodes")
    facts = cluster.end(job)
    said.say(f"job {job}: {facts['JobState']} on {facts['NodeList']}, {steps_done(run)} steps")
    said.check("a run on two nodes ends well", facts["JobState"] == "COMPLETED")
    if facts["JobState"] != "COMPLETED":
        said.say((folder / "undisturbed.log").read_text()[-2000:])
    world = json.loads((run / "manifest.json").read_text())["starts"][-1]["world_size"]
    said.check("it had two ranks", world == 2)


def preempted(said: Transcript, cluster: Slurm, folder: Path, config: Path) -> None:
    job, run = submit(cluster, folder, config, "preempted")
    wait_for_step(run, 6)
    urgent = folder / "urgent.sh"
    urgent.write_text("#!/bin/bash\nsleep 3\n")
    other = cluster.submit("--partition=urgent", "--nodes=3", "--output=/dev/null", str(urgent))
    said.say(f"job {job}: {steps_done(run)} steps; urgent job {other} wants all nodes")
    cluster.end(other)
    at = steps_done(run)
    said.say(f"job {other} is through; job {job}: {cluster.state(job)}, {at} steps done")
    facts = cluster.end(job)
    said.say(f"job {job}: {facts['JobState']}, restarts {facts['Restarts']}")
    log = (folder / "preempted.log").read_text()
    said.check("it was preempted on its way", 6 <= at < 24 and int(facts["Restarts"]) >= 1)
    said.check("it saved when asked to stop", "the same command resumes" in log)
    said.check("it resumed and ended well", facts["JobState"] == "COMPLETED")
    said.check("its numbers are the undisturbed run's", same(run, folder / "undisturbed"))


def killed(said: Transcript, cluster: Slurm, folder: Path, config: Path) -> None:
    job, run = submit(cluster, folder, config, "killed")
    wait_for_step(run, 6)
    victim = rank_process(run, 1)
    os.kill(victim, signal.SIGKILL)
    said.say(f"job {job}: {steps_done(run)} steps; rank 1 (a process of node n2) is killed")
    facts = cluster.end(job)
    said.say(f"job {job}: {facts['JobState']}, restarts {facts['Restarts']}")
    said.check("it was started again", int(facts["Restarts"]) >= 1)
    said.check("it ended well", facts["JobState"] == "COMPLETED")
    said.check("its numbers are the undisturbed run's", same(run, folder / "undisturbed"))


def array(said: Transcript, cluster: Slurm, folder: Path, config: Path) -> None:
    """Two arms, two seeds: four tasks, and a table behind them."""
    experiment = folder / "grid.yaml"
    raw = {
        "name": "grid",
        "question": "Does the learning rate matter?",
        "base": str(config),
        "seeds": [0, 1],
        "set": {"run.steps": 4},
        "arms": {"fast": {"optim.lr": 1e-3}, "slow": {"optim.lr": 1e-9}},
        "controls": ["slow"],
        "columns": {"loss": {"metrics": "loss/ntp", "last": 2}},
        "runs": str(folder),
    }
    experiment.write_text(yaml.safe_dump(raw))
    cluster.environment["EXPERIMENT"] = str(experiment)
    job = cluster.submit(
        "--array=0-3",
        "--gpus-per-node=0",
        f"--output={folder}/array-%a.log",
        str(HERE / "slurm_array.sh"),
    )
    table = cluster.submit(
        f"--dependency=afterany:{job}",
        f"--output={folder}/table.log",
        "--wrap",
        f"rntp ablate {experiment} --table",
    )
    said.say(f"job {job}: an array of four runs; job {table}: their table, behind them")
    facts = cluster.end(table)
    text = (folder / "table.log").read_text()
    said.say(text)
    if facts["JobState"] != "COMPLETED":
        said.say((folder / "array-0.log").read_text()[-1500:])
    finished = list((folder / "grid").rglob("metrics.jsonl"))
    said.check("all four runs of the array are there", len(finished) == 4)
    ended = facts["JobState"] == "COMPLETED"
    said.check("the table has both arms", ended and "fast" in text and "slow" in text)


def sampled(said: Transcript, cluster: Slurm, folder: Path, config: Path) -> None:
    """A trainer on one node and an array of two samplers: the numbers of a run without samplers.

    One sampler is requeued on its way, as by a preemption, and the other cancelled for good: the
    run waits until the first is back.
    """
    alone = folder / "alone"
    rntp("train", str(config), "--run-dir", str(alone)).check_returncode()
    store = folder / "store"
    cluster.environment["STORE"] = str(store)
    samplers = cluster.submit(
        "--array=0-1",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        f"--output={folder}/sampler-%a.log",
        SAMPLERS,
    )
    place = f"--set rollout.samplers.store={store} --set rollout.samplers.lease_s=5"
    job, run = submit(cluster, folder, config, "sampled", place, nodes=1)
    said.say(f"job {samplers}: samplers/slurm.sh, two tasks; job {job}: slurm.sh with their store")
    wait_for_step(run, 6)
    cluster.out("scancel", f"{samplers}_1")
    cluster.out("scontrol", "requeue", f"{samplers}_0")
    said.say(f"job {job}: {steps_done(run)} steps; task 1 is cancelled, task 0 requeued")
    cluster.wait_for(lambda: cluster.state(f"{samplers}_0") == "RUNNING", 180)
    at = steps_done(run)
    said.say(f"task 0 runs again; job {job}: {cluster.state(job)}, {at} steps")
    facts = cluster.end(job)
    said.say(f"job {job}: {facts['JobState']}, {steps_done(run)} steps")
    said.check("the sampled run ended well", facts["JobState"] == "COMPLETED")
    said.check("it waited for a sampler on its way", 6 <= at < 24)
    task = cluster.end(f"{samplers}_0")
    said.check("the sampler that was requeued ended with the run", task["JobState"] == "COMPLETED")
    ours = [
        {k: row[k] for k in plain} for plain, row in zip(numbers(alone), numbers(run), strict=True)
    ]
    said.check("its numbers are those without samplers", ours == numbers(alone) != [])
    if not all(said.checks.values()):
        for log in (folder / "sampled.log", folder / "sampler-0.log", folder / "sampler-1.log"):
            said.say(log.read_text()[-1500:])


def rank_process(run: Path, rank: int) -> int:
    """The process of a rank of a run. Raises RuntimeError if there is none."""
    found = subprocess.run(["ps", "-eo", "pid"], capture_output=True, text=True).stdout.split()[1:]
    for pid in map(int, found):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            of = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        is_rank = str(run).encode() in line and f"RANK={rank}".encode() in of
        if is_rank and b"train" in line and not line[0].endswith((b"bash", b"srun")):
            return pid
    raise RuntimeError(f"no process is rank {rank} of {run}")


if __name__ == "__main__":
    main()
