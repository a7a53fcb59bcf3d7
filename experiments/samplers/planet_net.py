"""Sites on one machine: network namespaces with limited links, and a proxy that makes far ones.

    root namespace: the store, 127.0.0.1 ── proxy 10.98.1.1 ── tbf ══ tbf ── 10.98.1.2 rntp-trainer
                                         └─ proxy 10.98.2.1 ── tbf ══ tbf ── 10.98.2.2 rntp-sampler

tc's token bucket limits the rate of every link, both ways. Delay is the proxy's: netem is a module
of its own (sch_netem), which not every kernel has. The proxy holds every chunk of bytes for half a
round trip and a new connection for a whole one, as a handshake takes; TCP itself sees a short link,
so that windows and loss are those of a near one.
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SITES = {"rntp-trainer": "10.98.1", "rntp-sampler": "10.98.2"}
PORT = 9010
CHUNK = 1 << 16


@contextmanager
def sites(bits_s: float) -> Iterator[None]:
    """Make the namespaces and their links, and take them away. bits_s: rate of each way."""
    made: list[str] = []
    try:
        for name, net in SITES.items():
            run("ip", "netns", "add", name)
            made.append(name)
            near, far = f"{name}-0", "wire"
            run("ip", "link", "add", near, "type", "veth", "peer", far, "netns", name)
            run("ip", "address", "add", f"{net}.1/24", "dev", near)
            run("ip", "-n", name, "address", "add", f"{net}.2/24", "dev", far)
            run("ip", "link", "set", near, "up")
            for card in ("lo", far):
                run("ip", "-n", name, "link", "set", card, "up")
            limit = ["root", "tbf", "rate", f"{bits_s:.0f}bit", "burst", "64kb", "latency", "400ms"]
            run("tc", "qdisc", "add", "dev", near, *limit)
            run("tc", "-n", name, "qdisc", "add", "dev", far, *limit)
        yield
    finally:
        for name in made:
            run("ip", "netns", "delete", name)


def netem_says() -> str:
    """What tc says to netem; nothing where it takes it."""
    run("ip", "netns", "add", "rntp-probe")
    try:
        command = ["tc", "-n", "rntp-probe", "qdisc", "add", "dev", "lo", "root", "netem"]
        found = subprocess.run([*command, "delay", "10ms"], capture_output=True, text=True)
        return found.stderr.strip() if found.returncode else ""
    finally:
        run("ip", "netns", "delete", "rntp-probe")


@contextmanager
def far_away(port: int, rtt_s: float) -> Iterator[None]:
    """Serve 127.0.0.1:port to all sites, from afar."""
    command = [sys.executable, str(Path(__file__)), str(port), str(rtt_s)]
    command += [f"{net}.1:{PORT}" for net in SITES.values()]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        if "serving" not in proxy.stdout.readline():
            raise RuntimeError("the proxy did not start")
        yield
    finally:
        proxy.terminate()
        proxy.wait()


def run(*command: str) -> None:
    """Run a program. Raises SystemExit with what it says where it fails."""
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        told = found.stderr.strip()
        sys.exit(f"{' '.join(command)}: {told} (needs root, iproute2 and sch_tbf)")


async def serve(port: int, rtt_s: float, addresses: list[str]) -> None:
    """Relay connections to addresses to 127.0.0.1:port, each byte half a round trip later."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(rtt_s)
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(
                delayed(reader, far_writer, rtt_s / 2), delayed(far_reader, writer, rtt_s / 2)
            )
            far_writer.close()
        writer.close()

    for address in addresses:
        host, _, own = address.partition(":")
        await asyncio.start_server(relay, host, int(own))
    print("serving", flush=True)
    await asyncio.Event().wait()


async def delayed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    """Pass bytes on, each chunk so much later than it came."""
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take() -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                queue.put_nowait((time.monotonic() + delay_s, data))
        queue.put_nowait((time.monotonic() + delay_s, b""))

    taking = asyncio.create_task(take())
    with contextlib.suppress(OSError):
        while True:
            due_s, data = await queue.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            if not data:
                writer.write_eof()
                break
            writer.write(data)
            await writer.drain()
    await taking


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("rtt_s", type=float)
    parser.add_argument("addresses", nargs="+")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(given.port, given.rtt_s, given.addresses))
