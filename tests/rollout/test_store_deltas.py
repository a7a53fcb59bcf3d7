"""Versions of weights as what has changed: to the bit, small, and refused where they are not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rntp.rollout.store import delta, publishing
from rntp.rollout.store.delta import MOST_CHANGED, apply, difference
from rntp.rollout.store.fetching import Fetcher
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.layout import put_facts
from rntp.rollout.store.manifest import MANIFEST, Version, chain, read_manifest
from rntp.rollout.store.publishing import Publisher, Written
from rntp.rollout.store.sealed import Refused, pack, seal, unpack, unseal

Weights = dict[str, Tensor]
EVERY = 3


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        (one[n].shape, one[n].dtype, bits(one[n]))
        == (other[n].shape, other[n].dtype, bits(other[n]))
        for n in one
    )


def model(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Weights:
    random = torch.Generator().manual_seed(seed)
    shapes = {"embed": (500, 64), "layer.0": (64, 64), "layer.1": (64, 256), "norm": (64,)}
    return {n: (torch.randn(s, generator=random) * 0.02).to(dtype) for n, s in shapes.items()}


def moved(masters: Weights, rate: float, seed: int) -> Weights:
    """Masters after an update of Adam's first kind: every element by the rate, either way."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: tensor + rate * (2 * torch.randint(0, 2, tensor.shape, generator=random) - 1)
        for name, tensor in masters.items()
    }


def line(versions: int, rate: float = 1e-6) -> list[Weights]:
    """Versions of bfloat16 weights with float32 masters."""
    masters = {name: tensor.float() for name, tensor in model().items()}
    found = []
    for number in range(versions):
        found.append({name: tensor.bfloat16() for name, tensor in masters.items()})
        masters = moved(masters, rate, number)
    return found


def test_every_bit_comes_back() -> None:
    """Signed zeros, NaN with payloads and infinities count as bits, in every type."""
    old = {
        "bfloat16": torch.zeros(3, 700, dtype=torch.bfloat16),
        "float32": torch.randn(900),
        "float64": torch.randn(5, 40, dtype=torch.float64),
        "float8": torch.randn(300).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "same": torch.randn(2000),
    }
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["bfloat16"][1, 5], new["bfloat16"][2, 699] = -0.0, float("nan")
    new["bfloat16"].view(torch.int16)[0, 0] = 0x7FC1  # NaN, and not the usual one
    new["float32"][[0, 1, 899]] = torch.tensor([float("inf"), -0.0, 1e-40])
    new["float64"][3, 39] += 1e-15
    new["float8"].view(torch.uint8)[7] ^= 0xFF
    new["scalar"] = torch.tensor(-2.0)
    payload, share = difference(old, new)
    assert payload is not None
    elements = sum(t.numel() for t in old.values())
    assert share == pytest.approx(9 / elements)
    before = {name: bits(tensor) for name, tensor in old.items()}
    made = apply(old, payload)
    assert same_bits(made, new)
    assert not same_bits(made, old)
    assert made["same"] is old["same"]
    assert {name: bits(tensor) for name, tensor in old.items()} == before
    assert payload == difference(old, new).payload


def test_an_update_at_the_rates_of_rl_is_a_hundredth_of_the_weights() -> None:
    old, new = line(2)
    payload, share = difference(old, new)
    assert payload is not None
    whole = sum(tensor.nbytes for tensor in new.values())
    changed = share * sum(tensor.numel() for tensor in new.values())
    assert 0.005 < share < 0.03
    assert len(payload) < whole / 50
    assert len(payload) * 8 / changed < 20  # bits for place and value of one that moved
    assert same_bits(apply(old, payload), new)


def test_what_has_changed_too_much_is_sent_whole() -> None:
    old, new = line(2, rate=1e-3)
    payload, share = difference(old, new)
    assert payload is None
    assert share > MOST_CHANGED
    for other in ({**old, "more": torch.ones(1)}, {**old, "norm": old["norm"].float()}):
        assert difference(other, new) == (None, 1.0)
    nothing = difference(old, old)
    assert nothing.share == 0
    assert nothing.payload is not None
    assert same_bits(apply(old, nothing.payload), old)


