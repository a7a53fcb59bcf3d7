"""The proxy that makes sites far: bytes come late, and whole."""

import asyncio
import contextlib
import socket
import sys
import time
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
    if rtt_s:
        assert max(second, third) < 5 * rtt_s  # chunks are not held one behind the other
    else:
        assert third < 0.15
