"""One page of a site at a time: politely, within limits, and nowhere else than allowed."""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from rntp_data_prep.archived import decoded_page
from rntp_data_prep.charsets import content_type_label
from rntp_data_prep.page import Page, Tally
from rntp_data_prep.web.urls import Allowed, canonical

MAX_HOPS = 3
"""Redirects that are followed from one address."""

_PIECE_BYTES = 1 << 14
_ROBOTS_BYTES = 500 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_TYPES = {"text/html": True, "application/xhtml+xml": True, "text/plain": False}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a page and a host may cost. delay_s: seconds between two requests to a host, or what
    its robots.txt asks for, up to max_delay_s, beyond which the host is left alone. page_s:
    seconds of one request, from connecting to its last byte. failures: requests in a row that a
    host may fail before it is left alone."""

    agent: str
    delay_s: float = 1.0
    max_delay_s: float = 60.0
    page_s: float = 20.0
    page_bytes: int = 2 << 20
    failures: int = 5


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of an address. page: has `html`, `text`, or a reason why it has neither. requests:
    how many were made; 0 where nothing was asked for. num_bytes: of the bodies that were read."""

    page: Page
    requests: int
    num_bytes: int


class _Refused(Exception):
    """A page that is not to be had, and the bytes that were read before that was known. Its message
    is the reason, one word."""

    def __init__(self, reason: str, num_bytes: int = 0) -> None:
        super().__init__(reason)
        self.num_bytes = num_bytes


