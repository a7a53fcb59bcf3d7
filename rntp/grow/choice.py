"""From which region the next page is taken: Thompson sampling over what thinking gains there.

What a policy gradient can learn from is that thoughts of one group differ in reward (`spread`): the
improvement of a small step is the reward's variance within groups. But noise spreads rewards as
well: a thought moves the prediction of a token that nothing tells, up or down, and no thought is
right. What tells the two apart is the mean: over noise a thought costs on average, since it can
only lead away from the best prediction. And where all thoughts are right already, they gain and do
not differ. And where a thought helps because something is said at all, whatever it is, the thought
of another place helps as much: what that gives (`elsewhere`) is no gain of thinking. So a region
is worth

    its share of pages that become documents × (the lesser of gain and spread + change)

where a draw of its mean gain, less what is above 0 of the gain elsewhere, is above 0; of the change
what is above 0, and not more than that gain; and otherwise the draw itself, which is worse than
any such. The draw is from the normal posterior of the region's mean
gain, behind a prior of one page with the mean of the region that first linked there: what hangs on
a trap is taken for one. Pages of earlier growths count half for each growth since, for the model
has changed.

Some pages are drawn evenly, so that none starves. But within a growth the model stays as it is:
where its pages leave no doubt that thinking costs, another page can tell nothing new, and these
draws pass the region over until the next growth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from rntp.grow.frontier import Region
from rntp.rng import one

DISCOUNT = 0.5
_SD, _SPREAD = 0.3, 0.1  # nats a token, of a page's gain and spread, before pages have shown theirs
_LEAST_SD = 0.02
_SURE_PAGES, _SURE_SDS = 3, 3.0  # from when on a region's pages leave no doubt
_LEAST_PAGES = 8
_PURPOSE = "grow"


@dataclass(frozen=True, slots=True)
class Belief:
    """What is thought of a region: means and the standard deviations of these means, nats a token;
    yields: share of its pages that become documents. costs: whether this growth's pages leave no
    doubt that thinking costs there."""

    gain: float
    gain_sd: float
    spread: float
    spread_sd: float
    change: float
    elsewhere: float
    yields: float
    costs: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A region, why it was chosen ("promise" or "random"), and its drawn value, nats a token."""

    region: str
    why: str
    value: float


def beliefs(regions: Sequence[Region], growth: int) -> dict[str, Belief]:
    """Of all regions, in the order of appearance. growth: the number of the one that asks."""
    gain_sd = _pooled_sd([[w.gain for w in r.worths] for r in regions], _SD)
    spread_sd = _pooled_sd([[w.spread for w in r.worths] for r in regions], _SD)
    spreads = [w.spread for r in regions for w in r.worths]
    usual = math.fsum(spreads) / len(spreads) if spreads else _SPREAD
    found: dict[str, Belief] = {}
    for region in regions:
        weights = [DISCOUNT ** (growth - w.growth) for w in region.worths]
        pages = 1 + math.fsum(weights)
        before = found[region.parent].gain if region.parent in found else 0.0

        def mean(values: list[float], prior: float, w: list[float] = weights) -> float:
            products = (a * b for a, b in zip(w, values, strict=True))
            return (prior + math.fsum(products)) / (1 + math.fsum(w))

        found[region.name] = Belief(
            gain=mean([w.gain for w in region.worths], before),
            gain_sd=gain_sd / math.sqrt(pages),
            spread=mean([w.spread for w in region.worths], usual),
            spread_sd=spread_sd / math.sqrt(pages),
            change=mean([w.change for w in region.worths], 0.0),
            elsewhere=mean([w.elsewhere for w in region.worths], 0.0),
            yields=(1 + region.kept) / (1 + region.judged),
            costs=_costs([w.gain for w in region.worths if w.growth == growth], gain_sd),
        )
    return found


def choose(
    regions: Sequence[Region],
    known: dict[str, Belief],
    *,
    seed: int,
    number: int,
    random_share: float,
) -> Choice:
    """Choose among the open regions for page `number`; a function of its arguments.

    known: see `beliefs`. random_share: of the pages, drawn evenly among regions where thinking does
    not surely cost; at 1 among all, whatever is known. Raises ValueError without a region.
    """
    if not regions:
        raise ValueError("no region is open")
    at_random, which = (_draw(seed, number, place) for place in (0, 1))
    values = [_value(known[r.name], seed, number, r.index) for r in regions]
    if at_random < random_share:
        may_tell = [n for n, r in enumerate(regions) if not known[r.name].costs]
        among = may_tell if may_tell and random_share < 1 else range(len(regions))
        picked = among[int(which * len(among))]
        return Choice(regions[picked].name, "random", values[picked])
    best = max(range(len(regions)), key=values.__getitem__)
    return Choice(regions[best].name, "promise", values[best])


def _costs(gains: list[float], sd: float) -> bool:
    """sd: of a page's gain."""
    if len(gains) < _SURE_PAGES:
        return False
    return math.fsum(gains) / len(gains) + _SURE_SDS * sd / math.sqrt(len(gains)) < 0


def _value(belief: Belief, seed: int, number: int, index: int) -> float:
    gain, spread = (_normal(seed, number, 2 + 2 * index + k) for k in (0, 1))
    drawn = belief.gain + belief.gain_sd * gain
    width = max(belief.spread + belief.spread_sd * spread, 0.0)
    return worth_of(drawn, width, belief.change, belief.elsewhere, belief.yields)


def worth_of(
    gain: float, spread: float, change: float, elsewhere: float, yields: float = 1.0
) -> float:
    """What a page of a region teaches, nats a token; below 0 where thinking costs. See above."""
    own = gain - max(elsewhere, 0.0)
    if own <= 0:
        return own
    return yields * (min(own, spread) + min(max(change, 0.0), own))


def _normal(seed: int, number: int, place: int) -> float:
    return NormalDist().inv_cdf(min(max(_draw(seed, number, place), 1e-12), 1 - 1e-12))


def _draw(seed: int, number: int, place: int) -> float:
    return one(seed, _PURPOSE, number << 20 | place)


def _pooled_sd(groups: Sequence[Sequence[float]], before: float) -> float:
    """Standard deviation within groups, `before` where there is too little to tell it."""
    squares, freedom = list[float](), 0
    for group in groups:
        if len(group) > 1:
            mean = math.fsum(group) / len(group)
            squares += [(value - mean) ** 2 for value in group]
            freedom += len(group) - 1
    if freedom < _LEAST_PAGES:
        return before
    return max(math.sqrt(math.fsum(squares) / freedom), _LEAST_SD)
