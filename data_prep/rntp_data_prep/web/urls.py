"""Addresses: one spelling for each, whether the user listed it, and the region it lies in."""

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from rntp.errors import ConfigError

MAX_URL_CHARS = 2000
_PORTS = {"http": 80, "https": 443}
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_DIGITS = re.compile(r"\d+")


def canonical(url: str, base: str = "") -> str | None:
    """The one spelling of an address, or None for one that is never asked for.

    base: of the page that it stands on. Refused are other schemes than http and https (file,
    javascript, data, mailto), names of users (`http://listed.org@other.org`), control characters,
    and addresses of more than MAX_URL_CHARS characters. The fragment goes, dots in the path are
    resolved, also where they are written as %2e.
    """
    url = url.strip()
    if not url or len(url) > MAX_URL_CHARS or _UNSAFE.search(url):
        return None
    try:
        parts = urlsplit(urljoin(base, url))
        host, port = parts.hostname or "", parts.port
        host = host if ":" in host else host.encode("idna").decode("ascii").rstrip(".")
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not _HOST.fullmatch(host) or "@" in parts.netloc:
        return None
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS[parts.scheme]:
        place += f":{port}"
    path = unquote(parts.path or "/")
    if _UNSAFE.search(path):
        return None
    # Only now, so that %2e%2e is two dots: no path leads out of its folder.
    path = urlsplit(urljoin("http://x/", path.lstrip("/").join(("/", "")))).path
    query = quote(unquote(parts.query), safe="=&/:;,+@!$'()*~.-_?")
    found = urlunsplit((parts.scheme, place, quote(path, safe="/~:@!$&'()*+,;=-._"), query, ""))
    return found if len(found) <= MAX_URL_CHARS else None


class Allowed:
    """`url in allowed`: whether a canonical address lies below one of the prefixes."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        """Raises ConfigError for a prefix that is no address of http or https."""
        self.prefixes: list[tuple[str, str, str]] = []
        for prefix in prefixes:
            found = canonical(prefix)
            if found is None:
                raise ConfigError(
                    f"allow: {prefix!r} is no address of http or https; write it in full, as "
                    "https://example.org/docs/"
                )
            parts = urlsplit(found)
            self.prefixes.append((parts.scheme, parts.netloc, parts.path))

    def __contains__(self, url: str) -> bool:
        parts = urlsplit(url)
        return any(
            (parts.scheme, parts.netloc) == (scheme, place)
            and (parts.path == path or parts.path.startswith(path.rstrip("/") + "/"))
            for scheme, place, path in self.prefixes
        )


def folder_of(url: str) -> str:
    """The address of the folder that a page lies in."""
    return urljoin(url, ".")


def region(url: str, depth: int) -> str:
    """Host and the first `depth` folders of the path, runs of digits written as 0.

    So a calendar's /2026/ and /2027/ are one region, and /2026-11/ and /2031-04/ are, too.
    """
    parts = urlsplit(url)
    folders = parts.path.strip("/").split("/")[: -1 if not parts.path.endswith("/") else None]
    return "/".join([parts.netloc, *(_DIGITS.sub("0", f) for f in folders[:depth] if f)])
