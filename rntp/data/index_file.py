"""The index of a whole corpus in four files that are mapped into memory, not read.

    index.rows.npy      where the payloads of each document lie, and their hash
    index.tokens.npy    int32 [documents], tokens of each
    index.draws.npy     float64 [documents], what decides the split (see `heldout_draw`)
    index.checks.npy    uint32, CRC-32 of each 64 rows of the three and of their place

They say nothing that the shards' own indexes do not, so they may be made at any time, and are no
part of the corpus' digest. Opening them reads headers; a document's row is read, with the 63 beside
it, when it is asked for, and checked then.
"""

import hashlib
import mmap
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from rntp.data.documents import Columns, DamagedRow, heldout_draw
from rntp.data.shard_format import FileFacts, file_sha256
from rntp.errors import DataError
from rntp.runtime.files import sync

COLUMNS = ("rows", "tokens", "draws", "checks")
REMAKE = "`rntp data convert` makes it again from the shards' own indexes"

_CHECKED = 64  # rows under one check: some 4 KB, which take 4 µs
_SCAN = 1 << 20
_LOOKS = 256  # the kernel maps what is around, 0.2 to 0.5 MB a look, until it is let go of
_MOST_BYTES = (1 << 32) - 1
_MOST_TOKENS = (1 << 31) - 1


class MappedIndex:
    """An index, open; see `Documents`. It holds no file open. What it has looked at belongs to the
    system's cache, which ranks of one machine share, and is let go of after every 256 looks: so the
    pages of a process stay few, however large the corpus."""

    def __init__(self, folder: Path, files: Mapping[str, FileFacts], num_docs: int) -> None:
        """files: of the four columns. Raises DataError where one is missing or of another size."""
        self._opened = (folder, files, num_docs)
        self.num_docs = num_docs
        self.identity = f"{files['tokens'].sha256}/{files['draws'].sha256}"
        self._maps, self._looks = [], 0
        mapped = {}
        for name in COLUMNS:
            mapped[name], pages = _mapped(folder, files[name])
            self._maps.append(pages)
        self._rows, self._checks = mapped["rows"], mapped["checks"]
        self.num_tokens: np.ndarray = mapped["tokens"]
        self.draws: np.ndarray = mapped["draws"]
        lengths = [len(mapped[name]) for name in COLUMNS]
        if lengths != [num_docs, num_docs, num_docs, -(-num_docs // _CHECKED)]:
            raise DataError(f"the index of {folder} is not of {num_docs} documents; {REMAKE}")
        self._names = self._rows.dtype.names or ()
        self._bytes = [c.view(np.uint8) for c in (self._rows, self.num_tokens, self.draws)]
        self._sizes = [c.dtype.itemsize for c in (self._rows, self.num_tokens, self.draws)]

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself: pickled, the arrays would go through the pipe.
        return MappedIndex, self._opened

    def row(self, number: int) -> dict[str, Any]:
        self._count_look()
        block = number // _CHECKED
        first, end = block * _CHECKED, (block + 1) * _CHECKED
        parts = (
            column[first * size : end * size]
            for column, size in zip(self._bytes, self._sizes, strict=True)
        )
        if _check(parts, block) != self._checks[block]:
            raise DamagedRow(f"rows {first} to {end - 1} of the index do not match their check")
        row = dict(zip(self._names, self._rows[number].item(), strict=True))
        row["id"] = str(row["id"], "ascii")
        row["num_tokens"] = int(self.num_tokens[number])
        return row

    def part(self, first: int, end: int) -> Columns:
        self._count_look()
        return self.num_tokens[first:end], self.draws[first:end]

    def _count_look(self) -> None:
        self._looks += 1
        if self._looks % _LOOKS == 0:
            for pages in self._maps:
                pages.madvise(mmap.MADV_DONTNEED)  # of a file: they come back when looked at

    def document_id(self, number: int) -> str:
        return str(self._rows[number]["id"], "ascii", "replace")

    def document_ids(self) -> Iterator[str]:
        for first in range(0, self.num_docs, _SCAN):
            names = self._rows["id"][first : first + _SCAN]
            yield from (str(name, "ascii") for name in names.tolist())

    def ends(self, first: int, end: int, column: str) -> np.ndarray:
        rows = self._rows[first:end]
        return rows[f"{column}_offset"] + rows[f"{column}_bytes"].astype(np.int64)

    def scan(self) -> Iterator[Columns]:
        # Read, not mapped: what a scan has gone through would stay among the process' pages.
        folder, files, _ = self._opened
        paths = [folder / files[name].name for name in ("tokens", "draws")]
        counts = [min(_SCAN, self.num_docs - n) for n in range(0, self.num_docs, _SCAN)]
        with (
            open(paths[0], "rb") as tokens,
            open(paths[1], "rb") as draws,
            ThreadPoolExecutor(2) as pool,  # reading and hashing leave Python to others
        ):
            kinds = [_header(file)[0] for file in (tokens, draws)]
            hashes = [_begun(file) for file in (tokens, draws)]

            def read(count: int) -> list[Future[np.ndarray]]:
                files = zip((tokens, draws), kinds, hashes, strict=True)
                return [pool.submit(_next, file, kind, count, found) for file, kind, found in files]

            ahead = read(counts[0])
            for count in [*counts[1:], 0]:
                part = tuple(column.result() for column in ahead)
                ahead = read(count)  # the next part, while this one is looked at
                yield part  # type: ignore[misc]
        for path, name, found in zip(paths, ("tokens", "draws"), hashes, strict=True):
            if found.hexdigest() != files[name].sha256:
                raise DataError(f"{path}: the SHA-256 is not the manifest's; {REMAKE}")


class IndexWriter:
    """Writes the four files from the rows of the shards' own indexes, shard by shard; a context
    manager. What it holds does not grow with the corpus."""

    def __init__(self, folder: Path, num_docs: int, id_bytes: int, has_ids: bool) -> None:
        """num_docs: of all shards. id_bytes: of the longest id."""
        self._folder = folder
        self._num_docs = num_docs
        self._kinds = {
            "rows": _row_dtype(id_bytes, has_ids),
            "tokens": np.dtype("<i4"),
            "draws": np.dtype("<f8"),
            "checks": np.dtype("<u4"),
        }
        self._files: dict[str, BinaryIO] = {}
        self._waiting = [np.empty(0, self._kinds[name]) for name in COLUMNS[:3]]
        self._blocks = 0

    def __enter__(self) -> Self:
        for name, kind in self._kinds.items():
            rows = -(-self._num_docs // _CHECKED) if name == "checks" else self._num_docs
            file = open(self._folder / f"index.{name}.npy.tmp", "wb")
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows,)})
            self._files[name] = file
        return self

    def __exit__(self, *_: object) -> None:
        for name, file in self._files.items():
            file.close()
            (self._folder / f"index.{name}.npy.tmp").unlink(missing_ok=True)

    def add(self, index: np.ndarray, draws: np.ndarray | None = None) -> None:
        """Append the documents of a shard. index: its rows. draws: where they are known."""
        rows = np.empty(len(index), self._kinds["rows"])
        for name in self._kinds["rows"].names or ():
            if name.endswith("_bytes") and index[name].max() > _MOST_BYTES:
                raise DataError("a document has more than 4 GiB; cut it before it is prepared")
            rows[name] = index[name]
        if index["num_tokens"].max() > _MOST_TOKENS:
            raise DataError("a document has more than 2^31 tokens; cut it before it is prepared")
        if draws is None:
            draws = np.array([heldout_draw(str(n, "ascii")) for n in index["id"].tolist()])
        self._write([rows, index["num_tokens"].astype("<i4"), draws.astype("<f8")], last=False)

    def finish(self) -> dict[str, FileFacts]:
        """Flush the files and give them their names. Returns what the manifest says of them."""
        self._write([column[:0] for column in self._waiting], last=True)
        facts = {}
        for name, file in self._files.items():
            file.close()
            path = self._folder / f"index.{name}.npy"
            written = Path(file.name)
            sync(written)
            written.replace(path)
            facts[name] = FileFacts(path.name, path.stat().st_size, file_sha256(path))
        self._files = {}
        sync(self._folder)
        return facts

    def _write(self, more: list[np.ndarray], *, last: bool) -> None:
        """Write what fills blocks of checked rows; the rest waits for the next shard."""
        columns = [np.concatenate(pair) for pair in zip(self._waiting, more, strict=True)]
        whole = len(columns[0]) if last else len(columns[0]) // _CHECKED * _CHECKED
        checks = []
        for first in range(0, whole, _CHECKED):
            parts = (column[first : first + _CHECKED].view(np.uint8) for column in columns)
            checks.append(_check(parts, self._blocks))
            self._blocks += 1
        for name, column in zip(COLUMNS, columns, strict=False):
            self._files[name].write(column[:whole].tobytes())
        self._files["checks"].write(np.array(checks, "<u4").tobytes())
        self._waiting = [column[whole:] for column in columns]


