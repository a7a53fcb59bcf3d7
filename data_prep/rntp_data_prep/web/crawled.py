"""A site that was crawled before: its pages as files of a folder, named by their paths."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from rntp_data_prep.archived import decoded_page
from rntp_data_prep.page import MAX_PAGE_BYTES, Page, Tally
from rntp_data_prep.web.fetch import Fetched

_INDEX = ("index.html", "index.htm", "index.txt")
_KINDS = {".html": True, ".htm": True, ".xhtml": True, "": True, ".txt": False, ".md": False}


def read_page(root: str, folder: Path, url: str, most_bytes: int) -> Fetched:
    """The page of an address below `root` from the folder that was crawled below it.

    Counts as one request. Reasons: not_allowed (the file lies outside of the folder, by a link in
    it, say), not_found, not_html, page_too_large, undecodable.
    """
    source = urlsplit(root).netloc
    path = folder / unquote(urlsplit(url).path.removeprefix(urlsplit(root).path)).lstrip("/")
    if url.endswith("/"):
        path = next((p for name in _INDEX if (p := path / name).is_file()), path / _INDEX[0])

    def refused(reason: str, num_bytes: int = 0) -> Fetched:
        return Fetched(Page(url, source, None, reason), 1, num_bytes)

    if not path.resolve().is_relative_to(folder.resolve()):
        return refused("not_allowed")
    if path.suffix.lower() not in _KINDS:
        return refused("not_html")
    try:
        if path.stat().st_size > min(most_bytes, MAX_PAGE_BYTES):
            return refused("page_too_large")
        body = path.read_bytes()
    except OSError:
        return refused("not_found")
    page = decoded_page(body, "", url, source, _KINDS[path.suffix.lower()], Tally())
    return Fetched(page, 1, len(body))
