"""torchrun over two machines with addresses of their own: `make cluster-addresses`.

Two network namespaces of this machine, joined by a pair of virtual cards, each with an address that
the other reaches over that pair alone. A run over both; the same with the cable pulled on the way,
and started again. Needs root and iproute2; takes its namespaces away again.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transcript import Transcript, environment, prepare, same, steps_done, wait_for_step

NAMES, ADDRESSES = ("rntp-a", "rntp-b"), ("10.99.0.1", "10.99.0.2")


def main() -> None:
    said = Transcript("addresses")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="rntp-net-") as name:
        folder = Path(name)
        config = prepare(folder)
        with two_machines():
            routes = ip("-n", NAMES[0], "-brief", "address")
            said.say("\n".join(re.sub(r"fe80\S+", "", routes).splitlines()))
            codes = train(folder, config, "whole")
            said.say(f"torchrun on {' and '.join(ADDRESSES)}: exit codes {codes}")
            said.check("a run over two addresses ends well", codes == [0, 0])
            said.check("all steps are done", steps_done(folder / "whole") == 24)
            codes = train(folder, config, "cut", cut_at=8)
            done = steps_done(folder / "cut")
            said.say(f"the cable is pulled after step 8: exit codes {codes}, {done} steps")
            text = (folder / "cut.0.log").read_text()
            lost = [line for line in text.splitlines() if line.startswith("rntp: rank")]
            said.say("\n".join(line[:300] for line in lost))
            said.check("both ends of the run say so", all(codes) and done < 24)
            named = any("waited in phase" in line or "went away" in line for line in lost)
            said.check("it says for whom it waited", named)
            ip("-n", NAMES[0], "link", "set", "wire", "up")
            codes = train(folder, config, "cut")
            said.check("the same command goes on", codes == [0, 0])
            said.check("its numbers are the whole run's", same(folder / "cut", folder / "whole"))
    sys.exit(0 if said.write() else 1)


def train(folder: Path, config: Path, name: str, cut_at: int = 0) -> list[int]:
    """Start torchrun in both namespaces; exit codes. cut_at: step after which the link goes."""
    started = []
    for rank, space in enumerate(NAMES):
        command = ["ip", "netns", "exec", space, sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"]
        command += [f"--master-addr={ADDRESSES[0]}", "--master-port=29511", "-m", "rntp", "train"]
        command += [str(config), "--run-dir", str(folder / name)]
        command += ["--set", "run.timeouts_s.ranks=20"]
        with (folder / f"{name}.{rank}.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    command,
                    # Which card: the host's name has one address in both namespaces.
                    env={**environment(), "GLOO_SOCKET_IFNAME": "wire"},
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        if cut_at:
            wait_for_step(folder / name, cut_at)
            ip("-n", NAMES[0], "link", "set", "wire", "down")
        return [process.wait(240) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
                process.wait()


@contextmanager
def two_machines() -> Iterator[None]:
    """Make the namespaces and the pair of cards; take them away."""
    made: list[str] = []
    try:
        for name in NAMES:
            ip("netns", "add", name)
            made.append(name)
        ip(
            "link",
            "add",
            "wire",
            "netns",
            NAMES[0],
            "type",
            "veth",
            "peer",
            "wire",
            "netns",
            NAMES[1],
        )
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for card in ("lo", "wire"):
                ip("-n", name, "link", "set", card, "up")
        yield
    finally:
        for name in made:
            ip("netns", "delete", name)


def ip(*arguments: str) -> str:
    """Run iproute2. Raises SystemExit with what it says where it fails."""
    found = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"ip {' '.join(arguments)}: {found.stderr.strip()} (needs root and iproute2)")
    return found.stdout


if __name__ == "__main__":
    main()