Change = Callable[[dict[str, Tensor], dict], None]
FORGED: dict[str, Change] = {
    "changes in norm": lambda t, f: f.update(counts=[["norm", 65]]),
    "has not as many": lambda t, f: f.update(counts=[*f["counts"], ["norm", 1]]),
    "does not fit": lambda t, f: f.update(counts=[["other", 1]]),
    "behind the end": lambda t, f: f.update(counts=[["norm", 2]]),
    "cannot be read": lambda t, f: t.clear(),
}


@pytest.mark.parametrize("why", FORGED)
def test_a_difference_that_cannot_be_is_refused(why: str) -> None:
    old, new = line(2)
    payload = difference(old, new).payload
    assert payload is not None
    if why == "behind the end":
        far = {name: tensor.clone() for name, tensor in old.items()}
        far["embed"].view(torch.int16)[499, [0, 63]] ^= 1
        payload = difference(old, far).payload
        assert payload is not None
    tensors, facts = unpack(payload)
    FORGED[why](tensors, facts)
    forged = pack(tensors, facts) if tensors else b"garbage"
    with pytest.raises(Refused, match=f"malformed: .*{why}"):
        apply(old, forged)


def test_a_stream_that_would_fill_the_memory_is_not_followed() -> None:
    """64 MiB of zeros: what is unpacked has the size that the counts say."""
    old, new = line(2)
    tensors, facts = unpack(difference(old, new).payload or b"")
    block = torch.zeros(1 << 24, dtype=torch.uint8).numpy()
    packer = delta.zlib.compressobj(9)
    bomb = b"".join(packer.compress(block) for _ in range(4)) + packer.flush()
    assert len(bomb) < 1 << 17
    tensors["at"] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    with pytest.raises(Refused, match="has not as many"):
        apply(old, pack(tensors, facts))


def publish(store: Path, versions: list[Weights], first: int = 0) -> tuple[Publisher, list]:
    """Publish versions; the publisher, and what was written."""
    publisher = Publisher(FolderFiles(store), b"", EVERY)
    found: list[tuple[Version, Written]] = []
    for number, weights in enumerate(versions, first):
        found.append(put(publisher, number, weights))
    return publisher, found


def put(publisher: Publisher, number: int, weights: Weights) -> tuple[Version, Written]:
    placement = {"seen": torch.tensor([number])}
    draft = publisher.draft(number, weights, placement, torch.ones(60) * number)
    return draft.version, publisher.put(draft)


