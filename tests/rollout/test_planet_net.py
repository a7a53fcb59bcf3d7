"""The proxy that makes sites far: bytes come late, and whole."""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments/samplers"))

import planet_net


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def talk(rtt_s: float, messages: list[bytes]) -> list[float]:
    """Seconds that each message takes to an echo and back; the first one connects."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    own = free_port()
    there = server.sockets[0].getsockname()[1]
    proxy = asyncio.create_task(planet_net.serve(there, rtt_s, [f"127.0.0.1:{own}"]))
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", own)
    took = []
    for message in messages:
        began = time.monotonic()
        writer.write(message)
        assert await reader.readexactly(len(message)) == message
        took.append(time.monotonic() - began)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    proxy.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await proxy
    server.close()
    return took


@pytest.mark.parametrize("rtt_s", [0.0, 0.2])
def test_bytes_come_a_round_trip_later_and_whole(rtt_s: float) -> None:
    large = bytes(range(256)) * 2000
    first, second, third = asyncio.run(talk(rtt_s, [b"hello", large, b"again"]))
    assert first >= 2 * rtt_s  # of which one is the handshake
    assert min(second, third) >= rtt_s
    if not rtt_s:
        assert min(first, second, third) < 0.2


class Writer:
    """Notes when it is given what."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.given: list[tuple[float, bytes]] = []

    def write(self, data: bytes) -> None:
        self.given.append((round(self.now(), 6), data))

    async def drain(self) -> None:
        pass

    def write_eof(self) -> None:
        self.write(b"")


def test_chunks_are_not_held_one_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rest = [0.0], asyncio.sleep

    async def sleep(seconds: float) -> None:
        clock[0] += seconds
        await rest(0)

    async def pass_on() -> list[tuple[float, bytes]]:
        reader = asyncio.StreamReader()
        reader.feed_data(b"x" * (3 * planet_net.CHUNK))
        reader.feed_eof()
        writer = Writer(lambda: clock[0])
        await planet_net.delayed(reader, writer, 0.1)  # type: ignore[arg-type]
        return writer.given

    monkeypatch.setattr(planet_net.asyncio, "sleep", sleep)
    monkeypatch.setattr(planet_net.time, "monotonic", lambda: clock[0])
    given = asyncio.run(pass_on())
    assert [(at, len(data)) for at, data in given] == [*[(0.1, planet_net.CHUNK)] * 3, (0.1, 0)]
