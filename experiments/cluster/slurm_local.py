"""A Slurm cluster of several nodes on this machine, for as long as it is needed.

Debian's packages (`apt-get install slurm-wlm munge`): one controller, a daemon for each node
(`slurmd -N`), all in a folder of their own with their own key; nothing of the system is touched.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo")
CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=20
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/linear
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
{nodes}
PartitionName=spare Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """List the programs that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


@contextmanager
def slurm(folder: Path, nodes: int) -> Iterator["Slurm"]:
    """Start a cluster of nodes n1 … in an empty folder; stop it and all of its processes."""
    with ExitStack() as started:
        cluster = Slurm(folder, nodes, started)
        started.callback(cluster.cancel)
        cluster.wait_for(lambda: cluster.out("sinfo", "-h", "-o", "%T %D") == f"idle {nodes}", 60)
        yield cluster


class Slurm:
    """What is running. environment: what Slurm's commands need to find it."""

    def __init__(self, folder: Path, nodes: int, started: ExitStack) -> None:
        self.folder, self._started = folder, started
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        self.environment = {
            **os.environ,
            "SLURM_CONF": f"{folder}/slurm.conf",
            "PATH": path,
            "MASTER_ADDR": "127.0.0.1",  # nodes of one machine have no names of their own
        }
        (folder / "state").mkdir(parents=True)
        ports = [_free_port() for _ in range(nodes + 1)]
        host = socket.gethostname()
        each = "\n".join(
            f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs=4 "
            "RealMemory=4000 State=UNKNOWN"
            for n in range(1, nodes + 1)
        )
        text = CONF.format(host=host, port=ports[0], folder=folder, nodes=each)
        (folder / "slurm.conf").write_text(text)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        named = (
            f"--{n}={folder}/munge.{n}" for n in ("socket", "pid-file", "log-file", "seed-file")
        )
        self._start(["munged", "--foreground", "--force", f"--key-file={key}", *named])
        self.wait_for((folder / "munge.socket").exists, 20)
        self._start(["slurmctld", "-D"])
        self.daemons = {n: self.start_node(n) for n in range(1, nodes + 1)}

    def start_node(self, number: int) -> "subprocess.Popen[bytes]":
        """Start the daemon of a node."""
        return self._start(["slurmd", "-D", "-N", f"n{number}"])

    def out(self, *command: str) -> str:
        """What a command of Slurm prints. Raises RuntimeError if it fails."""
        found = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"{' '.join(command)}: {found.stderr.strip()}")
        return found.stdout.strip()

    def cancel(self) -> None:
        """End all jobs, so that none of their processes is left behind."""
        self.out("scancel", "--user=root")
        with suppress(TimeoutError):
            self.wait_for(lambda: not self.out("squeue", "-h"), 20)

    def submit(self, *arguments: str) -> str:
        """Submit a job and give its number."""
        return self.out("sbatch", "--parsable", *arguments)

    def state(self, job: str) -> str:
        """The state of a job, as Slurm calls it."""
        facts = self.facts(job)
        return facts["JobState"]

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows of a job."""
        text = self.out("scontrol", "show", "job", job)
        return dict(pair.split("=", 1) for pair in text.split() if "=" in pair)

    def end(self, job: str, seconds: float = 240) -> dict[str, str]:
        """Wait for the end of a job."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: self.state(job) in ended, seconds)
        return self.facts(job)

    def wait_for(self, true: "object", seconds: float) -> None:
        """Wait until something is so. Raises TimeoutError with the end of the controller's log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if true():  # type: ignore[operator]
                    return
            except RuntimeError:  # the controller is not there yet
                pass
            time.sleep(0.5)
        log = self.folder / "slurmctld.log"
        said = log.read_text()[-2000:] if log.exists() else "(no log)"
        raise TimeoutError(f"after {seconds:g} s: {said}")

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        said = (self.folder / f"{command[0]}.out").open("ab")
        process = subprocess.Popen(command, env=self.environment, stdout=said, stderr=said)
        self._started.callback(_stop, process)
        return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
