"""Corpora behind a URL: range requests to a server on loopback that is slow, failing or lying."""

import random
import socket
import struct
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from corpus import encode, write_corpus
from shard_server import ShardServer, answer, served

from rntp.data.manifest import Manifest
from rntp.data.reader import Reader
from rntp.data.retry import Transient, retrying
from rntp.data.storage import RemoteStorage, open_storage
from rntp.data.stream import ContextStream
from rntp.errors import ConfigError, DataError

pytest.importorskip("aiohttp", reason="extra `url`")

NUM_DOCS = 12


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ShardServer]:
    write_corpus(tmp_path / "c", [50] * NUM_DOCS, shard_bytes=12_000)
    with served(tmp_path / "c") as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rntp.data.retry.BASE_S", 0.01)
    monkeypatch.setattr("rntp.data.storage._SOCKET_S", 0.3)


def stream(manifest: Manifest, max_damaged: float = 0.0) -> ContextStream:
    return ContextStream(
        manifest,
        encode,
        seed=3,
        context_tokens=24,
        min_document_tokens=16,
        heldout_fraction=0.0,
        split="train",
        max_damaged=max_damaged,
    )


def ids(reader: ContextStream | Reader) -> list[list[int]]:
    return [reader[n].token_ids.tolist() for n in range(NUM_DOCS)]


def test_a_url_is_read_like_the_folder(server: ShardServer) -> None:
    here = Manifest.load(server.folder)
    there = Manifest.load(server.url, deadline_s=5)
    assert there.digest == here.digest
    assert [there.read(n) for n in range(NUM_DOCS)] == [here.read(n) for n in range(NUM_DOCS)]
    # The manifest, the indexes, and one range a document.
    assert len(server.requests) == 1 + len(here.shards) + NUM_DOCS
    with pytest.raises(DataError, match="is a URL; copy the corpus"):
        there.verify()


def fails_at_first(status: int, headers: dict[str, str] | None = None):
    def fault(handler: BaseHTTPRequestHandler, n: int) -> bool:
        if n % 3 == 0:
            return False
        answer(handler, status, b"<Error><Code>SlowDown</Code></Error>", headers)
        return True

    return fault


def resets(handler: BaseHTTPRequestHandler, n: int) -> bool:
    if n % 3 == 0:
        return False
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True
    return True


def cuts(handler: BaseHTTPRequestHandler, n: int) -> bool:
    if n % 3 == 0:
        return False
    answer(handler, 206, b"x" * 10, claim=500)
    return True


def hangs(handler: BaseHTTPRequestHandler, n: int) -> bool:
    if n % 3 == 0:
        return False
    time.sleep(0.6)
    handler.close_connection = True
    return True


def says_too_little(handler: BaseHTTPRequestHandler, n: int) -> bool:
    if n % 3 == 0 or "Range" not in handler.headers:
        return False
    answer(handler, 206, b"x" * 7)
    return True


@pytest.mark.parametrize(
    "fault",
    [
        fails_at_first(429, {"Retry-After": "0"}),
        fails_at_first(500),
        fails_at_first(503),
        resets,
        cuts,
        says_too_little,
    ],
    ids=["429", "500", "503", "reset", "cut", "short"],
)
def test_what_passes_is_waited_for(server: ShardServer, fault) -> None:
    expected = ids(stream(Manifest.load(server.folder)))
    server.fault = fault
    there = stream(Manifest.load(server.url, deadline_s=20))
    assert ids(there) == expected
    assert there.damaged == []
    assert len(server.requests) > 2 * NUM_DOCS


@pytest.mark.slow
def test_a_server_that_hangs_or_trickles_is_given_up(server: ShardServer) -> None:
    server.fault = hangs
    begin = time.monotonic()
    there = Manifest.load(server.url, deadline_s=30)
    assert there.num_docs == NUM_DOCS
    assert 0.6 < time.monotonic() - begin < 20

    def trickles(handler: BaseHTTPRequestHandler, n: int) -> bool:
        answer(handler, 200, b"x" * 4000, pause_s=0.25)  # never silent, never done
        return True

    server.fault = trickles
    with pytest.raises(DataError, match=r"in 1\.5 s"):
        Manifest.load(server.url, deadline_s=1.5)


def test_past_the_deadline_the_run_is_told_why(server: ShardServer) -> None:
    there = Manifest.load(server.url, deadline_s=0.3)
    server.fault = lambda handler, n: bool(answer(handler, 503, b"")) or True
    with pytest.raises(DataError, match=r"shard-\d+\.tar could not be read in 0\.3 s .*status 503"):
        there.read(0)


