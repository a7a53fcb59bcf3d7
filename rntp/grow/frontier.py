"""Pages that could be had, by region; a function of the settings and the ledger's rows."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rntp_data_prep.web.urls import region

from rntp.grow.ledger import Row
from rntp.grow.settings import Frontier

ELSEWHERE = "…"
POOL = "pool:"
WORTH = ("gain", "spread", "change", "elsewhere")  # what is measured of a page; see `Worth`


@dataclass(frozen=True, slots=True)
class Worth:
    """What a page is to a model. Nats a token: gain, the mean over its positions and thoughts;
    spread, the mean over positions of the standard deviation within the group; change, of the gain
    since an earlier checkpoint; elsewhere, the gain of the thoughts at the page's next position
    instead of their own. growth: number of the growth that measured it."""

    gain: float
    spread: float
    change: float
    elsewhere: float
    growth: int


@dataclass(slots=True)
class Region:
    """Pages that are told apart by nothing else than where they lie.

    index: in the order of appearance. parent: name of the region whose page first linked here, or
    "". queue: addresses that were not taken, in the order they were found. taken, judged, kept:
    pages, those that the model has looked at or that came to nothing before, and those that gave a
    document. barren: pages in a row without one, of this growth. closed: a pool that has ended.
    """

    name: str
    index: int
    parent: str = ""
    queue: deque[str] = field(default_factory=deque)
    taken: int = 0
    judged: int = 0
    kept: int = 0
    barren: int = 0
    closed: bool = False
    worths: list[Worth] = field(default_factory=list)

    @property
    def is_pool(self) -> bool:
        """Whether pages come from files, in their order."""
        return self.name.startswith(POOL)


class State:
    """Regions and what was found out, after all rows so far.

    growth: number of the last one, from 1. number: of the next page. documents: ids that the
    segments have or will have.
    """

    def __init__(self, settings: Frontier) -> None:
        self._settings = settings
        self._met: set[str] = set()
        self.regions: dict[str, Region] = {}
        self.documents: set[str] = set()
        self.growth = self.number = 0
        self._region_of: dict[int, str] = {}
        for name in settings.pools:
            self._region(f"{POOL}{name}", "")
        self._found(settings.starts(), "")

    def open_regions(self) -> list[Region]:
        """Those a page can be taken from, in the order of appearance."""
        patience = self._settings.patience
        return [
            found
            for found in self.regions.values()
            if found.barren < patience and not found.closed and (found.queue or found.is_pool)
        ]

    def next_of(self, name: str) -> str:
        """The next page of a region: its address, or name and number of a pool's."""
        found = self.regions[name]
        return f"{name}#{found.taken + 1}" if found.is_pool else found.queue[0]

    def apply(self, row: Row) -> None:
        """Take in one row of the ledger."""
        if row["row"] == "growth":
            self.growth += 1
            for found in self.regions.values():
                # One page tells whether a region is still barren: nothing starves.
                found.barren = min(found.barren, self._settings.patience - 1)
        elif row["row"] == "page":
            self._take(row)
        elif row["row"] == "worth":
            for page in row["pages"]:
                self._judge(page)
            # What is believed changes here and nowhere else: a kill within a look changes nothing.
            for found in self.regions.values():
                found.judged = found.taken

    def _take(self, row: Row) -> None:
        self.number = row["number"] + 1
        found = self.regions[row["region"]]
        self._region_of[row["number"]] = found.name
        found.closed = row["outcome"] == "ended"
        if not found.is_pool:
            found.queue.popleft()
        if not found.closed:
            found.taken += 1
        self._met.add(row["address"])
        self._found(row["links"], found.name)
        if row["outcome"] != "read":
            found.barren += 1

    def _judge(self, page: dict[str, Any]) -> None:
        found = self.regions[self._region_of[page["number"]]]
        if page["document"] is None:
            found.barren += 1
            return
        found.barren = 0
        found.kept += 1
        self.documents.add(page["document"])
        if page["gain"] is not None:
            # Ledgers of before do not say what thoughts give elsewhere.
            worth = page["gain"], page["spread"], page["change"], page.get("elsewhere", 0.0)
            found.worths.append(Worth(*worth, self.growth))

    def new(self, addresses: Iterable[str]) -> list[str]:
        """Those addresses that no page had before."""
        return [address for address in dict.fromkeys(addresses) if address not in self._met]

    def _found(self, addresses: Iterable[str], parent: str) -> None:
        for address in self.new(addresses):
            self._met.add(address)
            name = region(address, self._settings.region_depth)
            if name not in self.regions:
                host = urlsplit(address).netloc
                others = sum(known.partition("/")[0] == host for known in self.regions)
                if others >= self._settings.regions_a_host:
                    name = f"{host}/{ELSEWHERE}"
            self._region(name, parent).queue.append(address)

    def _region(self, name: str, parent: str) -> Region:
        if name not in self.regions:
            self.regions[name] = Region(name, len(self.regions), parent)
        return self.regions[name]
