"""The contexts of a step as a file: the trainer reads the corpus, samplers need none.

So a sampler draws for exactly the contexts that the trainer trains on, whatever it has set aside,
replays, or reads as it comes; and the digest of the file names the step's work.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch

from rntp.rollout.store.layout import DIGITS
from rntp.rollout.store.sealed import pack, unpack
from rntp.types import Context, Labels, Oracle


def pack_contexts(contexts: Sequence[Context]) -> bytes:
    """Write the bare contexts of a step."""
    tensors = {
        "ids": torch.cat([torch.zeros(0, dtype=torch.int64), *(c.token_ids for c in contexts)]),
        "lengths": torch.tensor([len(c) for c in contexts]),
        "ordinals": torch.tensor([c.ordinal for c in contexts]),
        "starts": torch.tensor([c.start for c in contexts]),
        "visits": torch.tensor([c.visit for c in contexts]),
        "replay_of": torch.tensor([-1 if c.replay_of is None else c.replay_of for c in contexts]),
        "given": torch.cat([torch.zeros(0, dtype=torch.bool), *(c.given for c in contexts)]),
        "givens": torch.tensor([len(c.given) for c in contexts]),
    }
    facts = {
        "documents": [c.document_id for c in contexts],
        "titles": [c.title for c in contexts],
        "labels": [_plain(c.labels) for c in contexts],
    }
    return pack(tensors, facts)


def unpack_contexts(payload: bytes) -> list[Context]:
    """Read what `pack_contexts` wrote. Raises Refused."""
    tensors, facts = unpack(payload)
    ids = tensors["ids"].split(tensors["lengths"].tolist())
    given = tensors["given"].split(tensors["givens"].tolist())
    return [
        Context(
            ordinal=ordinal,
            document_id=facts["documents"][n],
            token_ids=ids[n].clone(),
            title=facts["titles"][n],
            start=start,
            visit=visit,
            labels=_labels(facts["labels"][n]),
            replay_of=None if again < 0 else again,
            given=given[n].clone(),
        )
        for n, (ordinal, start, visit, again) in enumerate(
            torch.stack(
                [tensors[name] for name in ("ordinals", "starts", "visits", "replay_of")], dim=1
            ).tolist()
        )
    ]


def digest_of_work(payload: bytes) -> str:
    """Hash a step's contexts for its name."""
    return hashlib.sha256(payload).hexdigest()[:DIGITS]


def parts_of(contexts: int, each: int) -> list[range]:
    """Cut a step's contexts into parts of at most `each`, all about as large."""
    number = -(-contexts // each)
    ends = [contexts * n // number for n in range(number + 1)]
    return [range(a, b) for a, b in pairwise(ends)]


def _plain(labels: Labels | None) -> dict[str, Any] | None:
    if labels is None:
        return None
    oracle = {str(at): asdict(o) for at, o in labels.oracle.items()}
    return {"classes": labels.classes, "names": dict(labels.names), "oracle": oracle}


def _labels(plain: dict[str, Any] | None) -> Labels | None:
    if plain is None:
        return None
    oracle = {int(at): Oracle(**o) for at, o in plain["oracle"].items()}
    return Labels(plain["classes"], plain["names"], oracle)