class _Late(Exception):
    """A request that was ended at its deadline."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.num_bytes = num_bytes


@dataclass(slots=True)
class _Host:
    robots: RobotFileParser
    delay_s: float
    next_at: float = 0.0
    failures: int = 0


class Fetcher:
    """Gets pages over http and https. Holds what robots.txt of each host says, and when the host
    may be asked next; one request at a time.

    allowed: what may be asked for at all; besides, robots.txt of these hosts. wait, clock: of
    seconds, for tests.
    """

    def __init__(
        self,
        allowed: Allowed,
        limits: Limits,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed, self._limits = allowed, limits
        self._wait, self._clock = wait, clock
        self._hosts: dict[tuple[str, str], _Host] = {}

    def get(self, url: str) -> Fetched:
        """Ask for a canonical address and follow its redirects; never raises for what a site does.

        Reasons of pages that are not to be had: not_allowed (outside the list, also at a redirect),
        robots, host_failed, redirect_loop, http_status, not_html, page_too_large, too_slow,
        unreachable, undecodable.
        """
        requests = num_bytes = 0
        here, met = url, set[str]()
        try:
            while True:
                if here not in self._allowed:
                    raise _Refused("not_allowed")
                if here in met or len(met) > MAX_HOPS:
                    raise _Refused("redirect_loop")
                met.add(here)
                host = self._host(here)
                self._admit(host, here)
                requests += 1
                status, headers, body = self._request(host, here, self._limits.page_bytes)
                num_bytes += len(body)
                if status not in _REDIRECTS:
                    break
                target = canonical(headers.get("location", ""), here)
                if target is None:
                    raise _Refused("not_allowed")
                here = target
            if status != 200:
                raise _Refused("http_status")
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind not in _TYPES:
                raise _Refused("not_html")
        except _Refused as refused:
            num_bytes += refused.num_bytes
            return Fetched(Page(url, _source(url), None, str(refused)), requests, num_bytes)
        label = content_type_label(headers.get("content-type", ""))
        page = decoded_page(body, label, here, _source(here), _TYPES[kind], Tally())
        return Fetched(page, requests, num_bytes)

    def _host(self, url: str) -> _Host:
        parts = urlsplit(url)
        key = parts.scheme, parts.netloc
        if key not in self._hosts:
            self._hosts[key] = self._open(f"{parts.scheme}://{parts.netloc}")
        return self._hosts[key]

    def _open(self, root: str) -> _Host:
        """Read robots.txt: one that is not there allows everything, one that cannot be had
        nothing (RFC 9309, 2.3.1)."""
        robots = RobotFileParser()
        host = _Host(robots, self._limits.delay_s)
        url, lines = f"{root}/robots.txt", list[str]()
        for _ in range(MAX_HOPS + 1):
            try:
                status, headers, body = self._request(host, url, _ROBOTS_BYTES)
            except _Refused as refused:
                # What comes behind the limit need not be read; a host that fails is left alone.
                lines = [] if str(refused) == "not_html" else ["User-agent: *", "Disallow: /"]
                break
            target = canonical(headers.get("location", ""), url)
            if status in _REDIRECTS and target and urljoin(target, "/") == f"{root}/":
                url = target
                continue
            if status == 200:
                lines = body.decode("utf-8", "replace").splitlines()
            elif status >= 500 or status == 429:
                lines = ["User-agent: *", "Disallow: /"]
            break
        robots.parse(lines)
        asked = robots.crawl_delay(self._limits.agent)
        host.delay_s = max(host.delay_s, float(asked or 0))
        return host

    def _admit(self, host: _Host, url: str) -> None:
        if host.failures >= self._limits.failures:
            raise _Refused("host_failed")
        too_slow = host.delay_s > self._limits.max_delay_s
        if too_slow or not host.robots.can_fetch(self._limits.agent, url):
            raise _Refused("robots")

    def _request(self, host: _Host, url: str, most: int) -> tuple[int, dict[str, str], bytes]:
        """(status, headers by lower-case name, body). Raises _Refused."""
        if (pause := host.next_at - self._clock()) > 0:
            self._wait(pause)
        deadline = time.monotonic() + self._limits.page_s
        try:
            found = _exchange(url, self._limits, deadline, most)
        except _Late as late:
            host.failures += 1
            raise _Refused("too_slow", late.num_bytes) from late
        except TimeoutError as error:
            host.failures += 1
            raise _Refused("too_slow") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            host.failures += 1
            raise _Refused("unreachable") from error
        finally:
            host.next_at = self._clock() + host.delay_s
        host.failures = host.failures + 1 if found[0] >= 500 or found[0] == 429 else 0
        return found


def _exchange(
    url: str, limits: Limits, deadline: float, most: int
) -> tuple[int, dict[str, str], bytes]:
    """Raises _Refused, TimeoutError past the deadline, and what sockets and http.client raise."""
    connection = _connection(url, max(deadline - time.monotonic(), 0.01))
    late, sockets = threading.Event(), list[socket.socket]()

    def end() -> None:
        late.set()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    # A socket's own timeout counts from byte to byte, and a host may send one a second.
    timer = threading.Timer(max(deadline - time.monotonic(), 0.01), end)
    body = bytearray()
    try:
        connection.connect()
        # Kept here: http.client lets go of it when the response begins.
        sockets.append(connection.sock)
        timer.start()
        parts = urlsplit(url)
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        connection.putrequest("GET", path, skip_accept_encoding=True)
        for name, value in (
            ("User-Agent", limits.agent),
            ("Accept", "text/html, application/xhtml+xml, text/plain"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ):
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status == 200:
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise _Refused("not_html")
            if int(headers.get("content-length") or 0) > most:
                raise _Refused("page_too_large")
            while piece := response.read1(_PIECE_BYTES):
                body += piece
                if len(body) > most:
                    raise _Refused("page_too_large", len(body))
        if late.is_set():
            raise TimeoutError
        if len(body) < int(headers.get("content-length") or 0) and response.status == 200:
            raise http.client.IncompleteRead(bytes(body))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if late.is_set():
            raise _Late(len(body)) from error
        raise
    finally:
        timer.cancel()
        connection.close()
    return response.status, headers, bytes(body)


def _connection(url: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(
        parts.hostname, parts.port, timeout=timeout_s, context=context
    )


def _source(url: str) -> str:
    """What a document of a site names as its source."""
    return urlsplit(url).netloc
