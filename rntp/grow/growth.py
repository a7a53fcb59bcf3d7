"""One growth: choose, ask, prepare, look, until the budget is spent; then the segment."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rntp_data_prep.page import Page
from rntp_data_prep.web.fetch import Fetched
from rntp_data_prep.web.links import links

from rntp.errors import ConfigError
from rntp.grow.choice import Belief, Choice, beliefs, choose
from rntp.grow.frontier import WORTH, Region, State
from rntp.grow.ledger import FILE, Ledger, Row
from rntp.grow.pages import Pages
from rntp.grow.segment import Preparer, keep_page, kept_page
from rntp.grow.settings import Frontier
from rntp.grow.weights import Probe

READ = "read"

_FIRST_PAGES = 2


class Growth:
    """A growth that begins, or goes on where a kill left it: all it knows is the ledger's.

    probe: what texts are worth, by number. preparer: see `rntp.grow.segment`.
    """

    def __init__(
        self,
        settings: Frontier,
        ledger: Ledger,
        state: State,
        preparer: Preparer,
        probe: Probe,
        pages: Pages,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._ledger, self._state = settings, ledger, state
        self._preparer, self._probe, self._pages = preparer, probe, pages
        self._say = say

    def rows(self, kind: str) -> list[Row]:
        """Rows of this growth."""
        return [row for row in current(self._ledger.rows) if row["row"] == kind]

    def spent(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        rows = self.rows("page")
        return sum(row["requests"] for row in rows), sum(row["bytes"] for row in rows)

    def finish_pages(self) -> None:
        """Take pages, a look at a time, until nothing is left of the budget or of the frontier."""
        while True:
            judged = len({row["look"] for row in self.rows("worth")})
            chosen = [row for row in self.rows("page") if row["look"] == judged]
            while len(chosen) < self._settings.pages_a_look and (open_ := self._choices(chosen)):
                chosen.append(self._take(judged, open_))
            if not chosen:
                return
            self._add({"row": "worth", "look": judged, "pages": self._look(chosen)})
            self._tell(judged)

    def _choices(self, chosen: list[Row]) -> list[Region]:
        """Regions that a page may be taken from now; none where the budget is spent.

        chosen: rows of this look. A look takes two pages of a region that is new, and of others as
        many as were taken before: a region is looked at before it is believed.
        """
        requests, num_bytes = self.spent()
        if requests >= self._settings.pages or num_bytes >= self._settings.megabytes * 1e6:
            return []
        now = Counter(row["region"] for row in chosen)
        return [
            region
            for region in self._state.open_regions()
            if now[region.name] < max(_FIRST_PAGES, region.taken - now[region.name])
        ]

    def _take(self, look: int, open_regions: list[Region]) -> Row:
        """Choose a page and ask for it."""
        state = self._state
        known = beliefs(list(state.regions.values()), state.growth)
        choice = choose(
            open_regions,
            known,
            seed=self._settings.seed,
            number=state.number,
            random_share=self._settings.random_share,
        )
        address = state.next_of(choice.region)
        found = self._ask(choice.region, address)
        return self._add(self._page_row(look, choice, address, found, known[choice.region]))

    def _ask(self, region: str, address: str) -> Fetched:
        state = self._state
        if state.regions[region].is_pool:
            return self._pages.pool_page(region, state.regions[region].taken)
        return self._pages.site_page(address)

    def _page_row(
        self, look: int, choice: Choice, address: str, found: Fetched, belief: Belief
    ) -> Row:
        page, number = found.page, self._state.number
        is_read = page.html is not None or page.text is not None
        beyond = links(page.html, page.url) if page.html is not None else []
        allowed = self._settings.allowed()
        return {
            "row": "page",
            "number": number,
            "look": look,
            "region": choice.region,
            "address": address,
            "why": choice.why,
            "value": choice.value,
            "expected": {"gain": belief.gain, "gain_sd": belief.gain_sd, "spread": belief.spread},
            "outcome": READ if is_read else page.reason,
            "url": page.url,
            "requests": found.requests,
            "bytes": found.num_bytes,
            "sha256": keep_page(self._settings.output, number, page) if is_read else None,
            "links": self._state.new(link for link in beyond if link in allowed),
            "refused_links": sum(link not in allowed for link in beyond),
        }

    def _look(self, rows: list[Row]) -> list[dict[str, Any]]:
        """What became of pages, and what they are worth."""
        texts: dict[int, str] = {}
        found: dict[int, dict[str, Any]] = {}
        taken = set(self._state.documents)
        for row in rows:
            if row["outcome"] != READ:
                continue
            number = row["number"]
            page: Page = kept_page(self._settings.output, number, row["sha256"])
            document, text, reason = self._preparer.look(page, taken)
            found[number] = {"number": number, "document": document, "dropped": reason}
            found[number] |= dict.fromkeys(WORTH)
            if document is not None:
                taken.add(document)
                texts[number] = text
        for number, worth in self._probe(texts).items():
            found[number] |= worth or {}
        return list(found.values())

    def _add(self, row: Mapping[str, Any]) -> Row:
        self._ledger.add(row)
        self._state.apply(self._ledger.rows[-1])
        return self._ledger.rows[-1]

    def _tell(self, look: int) -> None:
        requests, num_bytes = self.spent()
        known = beliefs(list(self._state.regions.values()), self._state.growth)
        by_gain = sorted(known, key=lambda name: -known[name].gain)[:3]
        best = ", ".join(f"{name} {known[name].gain:+.3f}" for name in by_gain)
        self._say(
            f"look {look + 1}: {requests} of {self._settings.pages} requests, "
            f"{num_bytes / 1e6:.1f} MB; most gain, nats a token: {best}"
        )


def current(rows: list[Row]) -> list[Row]:
    """The rows of the last growth, from its own on."""
    starts = [n for n, row in enumerate(rows) if row["row"] == "growth"]
    return rows[starts[-1] :] if starts else []


def begin(
    settings: Frontier, ledger: Ledger, run: Path, newest: Callable[[], tuple[int, int]]
) -> Row:
    """The row of a growth that a kill left unfinished, or of a new one.

    newest: (step, earlier step) of the checkpoints that a new one goes by. Raises ConfigError where
    an unfinished one is of other settings or of another run.
    """
    here = {"settings": settings.digest(), "run": str(run)}
    rows = current(ledger.rows)
    if rows and not any(row["row"] == "weights" for row in rows):
        was = {key: rows[0][key] for key in here}
        if was != here:
            raise ConfigError(
                f"{settings.output / FILE} has a growth that is not finished, of other settings or "
                f"another run ({was['run']}); give that command again, or choose another output"
            )
        return rows[0]
    number = sum(row["row"] == "growth" for row in ledger.rows) + 1
    step, earlier = newest()
    ledger.add({"row": "growth", "growth": number, "step": step, "earlier": earlier, **here})
    return ledger.rows[-1]
