"""What the weights of a step take on the wire, whole and as what has changed: SmolLM2-135M.

    python experiments/samplers/deltas.py [--steps 6] [--rates 1e-6 1e-5] [--set a.b=c …]

Real steps of deltas.yaml through a store, with the sampler in the same process. Every version is
written as rntp writes it; the last change is packed in other ways, too, to see what they take. Arms
that are done are not done again. Writes results/deltas.json and DELTAS.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from rntp.config import Config
from rntp.rollout.store import engine
from rntp.rollout.store.delta import Difference, apply, difference
from rntp.rollout.store.fetching import Fetcher
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.manifest import table_of
from rntp.rollout.store.publishing import Publisher
from rntp.rollout.store.sampler import Sampler
from rntp.run.log import read_metrics
from rntp.trainer import Trainer

HERE = Path(__file__).parent
INTEGER = {2: torch.int16, 4: torch.int32}
Weights = Mapping[str, Tensor]
Row = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rates", nargs="+", default=["1e-6", "1e-5"])
    parser.add_argument("--float32", action="store_true", help="two steps in float32, too")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    path = HERE / "results" / "deltas.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    arms = [("bfloat16", rate, arguments.steps) for rate in arguments.rates]
    if arguments.float32:
        arms.append(("float32", arguments.rates[0], 3))
    for dtype, rate, steps in arms:
        name = f"{dtype}, lr {rate}"
        if name in done:
            continue
        options = [f"model.dtype={dtype}", f"optim.lr={rate}", f"run.steps={steps}"]
        done[name] = run(options + arguments.overrides)
        path.write_text(json.dumps(done, indent=1) + "\n")
        print(name, json.dumps(done[name][-1]), flush=True)
    (HERE / "DELTAS.md").write_text(page(done), encoding="utf-8")


class Measured(Publisher):
    """A publisher that measures every change, and packs the last one in other ways, too."""

    rows: ClassVar[list[Row]] = []
    first: ClassVar[Weights] = {}
    last: ClassVar[int] = 0

    def draft(self, *given: Any) -> Any:
        old = self._last.weights if self._last else None
        draft = super().draft(*given)
        if old is None:
            Measured.first = draft.weights
        else:
            row = measure(old, draft.weights, draft.change, Measured.first)
            if draft.version.number == Measured.last:
                row |= other_ways(old, draft.weights, sparse=draft.change.payload is not None)
            Measured.rows.append(row)
        return draft


def run(options: list[str]) -> list[Row]:
    """One run; a row for each of its versions after the first."""
    from rntp.rollout.store import desk

    Measured.rows, Measured.first = [], {}
    fetched: list[float] = []
    fetch, plain = Fetcher.fetch, desk.Publisher

    def timed_fetch(self: Fetcher, *given: Any) -> Any:
        before = self._have
        found, seconds = timed(lambda: fetch(self, *given))
        if found is not before:
            fetched.append(seconds)
        return found

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        store.mkdir()
        sampler = Sampler(FolderFiles(store), "beside", say=print)
        sleep = engine.sleep
        desk.Publisher, Fetcher.fetch = Measured, timed_fetch  # type: ignore[misc, method-assign]
        engine.sleep = lambda seconds: sampler.once()  # type: ignore[attr-defined]
        try:
            more = [f"run.dir={folder}/run", f"rollout.samplers.store={store}"]
            config = Config.load(HERE / "deltas.yaml", [*options, *more])
            Measured.last = config.run.steps - 1
            Trainer(config).fit()
        finally:
            desk.Publisher, Fetcher.fetch = plain, fetch  # type: ignore[misc, method-assign]
            engine.sleep = sleep
            sampler.close()
        for row, metrics, seconds in zip(
            Measured.rows, read_metrics(config.run.dir)[1:], fetched[1:], strict=True
        ):
            row["written"] = float(metrics["rollout/weights_bytes"])
            row["delta"] = float(metrics["rollout/weights_delta"])
            row["fetch_s"] = seconds
    return Measured.rows


def measure(old: Weights, new: Weights, change: Difference, first: Weights) -> Row:
    """What an update takes as rntp writes it."""
    row: Row = {"whole": float(sum(tensor.nbytes for tensor in new.values()))}
    row["share"] = change.share
    row["share_of_first"] = difference(first, new).share
    _, row["hash_s"] = timed(lambda: table_of(new))
    _, row["save_s"] = timed(lambda: safetensors.torch.save(dict(new)))
    if change.payload is not None:
        payload = change.payload
        _, row["rntp_s"] = timed(lambda: difference(old, new))
        made, row["rntp_back_s"] = timed(lambda: apply(old, payload))
        assert all(torch.equal(bits(made[n]), bits(new[n])) for n in new)
    return row


def other_ways(old: Weights, new: Weights, *, sparse: bool) -> Row:
    """Bytes and seconds of the same update in other ways."""
    row: Row = {}
    if sparse:
        gaps, by, values = places(old, new)
        for name, what in (("sparse", by), ("overwrite", values)):
            for how, pack in PACKERS.items():
                data = planes(gaps) + planes(what)
                row[f"{name}, {how}"], row[f"{name}, {how}_s"] = packed(pack, data)
    dense = b"".join(planes(bits(old[n]).bitwise_xor(bits(new[n])).numpy()) for n in new)
    for how in ("zlib 1", "zstd 1"):
        row[f"dense, {how}"], row[f"dense, {how}_s"] = packed(PACKERS[how], dense)
    return row


def zlib_rle(data: bytes) -> bytes:
    """Huffman codes and runs of one byte alone."""
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zlib 1": lambda data: zlib.compress(data, 1),
    "zlib 6": lambda data: zlib.compress(data, 6),
    "zlib rle": zlib_rle,
    "zstd 1": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
    "zstd 9": lambda data: zstandard.ZstdCompressor(level=9).compress(data),
}


def packed(pack: Callable[[bytes], bytes], data: bytes) -> tuple[float, float]:
    """Bytes and seconds."""
    out, seconds = timed(lambda: pack(data))
    return float(len(out)), seconds


def places(old: Weights, new: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances between elements that changed, their exclusive or, and what they are now."""
    gaps, by, values = [], [], []
    for name, tensor in new.items():
        both = bits(old[name]).bitwise_xor(bits(tensor))
        where = both.nonzero().flatten()
        gaps.append((where.diff(prepend=torch.tensor([-1])) - 1).numpy().astype("<u4"))
        by.append(both[where].numpy())
        values.append(bits(tensor)[where].numpy())
    return np.concatenate(gaps), np.concatenate(by), np.concatenate(values)


