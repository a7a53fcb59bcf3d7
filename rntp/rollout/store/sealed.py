"""Seals: what tells a file of a store that is whole and where it belongs from any other.

    rntp <what> <SHA-256 of name and payload> <HMAC-SHA-256 of the same, or -> newline, payload

The hash finds what is torn, altered, or copied to another name. Against forgery there is a key of
the environment that trainer and samplers share ($RNTP_STORE_KEY): with it, a file that was not
sealed with it is refused.
"""

import hashlib
import hmac
import json
import os
from typing import Any

import safetensors.torch
from torch import Tensor

KEY_IN = "RNTP_STORE_KEY"
_MAGIC = b"rntp"


class Refused(Exception):
    """A file that is not used. kind: torn, foreign, forged, stale, malformed or weights; for
    counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


def key_of_environment() -> bytes:
    """The shared key, or nothing."""
    return os.environ.get(KEY_IN, "").encode()


def seal(name: str, payload: bytes, key: bytes) -> bytes:
    """Put a seal before a payload that will have a name."""
    sealed = name.encode() + b"\n" + payload
    digest = hashlib.sha256(sealed).hexdigest().encode()
    code = hmac.new(key, sealed, hashlib.sha256).hexdigest().encode() if key else b"-"
    return b" ".join([_MAGIC, digest, code]) + b"\n" + payload


def unseal(name: str, data: bytes, key: bytes) -> bytes:
    """Return the payload of a file. Raises Refused."""
    header, newline, payload = data.partition(b"\n")
    parts = header.split(b" ")
    if len(parts) != 3 or parts[0] != _MAGIC or not newline:
        raise Refused("torn", f"{name} is no file of a store")
    sealed = name.encode() + b"\n" + payload
    if hashlib.sha256(sealed).hexdigest().encode() != parts[1]:
        raise Refused("torn", f"{name} has not the bytes that were written under this name")
    if key:
        code = hmac.new(key, sealed, hashlib.sha256).hexdigest().encode()
        if not hmac.compare_digest(code, parts[2]):
            raise Refused("forged", f"{name} was not sealed with this ${KEY_IN}")
    return payload


def pack(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """Write tensors and JSON facts as the bytes of a safetensors file; equal ones are equal."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return bytes(safetensors.torch.save(whole, {"facts": text}))


def unpack(payload: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `pack` wrote. Raises Refused."""
    try:
        length = int.from_bytes(payload[:8], "little")
        facts = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["facts"])
        tensors = safetensors.torch.load(payload)
    except Exception as error:
        raise Refused("malformed", f"it cannot be read ({error})") from error
    if not isinstance(facts, dict):
        raise Refused("malformed", "its facts are none")
    return tensors, facts
