"""Messages between two processes: a length of four bytes, then so many bytes."""

import struct
from typing import IO

LENGTH = struct.Struct("<I")


def send(file: IO[bytes], payload: bytes) -> None:
    """Write a message."""
    file.write(LENGTH.pack(len(payload)) + payload)
    file.flush()


def receive(file: IO[bytes]) -> bytes:
    """Read what `send` wrote; nothing where the other side has closed."""
    size = file.read(LENGTH.size)
    return file.read(LENGTH.unpack(size)[0]) if len(size) == LENGTH.size else b""
