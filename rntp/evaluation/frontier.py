"""What rules of where to think make of whole pages: bits a byte against tokens thought.

Pure functions of `rntp.evaluation.everywhere`. A rule scores positions; a page is read from start
to end, and a thought comes where the score is above a bound and the last one is a horizon away, so
that every token is read behind one thought at most.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rntp.evaluation.everywhere import Everywhere, Lengths, Made
from rntp.evaluation.resampling import interval
from rntp.evaluation.seen import SeenPage
from rntp.gate.gate import best_length
from rntp.gate.ranking import auc

Score = Callable[[Everywhere], Tensor]
SHARES = (0.5, 0.25, 0.1, 0.05, 0.02)  # of the positions that lie above a rule's bound
DECILES = 10
MUCH = 0.05  # nats a token: a thought that says nothing moves tokens by less, up or down
NATS = log(2)


def chosen(page: Everywhere, wanted_P: Tensor) -> Tensor:
    """Go through a page: bool [P], the positions thought at. wanted_P: bool, of the rule."""
    horizon, last = page.gain_PH.shape[1], -(10**9)
    taken = torch.zeros(len(page.positions), dtype=torch.bool)
    for number, position in enumerate(page.positions.tolist()):
        if wanted_P[number] and position - last >= horizon:
            taken[number], last = True, position
    return taken


def saved(page: Everywhere, wanted_P: Tensor) -> tuple[float, float, float]:
    """Nats that a rule saves on a page, tokens that it thinks, and tokens that it computes."""
    taken = chosen(page, wanted_P)
    return (
        float(page.gain_PH[taken].sum()),
        float(page.drawn_P[taken].sum()),
        float(page.computed_P[taken].sum()),
    )


def frontier(
    pages: Sequence[Everywhere], seed: int, gate_bounds: Sequence[float] = (0.0,)
) -> dict[str, Any]:
    """Tabulate all rules over their bounds.

    gate_bounds: nats a token, beside those that shares of the positions lie above. rows: rule,
    bound (in its own unit), thoughts and thought tokens a page token, tokens computed a page token,
    bits a byte and bits a byte saved, with 95 % interval over pages; on made pages what each class
    gains. gate: AUC for "thinking helps here", and by `MUCH` and more, and expected against
    measured gain by decile, nats a token, over all positions; on made pages also AUC for "the
    corpus knows a thought here". None without a gate.
    """
    rows = [_row("never", None, pages, [torch.zeros_like(p.entropy_P).bool() for p in pages], seed)]
    rows += _every(pages, seed)
    if any(page.none_P.any() for page in pages):
        rows.append(_policy_itself(pages, seed))
    rows += _sweep("entropy", pages, lambda page: page.entropy_P, seed)
    if all(page.expected_P is not None for page in pages):
        rows += _sweep("gate", pages, _expected_now, seed, also=gate_bounds)
    if all(page.lengths is not None for page in pages):
        rows += _as_long_as_pays(pages, seed)
    rows.append(_row("in hindsight", 0.0, pages, [_worth(p) > 0 for p in pages], seed))
    if all(page.made is not None for page in pages):
        places = [_made(p).gain_P > 0 for p in pages]
        rows.append(_row("where the corpus knows one", None, pages, places, seed))
        rows.append(_row("perfect ones there", None, [_perfect(p) for p in pages], places, seed))
    return {
        "num_docs": len(pages),
        "num_tokens": sum(len(page.nll_L) - 1 for page in pages),
        "positions": sum(len(page.positions) for page in pages),
        "horizon": pages[0].gain_PH.shape[1],
        "rows": rows,
        "gate": _calibration(pages),
    }


def gate_places(page: Everywhere, bound: float) -> list[int]:
    """Where the gate thinks on a page, positions of the page, ascending. bound: nats a token."""
    return page.positions[chosen(page, _expected_now(page) > bound)].tolist()


def seen_row(
    pages: Sequence[Everywhere], seen: Sequence[SeenPage], bound: float, seed: int
) -> dict[str, Any]:
    """The row of the gate's thoughts where all of a page sees them; see `frontier`."""
    gain_L = [page.nll_L - own.nll_L for page, own in zip(pages, seen, strict=True)]
    spent = [(float(g.sum()), own.drawn, own.inserted) for g, own in zip(gain_L, seen, strict=True)]
    facts = _facts(pages, np.array(spent, dtype=float), sum(own.thoughts for own in seen), seed)
    classes = None
    if all(page.made is not None for page in pages):
        firsts = [int(page.positions[0]) for page in pages]
        classes = _of_classes(pages, [(g[f:], f) for g, f in zip(gain_L, firsts, strict=True)])
    return {"rule": "gate, thoughts seen", "bound": bound, **facts, "by_class": classes}


