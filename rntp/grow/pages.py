"""Pages as they are had: from a site, from the folder of a crawl, from the files of a pool."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rntp_data_prep.config import source_files
from rntp_data_prep.page import Page
from rntp_data_prep.sources import pages
from rntp_data_prep.web.crawled import read_page
from rntp_data_prep.web.fetch import Fetched, Fetcher, Limits

from rntp.grow.frontier import POOL
from rntp.grow.settings import Frontier

ENDED = "ended"


class Pages:
    """Whatever a frontier names, one page at a time.

    Raises ConfigError and DataError for what is not there.
    """

    def __init__(self, settings: Frontier) -> None:
        self._settings = settings
        self._allowed, self._crawled = settings.allowed(), settings.crawled()
        limits = Limits(
            agent=settings.agent,
            delay_s=settings.delay_s,
            page_s=settings.page_s,
            page_bytes=settings.page_bytes,
        )
        self._fetcher = Fetcher(self._allowed, limits)
        self._files = {
            f"{POOL}{name}": source_files([pattern], f"pools: {name}")
            for name, pattern in settings.pools.items()
        }
        self._open: dict[str, tuple[Iterator[Page], int]] = {}

    def site_page(self, address: str) -> Fetched:
        """The page of an address, from the folder that stands for its site or from the site."""
        for root, folder in self._crawled.items():
            if address.startswith(root):
                return read_page(root, folder, address, self._settings.page_bytes)
        return self._fetcher.get(address)

    def pool_page(self, pool: str, number: int) -> Fetched:
        """Page `number`, from 0, of a pool; reason `ended` behind its last one."""
        rest, at = self._open.get(pool, (iter(()), -1))
        if at != number:
            rest = islice(self._of(pool), number, None)
        page = next(rest, None)
        self._open[pool] = rest, number + 1
        if page is None:
            return Fetched(Page(f"{pool}#{number + 1}", pool, None, ENDED), 0, 0)
        raw = page.html if page.html is not None else page.text
        return Fetched(page, 1, len((raw or "").encode("utf-8", "replace")))

    def _of(self, pool: str) -> Iterator[Page]:
        config = self._settings.preparation(self._files[pool], Path("segment"), "tokenizer", ())
        for file in self._files[pool]:
            yield from pages(file, config.options(file))