def test_an_error_page_with_status_200_is_no_document(server: ShardServer) -> None:
    expected = ids(stream(Manifest.load(server.folder)))
    there = stream(Manifest.load(server.url, deadline_s=20))
    server.fault = fails_at_first(200)
    assert ids(there) == expected
    assert there.damaged == []


@pytest.mark.parametrize(
    ("status", "headers"),
    [(403, {}), (404, {}), (302, {"Location": "http://169.254.169.254/latest/meta-data"})],
)
def test_what_stays_wrong_ends_at_once(server: ShardServer, status: int, headers) -> None:
    there = Manifest.load(server.url, deadline_s=20)
    before = len(server.requests)
    server.fault = lambda handler, n: bool(answer(handler, status, b"", headers)) or True
    with pytest.raises(DataError, match=f"status {status}: check the address"):
        there.read(0)
    assert len(server.requests) == before + 1


def test_flipped_bits_on_the_way_are_fetched_again_then_set_aside(server: ShardServer) -> None:
    expected = ids(stream(Manifest.load(server.folder)))
    there = stream(Manifest.load(server.url, deadline_s=20), 0.1)
    good = {p.name: p.read_bytes() for p in server.folder.glob("*.tar")}
    flips: list[str] = []

    def flip(every: bool):
        def fault(handler: BaseHTTPRequestHandler, n: int) -> bool:
            first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
            part = bytearray(good[handler.path.lstrip("/")][first : last + 1])
            # Document 5's words; on the way of the first answer only, or of every one.
            if b"w5003" in part and (every or not flips):
                flips.append(handler.path)
                part[0] ^= 1
            answer(handler, 206, bytes(part))
            return True

        return fault

    server.fault = flip(every=False)
    assert ids(there) == expected
    assert (len(flips), there.damaged) == (1, [])
    server.fault = flip(every=True)
    found = ids(there)
    assert len(flips) == 3
    assert sum(a != b for a, b in zip(found, expected, strict=True)) == 1
    assert [damage.document_id for _, damage in there.damaged] == ["doc-5"]


@pytest.mark.slow
def test_workers_read_urls_too(server: ShardServer) -> None:
    expected = ids(stream(Manifest.load(server.folder)))
    for kind in ("thread", "process"):
        there = stream(Manifest.load(server.url, deadline_s=20))
        reader = Reader(there, workers=3, kind=kind)  # type: ignore[arg-type]
        assert [c.token_ids.tolist() for c in reader.take(range(NUM_DOCS))] == expected
        reader.close()


def test_a_store_of_s3_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors are botocore's own, no OSErrors: seen with a server that was killed and came back.
    A store without credentials is not waited for."""
    errors = pytest.importorskip("botocore.exceptions")
    monkeypatch.setattr("rntp.data.retry.BASE_S", 0.0)
    storage = RemoteStorage("s3://bucket/corpus", deadline_s=5.0)
    answers: list[BaseException | bytes] = [
        errors.EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        errors.ReadTimeoutError(endpoint_url="http://127.0.0.1:1"),
        b"page",
    ]

    class Files:
        def cat_file(self, path: str, **more: int) -> bytes:
            answer = answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

    storage.__dict__["_files"] = Files()
    assert storage.read("shard", 0, 4) == b"page"
    assert answers == []
    answers.append(errors.NoCredentialsError())
    with pytest.raises(DataError, match="AWS_ACCESS_KEY_ID"):
        storage.read("shard", 0, 4)


def test_only_known_schemes_are_opened() -> None:
    for url in ("ftp://example.org/c", "pipe://rm", "file+x://c"):
        with pytest.raises(ConfigError, match="corpora are read from folders and from http"):
            open_storage(url)


def test_waits_grow_with_full_jitter_and_keep_the_deadline() -> None:
    waits: list[float] = []
    bounds: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    def draw(low: float, high: float) -> float:
        bounds.append(high)
        return random.Random(len(bounds)).uniform(low, high)

    def fail() -> None:
        raise Transient("no route")

    with pytest.raises(DataError, match=r"x could not be read in 100 s \(\d+ tries.*no route"):
        retrying(fail, what="x", deadline_s=100, sleep=sleep, clock=lambda: now[0], draw=draw)
    assert bounds[:4] == [0.02, 0.04, 0.08, 0.16]
    assert max(bounds) == 30.0
    assert 50 < now[0] <= 100
    assert len(set(waits)) == len(waits)

    tries = [Transient("busy", retry_after_s=7.0), Transient("busy")]

    def twice() -> str:
        if tries:
            raise tries.pop(0)
        return "read"

    waits.clear()
    assert retrying(twice, what="x", deadline_s=100, sleep=sleep, draw=draw) == "read"
    assert waits[0] == 7.0
    with pytest.raises(KeyError):  # what is no network fault passes through
        retrying(lambda: {}["a"], what="x", deadline_s=1, sleep=sleep)