def _expected(page: Everywhere) -> Tensor:
    assert page.expected_P is not None
    return page.expected_P


def _expected_now(page: Everywhere) -> Tensor:
    """−inf where the gate had rather think later."""
    expected = _expected(page)
    return expected if page.waits_P is None else expected.masked_fill(page.waits_P, -torch.inf)


def _made(page: Everywhere) -> Made:
    assert page.made is not None
    return page.made


def _perfect(page: Everywhere) -> Everywhere:
    """The page with perfect thoughts, each of which gains what the corpus knows of its token."""
    made = _made(page)
    gain_PH = torch.zeros_like(page.gain_PH)
    gain_PH[:, 0] = made.gain_P
    computed_P = page.computed_P - page.drawn_P + made.tokens_P
    return replace(page, gain_PH=gain_PH, drawn_P=made.tokens_P, computed_P=computed_P)


def _worth(page: Everywhere) -> Tensor:
    return page.gain_PH.sum(dim=1)


def _every(pages: Sequence[Everywhere], seed: int) -> list[dict[str, Any]]:
    """Think at every so many positions, whatever they are."""
    rows = []
    for step in (1, 2, 4, 8, 16):
        wanted = [torch.arange(len(page.positions)) % step == 0 for page in pages]
        stride = int(pages[0].positions[1] - pages[0].positions[0]) if len(wanted[0]) > 1 else 1
        rows.append(_row("every so many tokens", step * stride, pages, wanted, seed))
    return rows


def _policy_itself(pages: Sequence[Everywhere], seed: int) -> dict[str, Any]:
    """Begin a thought wherever one may come, and read on without it where it is closed at once.

    That much costs the two markers there, of which the second is a token that is thought.
    """
    wanted, paid = [~page.none_P for page in pages], []
    for page, own in zip(pages, wanted, strict=True):
        begun = ~own & ~_behind(chosen(page, own), page)
        paid.append((float(begun.sum()), 2 * float(begun.sum())))
    return _row("the policy itself", None, pages, wanted, seed, paid)


def _behind(taken_P: Tensor, page: Everywhere) -> Tensor:
    """bool [P]: places that are read behind a thought of an earlier one."""
    away = page.positions[:, None] - page.positions[taken_P][None]
    return ((away > 0) & (away < page.gain_PH.shape[1])).any(dim=1)


