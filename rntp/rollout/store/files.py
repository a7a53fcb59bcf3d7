"""The bytes of a store by name: in a folder, or behind a URL through fsspec.

What the contract needs of either: a file is whole or absent, a rewritten one is the old or the new,
and of two that write one new name together the first wins (`put_new`).
"""

import contextlib
import os
import uuid
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rntp.data.storage import SCHEMES, Location
from rntp.errors import ConfigError
from rntp.runtime.faults import fault_point
from rntp.runtime.files import write_bytes_atomic


class Files(Protocol):
    """Files of a store. Names have slashes. All methods raise OSError while it does not answer."""

    where: Location

    def get(self, name: str) -> bytes | None:
        """The bytes of a file, or None where there is none."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a file, or write over it."""
        ...

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one: False then, and nothing is changed."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted: for messages and for cleaning up, since a listing may lag."""
        ...


class FolderFiles:
    """A folder that all processes see, as on one machine or over NFS. It has to exist."""

    def __init__(self, folder: Path) -> None:
        self.where: Location = folder
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self._look_for_the_store()
            return None

    def has(self, name: str) -> bool:
        self._look_for_the_store()
        return (self._folder / name).is_file()

    def put(self, name: str, data: bytes) -> None:
        write_bytes_atomic(self._place(name), data)

    def put_new(self, name: str, data: bytes) -> bool:
        path = self._place(name)
        if path.exists():
            return False
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        write_bytes_atomic(temporary, data)
        try:
            os.link(temporary, path)  # unlike a rename it never takes the place of a file
        except FileExistsError:
            return False
        except OSError:
            return self._claim_and_rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        path = self._folder / name
        if path.is_dir():
            for inner in list(path.iterdir()):
                self.remove(f"{name}/{inner.name}")
            with contextlib.suppress(OSError):  # somebody has written into it meanwhile
                path.rmdir()
        else:
            path.unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        self._look_for_the_store()
        path = self._folder / folder
        if not path.is_dir():
            return []
        return sorted(p.name for p in path.iterdir() if not p.name.startswith("."))

    def _place(self, name: str) -> Path:
        fault_point("store.put")
        self._look_for_the_store()
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _look_for_the_store(self) -> None:
        """An unmounted folder must not look like one in which everything is missing."""
        if not self._folder.is_dir():
            raise FileNotFoundError(f"the store {self._folder} is not there")

    @staticmethod
    def _claim_and_rename(temporary: Path, path: Path) -> bool:
        """For file systems without hard links: who makes a claim first may rename."""
        try:
            os.close(os.open(path.with_name(f".{path.name}.claim"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        temporary.replace(path)
        return True


class UrlFiles:
    """A URL. Keys of S3 and the like come from the environment, as their libraries have it.

    conditional: the store refuses to write over a file where it is asked to; found out by trying
    once. Without, a new file is looked for, written and read again: of two that write together the
    last one may win then, which costs a part sampled twice and nothing else, since names of
    rollouts hold the sampler's.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a scheme that is not in `rntp.data.storage.SCHEMES`."""
        self.where: Location = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        if self._scheme not in SCHEMES:
            raise ConfigError(f"{url}: a store is a folder or one of {', '.join(SCHEMES)} URLs")

    def get(self, name: str) -> bytes | None:
        try:
            return bytes(self._ask(lambda: self._files.cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        return bool(self._ask(lambda: self._files.exists(self._path(name))))

    def put(self, name: str, data: bytes) -> None:
        fault_point("store.put")
        self._write(name, data)

    def put_new(self, name: str, data: bytes) -> bool:
        fault_point("store.put")
        if self.conditional:
            return self._create(name, data)
        if self.get(name) is not None:
            return False
        self._write(name, data)
        return self.get(name) == data

    @cached_property
    def conditional(self) -> bool:
        """Whether the store keeps what is there where `put_new` meets it."""
        probe = f"probe/{uuid.uuid4().hex}"
        try:
            return self._create(probe, b"1") and not self._create(probe, b"2")
        except (NotImplementedError, TypeError, OSError):
            return False
        finally:
            self.remove(probe)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(lambda: self._files.rm(self._path(name), recursive=True))

    def names(self, folder: str) -> list[str]:
        try:
            found = self._ask(lambda: self._files.ls(self._path(folder), detail=False))
        except FileNotFoundError:
            return []
        inner = (str(path).rstrip("/") for path in found)
        own = f"/{folder}"  # which S3 lists where nothing is left in it
        return sorted(path.rpartition("/")[2] for path in inner if not path.endswith(own))

    def _create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        try:
            self._make_folder(path)
            self._ask(lambda: self._files.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return False
        except OSError as error:
            if "PreconditionFailed" in f"{error!r} {error.__cause__!r}":
                return False
            raise
        return True

    def _write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        self._make_folder(path)
        self._ask(lambda: self._files.pipe_file(path, data))

    def _make_folder(self, path: str) -> None:
        if self._scheme == "memory":  # the others have no folders
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self.where}/{name}"

    @cached_property
    def _files(self) -> Any:
        import fsspec

        try:
            # Others write what is looked for here: nothing may be remembered.
            return fsspec.filesystem(self._scheme, use_listings_cache=False)
        except ImportError as error:
            raise ConfigError(
                f"{self.where} needs a package that is not installed ({error}); run "
                "`pip install 'rntp[s3]'`, or install the one that is named"
            ) from error

    @staticmethod
    def _ask(request: Callable[[], Any]) -> Any:
        """One request; whatever a client raises for a store that does not answer is an OSError."""
        try:
            return request()
        except (OSError, NotImplementedError, TypeError, ConfigError):
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error


def open_files(where: Location) -> Files:
    """Open a store. Raises ConfigError for an unknown scheme."""
    if isinstance(where, str) and "://" in where:
        return UrlFiles(where)
    return FolderFiles(Path(where))
