"""Bytes of the files of a corpus, by name and range: a local folder, or a URL through fsspec.

A folder is read with pread. A URL is read with range requests, tried again while that may help
(see `rntp.data.retry`); redirects are not followed, since a corpus says where it lies. Neither
looks at what the bytes mean: hashes are checked in `rntp.data.manifest`.
"""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rntp.data.retry import Transient, retrying
from rntp.errors import ConfigError, DataError

SCHEMES = ("http", "https", "s3", "gs", "hf", "memory")
DEADLINE_S = 300.0
_SOCKET_S = 20.0  # without a byte; then the request is given up and tried again
_RETRIABLE = {408, 425, 429, 500, 502, 503, 504}
_WHOLE = 200
_NO_CONNECTION = {"botocore.ConnectionError", "botocore.HTTPClientError"}

Location = Path | str
"""A folder, or a URL `scheme://…`."""


class Storage(Protocol):
    """The files of one corpus. Names are plain file names. Safe from any thread."""

    where: Location

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` from `offset`; fewer where a local file ends.

        Raises OSError where there is no such file, and DataError past the deadline of a URL.
        """
        ...

    def read_whole(self, name: str) -> bytes:
        """A small file. Raises as `read`."""
        ...


class LocalStorage:
    """A folder. It holds no file open."""

    def __init__(self, folder: Path) -> None:
        self.where: Location = folder
        self._folder = str(folder)

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        descriptor = os.open(f"{self._folder}/{name}", os.O_RDONLY)
        try:
            parts = []
            while num_bytes > 0 and (part := os.pread(descriptor, num_bytes, offset)):
                parts.append(part)
                offset, num_bytes = offset + len(part), num_bytes - len(part)
        finally:
            os.close(descriptor)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_whole(self, name: str) -> bytes:
        return Path(self._folder, name).read_bytes()


class RemoteStorage:
    """A URL. deadline_s: longest that one read may take, tries and waits included, seconds."""

    def __init__(self, url: str, deadline_s: float) -> None:
        """Raises ConfigError for a scheme that is not in `SCHEMES`."""
        self.where: Location = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._deadline_s = deadline_s
        if self._scheme not in SCHEMES:
            raise ConfigError(
                f"{url}: corpora are read from folders and from {', '.join(SCHEMES)} URLs"
            )

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        path = self._path(name)
        if num_bytes == 0:
            return b""

        def attempt() -> bytes:
            end = offset + num_bytes
            part = self._ask(lambda: self._files.cat_file(path, start=offset, end=end))
            if len(part) != num_bytes:
                # A cut answer, an error page with status 200, or a server that ignores ranges.
                raise Transient(f"{len(part)} bytes in place of {num_bytes} at {offset}")
            return bytes(part)

        return retrying(attempt, what=path, deadline_s=self._deadline_s)

    def read_whole(self, name: str) -> bytes:
        path = self._path(name)
        return retrying(
            lambda: bytes(self._ask(lambda: self._files.cat_file(path))),
            what=path,
            deadline_s=self._deadline_s,
        )

    def _path(self, name: str) -> str:
        return f"{self.where}/{name}"

    @cached_property
    def _files(self) -> Any:
        import fsspec

        options: dict[str, Any] = {}
        try:
            if self._scheme in ("http", "https"):
                import aiohttp

                timeout = aiohttp.ClientTimeout(
                    total=self._deadline_s, sock_connect=_SOCKET_S, sock_read=_SOCKET_S
                )
                options = {
                    "client_kwargs": {"timeout": timeout, "raise_for_status": _check_answer},
                    "allow_redirects": False,
                }
            return fsspec.filesystem(self._scheme, **options)
        except ImportError as error:
            raise ConfigError(
                f"{self.where} needs a package that is not installed ({error}); run "
                "`pip install 'rntp[url]'`, or install the one that is named"
            ) from error

    def _ask(self, request: Callable[[], Any]) -> Any:
        """One request. Raises Transient where another try may help, DataError where none can."""
        try:
            return request()
        except Exception as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        status = getattr(error, "status", None)
        if status in _RETRIABLE:
            raise Transient(f"status {status}", _retry_after_s(error)) from error
        if status == _WHOLE:
            raise Transient("a whole answer in place of a range") from error
        if status is not None and status >= 300:
            raise DataError(
                f"{self.where} answers with status {status}: check the address and the rights "
                "(redirects are not followed: give the address that they lead to)"
            ) from error
        if isinstance(error, FileNotFoundError | PermissionError):
            return
        if isinstance(error, TimeoutError):
            raise Transient("the server is silent or too slow") from error
        if type(error).__name__ == "NoCredentialsError":
            raise DataError(
                f"{self.where} asks for credentials and there are none: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials"
            ) from error
        # Refused and reset connections are OSErrors; cut or malformed answers are aiohttp's own; a
        # store of S3 that is away is an error of botocore's, which is no OSError.
        kinds = {f"{k.__module__.partition('.')[0]}.{k.__name__}" for k in type(error).__mro__}
        of_aiohttp = type(error).__module__.startswith("aiohttp")
        if isinstance(error, OSError) or of_aiohttp or kinds & _NO_CONNECTION:
            raise Transient(f"{type(error).__name__} {error}".strip()) from error


def open_storage(where: Location, deadline_s: float = DEADLINE_S) -> Storage:
    """The storage of a corpus. Raises ConfigError for an unknown scheme."""
    if isinstance(where, str) and "://" in where:
        return RemoteStorage(where, deadline_s)
    return LocalStorage(Path(where))


async def _check_answer(response: Any) -> None:
    """Raise for what is not the asked-for range, before its body is read."""
    import aiohttp

    asked = "Range" in response.request_info.headers
    if response.status >= 300 or (asked and response.status == _WHOLE):
        raise aiohttp.ClientResponseError(
            response.request_info, (), status=response.status, headers=response.headers
        )


def _retry_after_s(error: BaseException) -> float:
    value = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