def _row_dtype(id_bytes: int, has_ids: bool) -> np.dtype:
    members = [("text_offset", "<i8"), ("text_bytes", "<u4"), ("meta_offset", "<i8")]
    members += [("meta_bytes", "<u4"), ("hash", "<u8")]
    if has_ids:
        members += [("ids_offset", "<i8"), ("ids_bytes", "<u4"), ("ids_hash", "<u8")]
    return np.dtype([("id", f"S{id_bytes}"), *members])


def _check(parts: Iterable[np.ndarray], block: int) -> int:
    found = zlib.crc32(block.to_bytes(8, "little"))
    for part in parts:
        found = zlib.crc32(part.data, found)
    return found


def _mapped(folder: Path, facts: FileFacts) -> tuple[np.ndarray, mmap.mmap]:
    path = folder / facts.name
    try:
        found = path.stat().st_size
        if found != facts.bytes:
            raise DataError(f"{path} has {found} bytes and should have {facts.bytes}; {REMAKE}")
        # Not by np.load, whose arrays are of a subclass that makes every slice several times as
        # slow, and do not say what can be let go of.
        with open(path, "rb") as file:
            kind, shape = _header(file)
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            pages.madvise(mmap.MADV_RANDOM)  # read what is looked at, not what comes behind it
            return np.frombuffer(pages, kind, offset=file.tell()).reshape(shape), pages
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {REMAKE}") from error


def _header(file: BinaryIO) -> tuple[np.dtype, tuple[int, ...]]:
    """Go past the header of a .npy file; type and shape of what follows."""
    np.lib.format.read_magic(file)
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    return kind, shape


def _begun(file: BinaryIO) -> Any:
    """SHA-256 of what the file has been read of."""
    end = file.tell()
    file.seek(0)
    return hashlib.sha256(file.read(end))


def _next(file: BinaryIO, kind: np.dtype, count: int, digest: Any) -> np.ndarray:
    payload = file.read(count * kind.itemsize)
    digest.update(payload)
    return np.frombuffer(payload, kind)