def _sweep(
    name: str,
    pages: Sequence[Everywhere],
    score: Score,
    seed: int,
    also: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Think where a score is above a bound, for bounds that shares of the positions lie above, and
    others."""
    scores = torch.cat([score(page) for page in pages])
    bounds = [float(scores.quantile(1 - share, interpolation="lower")) for share in SHARES]
    bounds = [bound for bound in bounds if bound > -torch.inf]
    bounds += list(dict.fromkeys(also))
    return [
        _row(name, bound, pages, [score(page) > bound for page in pages], seed) for bound in bounds
    ]


def _as_long_as_pays(pages: Sequence[Everywhere], seed: int) -> list[dict[str, Any]]:
    """Think where the gate expects more than a price, and as long as pays best at it. Prices: nats
    a thought token, those that shares of the positions are worth at their best, and 0."""
    best = torch.cat([_lengths(p).worth_PB / _lengths(p).tokens_B for p in pages]).amax(dim=1)
    prices = [max(float(best.quantile(1 - share)), 0.0) for share in SHARES]
    rows = []
    for price in dict.fromkeys([*prices, 0.0]):
        paid = [_at_price(page, price) for page in pages]
        wanted = [own for _, own in paid]
        rows.append(_row("gate, as long as pays", price, [page for page, _ in paid], wanted, seed))
    return rows


def _at_price(page: Everywhere, price: float) -> tuple[Everywhere, Tensor]:
    """The page with thoughts as long as pays best at a price, and where any does, bool [P]."""
    known = _lengths(page)
    choice_P = best_length(known.worth_PB, known.tokens_B, price)
    length_P, row_P = (choice_P - 1).clamp_min(0), torch.arange(len(choice_P))
    return replace(
        page,
        gain_PH=known.gain_BPH[length_P, row_P],
        drawn_P=known.drawn_BP[length_P, row_P],
        computed_P=known.computed_BP[length_P, row_P],
    ), choice_P > 0


def _lengths(page: Everywhere) -> Lengths:
    assert page.lengths is not None
    return page.lengths


def _row(
    rule: str,
    bound: float | None,
    pages: Sequence[Everywhere],
    wanted: Sequence[Tensor],
    seed: int,
    paid: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """paid: tokens thought and computed of each page, beside those of what is taken."""
    found = np.array([saved(page, own) for page, own in zip(pages, wanted, strict=True)])
    if paid:
        found[:, 1:] += np.array(paid)
    thoughts = sum(int(chosen(p, own).sum()) for p, own in zip(pages, wanted, strict=True))
    facts = _facts(pages, found, thoughts, seed)
    return {"rule": rule, "bound": bound, **facts, "by_class": _by_class(pages, wanted)}


def _facts(
    pages: Sequence[Everywhere], found: np.ndarray, thoughts: int, seed: int
) -> dict[str, Any]:
    """found: nats saved on each page, tokens thought and tokens computed besides the page's."""
    bits = np.array([float(page.nll_L.sum()) for page in pages]) / NATS
    sizes = np.array([page.num_bytes for page in pages], dtype=float)
    tokens = sum(len(page.nll_L) - 1 for page in pages)
    gained = found[:, 0] / NATS
    return {
        "thoughts_per_token": thoughts / tokens,
        "thought_tokens_per_token": float(found[:, 1].sum()) / tokens,
        "computed_per_token": 1 + float(found[:, 2].sum()) / tokens,
        "bits_per_byte": float((bits - gained).sum() / sizes.sum()),
        "saved": float(gained.sum() / sizes.sum()),
        "saved_ci95": interval(gained, np.arange(len(pages)), seed, sizes=sizes),
    }


def _by_class(
    pages: Sequence[Everywhere], wanted: Sequence[Tensor]
) -> dict[str, dict[str, float]] | None:
    """Tokens of each class behind the first position, and what they gain on average, nats, those
    that nothing was thought before included; None of pages that were not made."""
    if any(page.made is None for page in pages):
        return None
    gains = []
    for page, own in zip(pages, wanted, strict=True):
        first = int(page.positions[0])
        gain_L = page.gain_PH.new_zeros(len(page.nll_L) - first)
        for number in chosen(page, own).nonzero()[:, 0].tolist():
            at = int(page.positions[number]) - first
            gain_L[at : at + page.gain_PH.shape[1]] += page.gain_PH[number]
        gains.append((gain_L, first))
    return _of_classes(pages, gains)


def _of_classes(
    pages: Sequence[Everywhere], gains: Sequence[tuple[Tensor, int]]
) -> dict[str, dict[str, float]]:
    """Mean gain of each class' tokens. gains: of a page's tokens from one on, and which one."""
    tokens, gained = Counter[str](), Counter[str]()
    for page, (gain_L, first) in zip(pages, gains, strict=True):
        names = _made(page).class_L[first:]
        tokens.update(names)
        for name, gain in zip(names, gain_L.tolist(), strict=True):
            gained[name] += gain
    return {
        name: {"tokens": count, "gain": gained[name] / count}
        for name, count in sorted(tokens.items())
        if name
    }


def _calibration(pages: Sequence[Everywhere]) -> dict[str, Any] | None:
    """How good the gate is over all positions."""
    if any(page.expected_P is None for page in pages):
        return None
    expected = torch.cat([_expected(page) for page in pages])
    gain = torch.cat([page.gain_PH.mean(dim=1) for page in pages])
    parts = expected.argsort(stable=True).tensor_split(DECILES)
    return {
        "auc": auc(expected, gain > 0),
        "auc_much": auc(expected, gain > MUCH),
        "auc_known": None
        if any(page.made is None for page in pages)
        else auc(expected, torch.cat([_made(page).gain_P for page in pages]) > 0),
        "deciles": [
            {"expected": float(expected[part].mean()), "measured": float(gain[part].mean())}
            for part in parts
            if len(part)
        ],
    }