def planes(numbers: np.ndarray) -> bytes:
    """The bytes of numbers, those of equal rank together."""
    size = numbers.dtype.itemsize
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, size).T).tobytes()


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(INTEGER[tensor.element_size()])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


def page(done: dict[str, list[Row]]) -> str:
    """Tables of sizes and seconds."""
    lines = [
        "# What the weights of a step take on the wire",
        "",
        "`python experiments/samplers/deltas.py`: SmolLM2-135M, real steps of deltas.yaml on pages "
        "of Debian's documentation; means over the versions after the first. A change is what one "
        "update leaves different in the bits of the weights that samplers compute with. Seconds on "
        f"{os.cpu_count()} CPU cores that others used as well, one thread: they say which way is "
        "the cheaper one, not how long it takes elsewhere.",
        "",
        "| weights | whole, MB | changed by a step | since the first version, by version | "
        "written, MB | of the whole | bits an element that changed |",
        "|" + "---|" * 7,
    ]
    for name, rows in done.items():
        whole, share = mean(rows, "whole"), mean(rows, "share")
        written = mean(rows, "written")
        size = 2 if name.startswith("bfloat16") else 4
        growing = ", ".join(f"{row['share_of_first']:.2%}" for row in rows)
        each = f"{8 * written / (share * whole / size):.1f}" if rows[0]["delta"] else "whole"
        lines.append(
            f"| {name} | {whole / 1e6:.1f} | {share:.2%} | {growing} | {written / 1e6:.2f} | "
            f"{written / whole:.2%} | {each} |"
        )
    lines += ["", "The last change, packed in other ways; MB, and seconds to pack:", ""]
    lines += ["| way | " + " | ".join(done) + " |", "|" + "---|" * (1 + len(done))]
    ways = sorted({key for rows in done.values() for key in rows[-1] if ", " in key})
    for way in [w for w in ways if not w.endswith("_s")]:
        last = [rows[-1] for rows in done.values()]
        cells = [
            f"{row[way] / 1e6:.2f}, {row[way + '_s']:.2f} s" if way in row else "" for row in last
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "`sparse`: distances between elements that changed and the exclusive or of their bits, in "
        "planes of bytes; `overwrite`: their new bits in its place; `dense`: the exclusive or of "
        "all elements, in planes. rntp writes sparse, with zlib 1.",
        "",
        "| seconds | " + " | ".join(done) + " |",
        "|" + "---|" * (1 + len(done)),
    ]
    for key, what in (
        ("hash_s", "hash of every tensor (trainer and sampler)"),
        ("save_s", "whole: safetensors in memory (trainer)"),
        ("rntp_s", "delta: find and pack (trainer)"),
        ("rntp_back_s", "delta: unpack and apply (sampler)"),
        ("fetch_s", "all of a fetch: read, apply, hash (sampler)"),
    ):
        cells = [f"{mean(rows, key):.2f}" if key in rows[0] else "" for rows in done.values()]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def mean(rows: list[Row], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