class Said(list[str]):
    """A sampler's fetcher, and its lines."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.fetcher = Fetcher(FolderFiles(store), b"", self.append)

    def fetch(self, version: Version) -> Weights:
        found = self.fetcher.fetch(*version)
        assert found.canary.tolist() == [version.number] * 60
        assert found.placement["seen"].item() == version.number
        return dict(found.weights)


def size(store: Path, version: Version, glob: str = "*") -> int:
    return sum(p.stat().st_size for p in (store / version.folder).glob(glob))


def test_anchors_and_what_changes_between_them(tmp_path: Path) -> None:
    versions = line(7)
    _, found = publish(tmp_path, versions)
    assert [w.how for _, w in found] == ["whole", "delta", "delta"] * 2 + ["whole"]
    whole = sum(tensor.nbytes for tensor in versions[0].values())
    for _, written in found:
        assert written.size > whole if written.how == "whole" else written.size < whole / 40
    assert found[0][1].changed is None
    assert 0 < (found[4][1].changed or 0) < 0.03
    follower = Said(tmp_path)
    for weights, (version, written) in zip(versions, found, strict=True):
        assert same_bits(follower.fetch(version), weights)
        read = size(tmp_path, version) - size(tmp_path, version, MANIFEST)
        assert follower.fetcher.size == read
        assert (written.how == "delta") == (read < whole / 2)
    follower.fetcher.size = -1
    assert same_bits(follower.fetch(found[6][0]), versions[6])
    assert follower.fetcher.size == -1  # nothing was read
    assert follower == []


def test_who_joins_late_reads_the_anchor_and_who_is_behind_the_changes(tmp_path: Path) -> None:
    versions = line(6)
    _, found = publish(tmp_path, versions)
    newest = found[5][0]
    late = Said(tmp_path)
    assert same_bits(late.fetch(newest), versions[5])
    anchored = late.fetcher.size
    assert anchored > found[3][1].size
    behind = Said(tmp_path)
    behind.fetch(found[3][0])
    assert same_bits(behind.fetch(newest), versions[5])
    assert behind.fetcher.size < anchored / 10
    longer = Said(tmp_path)
    longer.fetch(found[2][0])  # of the chain before: the anchor is nearer
    assert same_bits(longer.fetch(newest), versions[5])
    assert longer.fetcher.size == anchored


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _of_another_version(path: Path) -> None:
    other = next(path.parents[1].glob("v00000005-*/delta.safetensors"))
    path.write_bytes(other.read_bytes())


def _manifest_of_another_version(path: Path) -> None:
    other = next(path.parents[1].glob(f"v00000005-*/{MANIFEST}"))
    (path.parent / MANIFEST).write_bytes(other.read_bytes())


def _other_changes(path: Path) -> None:
    """Forged: changes that fit the shapes, under a seal that fits the name."""
    name = "/".join(path.parts[-3:])
    tensors, facts = unpack(unseal(name, path.read_bytes(), b""))
    (tensor,), count = [tensors["by.2"]], sum(n for _, n in facts["counts"])
    values = bytearray(delta.zlib.decompress(tensor.numpy().tobytes()))
    assert len(values) == 2 * count
    values[0] ^= 1
    packed = delta.zlib.compress(bytes(values))
    tensors["by.2"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    path.write_bytes(seal(name, pack(tensors, facts), b""))


def _out_of_order(path: Path) -> None:
    """Forged: it says that it follows the version before the last."""
    folder = "/".join(path.parts[-3:-1])
    number, _, digest = folder.removeprefix("weights/v").partition("-")
    files = FolderFiles(path.parents[2])
    facts = json.loads(unseal(f"{folder}/{MANIFEST}", (path.parent / MANIFEST).read_bytes(), b""))
    assert facts["base"][0] == int(number) - 1
    put_facts(files, f"{folder}/{MANIFEST}", {**facts, "base": [int(number) - 2, digest]}, b"")


def _other_tensors(path: Path) -> None:
    """Forged: a manifest of other weights under this name."""
    folder = "/".join(path.parts[-3:-1])
    facts = json.loads(unseal(f"{folder}/{MANIFEST}", (path.parent / MANIFEST).read_bytes(), b""))
    facts["weights"]["norm"][2] = "0" * 64
    put_facts(FolderFiles(path.parents[2]), f"{folder}/{MANIFEST}", facts, b"")


TAMPER: dict[str, Callable[[Path], object]] = {
    "torn: .*has not the bytes that were written under this name": _flip,
    "torn: .*under this name ": _of_another_version,
    "torn: .*manifest.json has not the bytes": _manifest_of_another_version,
    "torn: .*has not the weights of its manifest: .*1 of 4 tensors": _other_changes,
    "torn: .*is not there": Path.unlink,
    "torn: .*has no manifest": lambda path: (path.parent / MANIFEST).unlink(),
    "malformed: .*is said to be a difference from": _out_of_order,
    "foreign: .*is of other weights": _other_tensors,
}


@pytest.mark.parametrize("why", TAMPER)
@pytest.mark.parametrize("late", [False, True])
def test_a_delta_that_is_not_right_is_refused_and_written_whole(
    tmp_path: Path, why: str, late: bool
) -> None:
    versions = line(6)
    publisher, found = publish(tmp_path, versions[:5])
    newest = found[4][0]
    sampler = Said(tmp_path)
    if not late:
        sampler.fetch(found[3][0])
    if "another" in TAMPER[why].__name__:
        again, _ = publish(tmp_path, versions[4:6], 4)  # a version 5 to take things from
        assert again.anchor(newest) == 3
    assert publisher.complaint() is None
    TAMPER[why](tmp_path / newest.folder / "delta.safetensors")
    with pytest.raises(Refused, match=why.strip()):
        sampler.fetch(newest)
    told = publisher.complaint()
    assert told is not None
    assert told.startswith(why.partition(":")[0])
    with pytest.raises(Refused):  # it stays refused until the trainer has seen it
        sampler.fetch(newest)
    publisher.answer()
    assert publisher.complaint() is None
    assert same_bits(sampler.fetch(newest), versions[4])
    assert publisher.anchor(newest) == 4
    assert put(publisher, 5, versions[5])[1].how in ("delta", "there")


def test_without_its_anchor_a_chain_is_no_good_to_who_comes_late(tmp_path: Path) -> None:
    versions = line(6)
    publisher, found = publish(tmp_path, versions)
    here, late = Said(tmp_path), Said(tmp_path)
    here.fetch(found[4][0])
    FolderFiles(tmp_path).remove(found[3][0].folder)
    newest = found[5][0]
    assert same_bits(here.fetch(newest), versions[5])
    with pytest.raises(Refused, match=f"goes back to {found[3][0].folder}.*not to be had"):
        late.fetch(newest)
    publisher.answer()
    assert same_bits(late.fetch(newest), versions[5])


def test_memory_that_is_spoiled_is_found_and_read_anew(tmp_path: Path) -> None:
    versions = line(3)
    _, found = publish(tmp_path, versions)
    sampler = Said(tmp_path)
    sampler.fetch(found[1][0])["norm"][3] = 1.0
    assert same_bits(sampler.fetch(found[2][0]), versions[2])
    (told,) = sampler
    assert "is read from its anchor on (torn: " in told
    assert "has not the weights of its manifest: norm" in told


def test_a_version_is_named_by_its_tensors_however_it_is_written(tmp_path: Path) -> None:
    versions = line(3)
    for name in ("chained", "whole"):
        (tmp_path / name).mkdir()
    _, chained = publish(tmp_path / "chained", versions)
    publisher = Publisher(FolderFiles(tmp_path / "whole"), b"", 1)
    whole = [put(publisher, number, weights) for number, weights in enumerate(versions)]
    assert [w.how for _, w in whole] == ["whole"] * 3
    assert [v for v, _ in whole] == [v for v, _ in chained]
    other = {**versions[2], "norm": -versions[2]["norm"]}
    assert put(publisher, 2, other)[0].digest != chained[2][0].digest


def test_a_start_goes_on_from_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while version 2 is written, behind an anchor and a delta; then the start goes back."""
    versions = line(5)
    publisher, _ = publish(tmp_path, versions[:2])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "fault_point", killed)
    with pytest.raises(KeyboardInterrupt):
        put(publisher, 2, versions[2])
    monkeypatch.undo()
    (torn,) = (tmp_path / "weights").glob("v00000002-*")
    left = sorted(path.name for path in torn.iterdir())
    assert left == ["delta.safetensors", "placement.safetensors"]
    # From the checkpoint of step 1: it is there, and what follows is a difference from it.
    _, again = publish(tmp_path, versions[1:4], first=1)
    assert [w.how for _, w in again] == ["there", "delta", "whole"]
    assert again[0][1].size == 0
    assert again[1][0].folder == f"weights/{torn.name}"
    late = Said(tmp_path)
    assert same_bits(late.fetch(again[1][0]), versions[2])
    # Gone back, and on by other weights: no difference from what the first line has made.
    other = [versions[1], {n: t + 1 for n, t in versions[2].items()}, versions[4]]
    back, third = publish(tmp_path, other, first=1)
    assert [w.how for _, w in third] == ["there", "whole", "whole"]
    assert third[1][0] != again[1][0]
    assert put(back, 2, versions[2])[1].how == "there"
    assert put(back, 9, versions[3])[1].how == "whole"  # 8 is unknown


def test_chains_end_where_what_is_known_begins(tmp_path: Path) -> None:
    _, found = publish(tmp_path, line(3))
    files = FolderFiles(tmp_path)
    newest, before = found[2][0], found[1][0]
    assert [m.version.number for m in chain(files, newest, b"")] == [0, 1, 2]
    assert [m.version.number for m in chain(files, newest, b"", before)] == [2]
    assert read_manifest(files, newest, b"").base == before
    assert read_manifest(files, found[0][0], b"").base is None
    with pytest.raises(Refused, match="forged"):
        chain(files, newest, b"a key")
