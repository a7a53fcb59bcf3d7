"""A grid on a Ray cluster of three nodes on this machine: `make cluster-ray`.

The same grid here, and on Ray with a node that is lost while its run goes on: all runs have to end
well, with the numbers of the runs here.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from transcript import Transcript, environment, prepare, rntp, same, steps_done, wait_for_step

ARMS = ("fast", "slow")


def main() -> None:
    said = Transcript("ray")
    try:
        import ray
        from ray.cluster_utils import Cluster
    except ImportError:
        sys.exit("pip install 'rntp[ray]': there is no package ray")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ.update(environment(), RAY_USAGE_STATS_ENABLED="0")
    said.say(f"ray {ray.__version__}")
    with tempfile.TemporaryDirectory(prefix="rntp-ray-") as name:
        folder = Path(name)
        config = prepare(folder)
        here = grid(folder, config, "here")
        there = grid(folder, config, "ray")
        found = rntp("ablate", str(here), "--jobs", "2", cwd=folder)
        said.say(found.stdout[-800:])
        said.check("the grid ends well here", found.returncode == 0)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            said.say(f"a cluster at {cluster.address}, {len(nodes) + 1} nodes of one slot")
            on_ray(said, cluster, nodes, folder, there)
        finally:
            cluster.shutdown()
        for run in runs(folder, "here"):
            other = folder / "ray" / run.relative_to(folder / "here")
            said.check(f"{run.relative_to(folder / 'here')}: the same numbers", same(run, other))
    sys.exit(0 if said.write() else 1)


def on_ray(said: Transcript, cluster: object, nodes: list, folder: Path, there: Path) -> None:
    """Run the grid, and take a node away while a run on it is on its way."""
    command = [sys.executable, "-m", "rntp", "ablate", str(there), "--on", "ray", "--jobs", "3"]
    address = {"RAY_ADDRESS": cluster.address}  # type: ignore[attr-defined]
    log = folder / "ray.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **address}, stdout=output, stderr=output
        )
        try:
            waited = [folder / "ray" / arm / "seed_0" for arm in ARMS]
            wait_for_step(first_of(waited, process), 6)
            cluster.remove_node(nodes[1], allow_graceful=False)  # type: ignore[attr-defined]
            done = {str(run.relative_to(folder)): steps_done(run) for run in runs(folder, "ray")}
            said.say(f"a node is lost; steps done by then: {done}")
            process.wait(400)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    # Without the state that a raylet prints when it goes.
    told = [x for x in log.read_text().splitlines() if "state-dump" not in x and x.strip()]
    said.say("\n".join(told[-25:]))
    said.check("the grid ends well on ray", process.returncode == 0)


def first_of(waited: list[Path], process: "subprocess.Popen[bytes]") -> Path:
    """A run that has begun. Raises RuntimeError where the grid has ended without."""
    import time

    while process.poll() is None:
        for run in waited:
            if steps_done(run):
                return run
        time.sleep(0.3)
    raise RuntimeError("the grid has ended before a run began")


def grid(folder: Path, config: Path, name: str) -> Path:
    """Write an experiment of two arms and two seeds."""
    raw = {
        "name": name,
        "question": "Does the learning rate matter?",
        "base": str(config),
        "seeds": [0, 1],
        "set": {"run.steps": 16},
        "arms": {"fast": {"optim.lr": 1e-3}, "slow": {"optim.lr": 1e-9}},
        "controls": ["slow"],
        "columns": {"loss": {"metrics": "loss/ntp", "last": 4}},
        "runs": str(folder),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def runs(folder: Path, name: str) -> list[Path]:
    """Run folders of a grid."""
    return sorted(path.parent for path in (folder / name).rglob("metrics.jsonl"))


if __name__ == "__main__":
    main()
