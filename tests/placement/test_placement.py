"""Placement policies that know more than entropy: labels, or what earlier rewards taught."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_config import minimal
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rntp import placement
from rntp.config import Config
from rntp.errors import ConfigError, DataError
from rntp.model.tokenizer import encode, token_strings
from rntp.placement import Bands, place
from rntp.placement.labels import (
    class_means,
    class_names,
    class_numbers,
    class_sums,
    count_hits,
    hit_rates,
    oracle_gains,
)
from rntp.placement.learnability import DECAY, Learnability
from rntp.placement.picked import picked
from rntp.placement.placer import placer
from rntp.placement.records import open_record
from rntp.placement.selector import Selector, yields
from rntp.placement.sentences import SentenceStarts
from rntp.placement.tiers import shares
from rntp.rng import uniform
from rntp.types import Context, Known, Labels, Oracle, Page, PlacementInputs, Rollout

HELPFUL = 7  # the token after which, in the stream below, thoughts earn unequal rewards


def inputs(length: int = 40, ordinal: int = 0, **more: torch.Tensor) -> PlacementInputs:
    noise = uniform(0, "placement", ordinal, torch.arange(length))
    entropy = uniform(0, "entropy", ordinal, torch.arange(length)).float() * 4
    next_token = Known(entropy, entropy)
    return PlacementInputs(next_token, noise, **{"learned_L": noise.float() * 0, **more})


def positions(policy: str, given: PlacementInputs, count: int, **more: Any) -> tuple[int, ...]:
    where = {"min_prefix": 4, "horizon": 3, **more}
    return place(placement.REGISTRY[policy], replace(given, count=count), **where)


@pytest.mark.parametrize("policy", ["entropy", "random"])
def test_policies_see_the_eligible_positions_and_count_from_the_first(policy: str) -> None:
    for ordinal in range(20):
        given = inputs(ordinal=ordinal)
        score = given.entropy_L if policy == "entropy" else given.noise_L
        eligible = sorted(range(4, 40 - 3 + 1), key=lambda p: -float(score[p]))
        assert positions(policy, given, 5) == tuple(sorted(eligible[:5]))


def test_oracle_takes_helpful_positions_first_and_any_of_them() -> None:
    gain = torch.zeros(40)
    gain[[1, 6, 12, 20, 30, 39]] = torch.tensor([9, 0.1, 5, 0.2, 3, 9])  # 1 and 39: not eligible
    chosen = []
    for ordinal in range(200):
        given = inputs(ordinal=ordinal, oracle_gain_L=gain)
        chosen += positions("oracle", given, 2)
        assert {6, 12, 20, 30} < set(positions("oracle", given, 6))
    counts = [chosen.count(p) for p in (6, 12, 20, 30)]
    assert sum(counts) == len(chosen) == 400
    assert min(counts) > 70  # whatever its gain; 100 each on average
    with pytest.raises(DataError, match="set the policy to random"):
        positions("oracle", inputs(), 2)


def test_by_class_deals_to_every_class_in_turn() -> None:
    kind = torch.full((40,), 0)
    kind[[8, 9, 10]], kind[[20, 21]], kind[30:] = 1, 2, -1
    kind[2] = 3  # not eligible

    def dealt(count: int, ordinal: int) -> list[int]:
        given = inputs(ordinal=ordinal, class_L=kind)
        taken = kind[list(positions("by_class", given, count))].tolist()
        return [taken.count(n) for n in (0, 1, 2, -1)]

    rest = [[0, 0, 0] for _ in range(3)]
    for ordinal in range(150):
        assert dealt(3, ordinal) == [1, 1, 1, 0]
        assert dealt(6, ordinal) == [2, 2, 2, 0]
        assert dealt(8, ordinal) == [3, 3, 2, 0]  # the third class has two
        assert dealt(26, ordinal) == [21, 3, 2, 0]
        assert dealt(30, ordinal) == [21, 3, 2, 4]  # what is of no known class comes last
        for n, extra in enumerate(dealt(1, ordinal)[:3]):
            rest[n][0] += extra
    assert all(30 < counts[0] < 70 for counts in rest)  # no class is dealt to first
    places = {positions("by_class", inputs(ordinal=n, class_L=kind), 3) for n in range(50)}
    assert len(places) > 40
    with pytest.raises(DataError, match="set the policy to random"):
        positions("by_class", inputs(), 2)


def test_learnability_samples_in_proportion_to_the_variance() -> None:
    spreads = torch.tensor([1.0, 2.0, 4.0, 1.0])
    picks = []
    for ordinal in range(2000):
        noise = uniform(0, "placement", ordinal, torch.arange(4))
        given = PlacementInputs(Known(spreads, spreads), noise, learned_L=spreads)
        picks += positions("learnability", given, 1, min_prefix=0, horizon=1)
    floored = spreads.square() + 0.02 * 16
    for index, share in enumerate(floored / floored.sum()):
        assert picks.count(index) / 2000 == pytest.approx(float(share), abs=0.035)
    without = [positions("learnability", inputs(ordinal=n), 1)[0] for n in range(1360)]
    assert all(15 < without.count(p) < 70 for p in range(4, 38))  # uniform: 40 each


def rollout(ids: list[int], at: tuple[int, ...], entropy: list[float]) -> Rollout:
    context = Context(0, "d", torch.tensor(ids))
    return Rollout(context, at, ((),) * len(at), torch.tensor(entropy), torch.zeros(len(at)))


def test_the_record_is_a_running_mean_of_the_groups_spread() -> None:
    record = Learnability()
    entropy = torch.tensor([0.0, 0.2, 1.0, 0.2, 2.0, 9.0])
    context = Context(0, "d", torch.tensor([5, 5, 5, 6, 5, 8]))
    assert (
        record.of(context, Known(entropy, entropy)).tolist() == [1] * 6
    )  # nobody knows better yet
    # Spreads 2 and 1 of one kind (token 5, entropy below 0.5), and 3 of another tier.
    record.observe(
        [
            Page.of(rollout([5, 5, 5], (1,), [0.2])),
            Page.of(rollout([5, 5, 5], (1, 2), [0.3, 1.0])),
        ],
        torch.tensor([[0.0, 4.0], [1.0, 3.0], [0.0, 6.0]]),
        torch.zeros(3, 2),
    )
    running = DECAY * 2 + (1 - DECAY) * 1
    found = record.of(context, Known(entropy, entropy))
    # Token 5 at 0.2; token 5 at 1.0; the others are new: as good as the mean of the known.
    new = (running + 3) / 2
    torch.testing.assert_close(found[1:], torch.tensor([running, 3, running, new, new]))
    again = Learnability()
    again.restore({name: t.clone() for name, t in record.tensors().items()})
    assert torch.equal(again.of(context, Known(entropy, entropy)), found)


@pytest.mark.parametrize(
    ("policy", "low", "high"), [("learnability", 0.7, 1), ("selector", 0.6, 1), ("random", 0, 0.13)]
)
def test_positions_that_teach_are_found(policy: str, low: float, high: float) -> None:
    """Ten tokens at random; only after one of them do thoughts earn unequal rewards."""
    options = ["placement.min_prefix_tokens=4", "data.context_tokens=100"]
    config = Config.parse(minimal(), [*options, f"placement.policy={policy}"])
    record = open_record(config)
    choose = placer(config, policy, "placement", record=record)
    flat = torch.full((100,), 1.0)
    hits, eligible = [], []
    for ordinal in range(60):
        ids = uniform(1, "tokens", ordinal, torch.arange(100)).mul(10).long()
        context = Context(ordinal, "d", ids)
        chosen = choose(context, Known(flat, flat))
        helpful = [int(ids[p - 1]) == HELPFUL for p in chosen]
        rewards = uniform(1, "rewards", ordinal, torch.arange(4)[:, None], torch.arange(8))
        rewards = torch.where(torch.tensor(helpful)[:, None], rewards, 0.5)
        if record:
            found = Rollout(context, chosen, ((),) * 4, flat[:4], flat[:4])
            record.observe([Page.of(found)], rewards, rewards)
        if ordinal >= 20:  # the first steps look at each of the ten once
            hits += helpful
            eligible += (ids[3 : 100 - config.reward.horizon] == HELPFUL).tolist()
    base_rate = sum(eligible) / len(eligible)
    assert base_rate == pytest.approx(0.1, abs=0.02)
    precision = sum(hits) / len(hits)
    assert low <= precision <= high, precision


def test_surprise_takes_the_true_tokens_that_were_least_expected() -> None:
    given = replace(inputs(), next_token=Known(torch.zeros(40), torch.arange(40.0)))
    assert positions("surprise", given, 3) == (35, 36, 37)


def test_even_positions_lie_a_constant_distance_apart_and_start_anywhere() -> None:
    starts = set()
    for ordinal in range(60):
        chosen = positions("even", inputs(64, ordinal), 6, min_prefix=2, horizon=3)  # 60 eligible
        assert {b - a for a, b in itertools.pairwise(chosen)} == {10}
        starts.add(chosen[0])
    assert starts == set(range(2, 12))
    assert len(positions("even", inputs(), 34)) == 34  # every eligible one


def test_bands_come_first_and_others_fill_up() -> None:
    entropy = torch.tensor([0.0, 0, 0, 0, 3, 1, 2, 5, 1, 2])
    nll = torch.tensor([0.0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    noise = torch.arange(10, dtype=torch.float64) / 10
    given = PlacementInputs(Known(entropy, nll), noise, learned_L=torch.zeros(10))

    def chosen(count: int, bands: Bands) -> tuple[int, ...]:
        return positions("random", replace(given, count=count), count, horizon=1, bands=bands)

    assert chosen(2, Bands()) == (8, 9)
    assert chosen(2, Bands(entropy=(2.0, 4.0))) == (6, 9)
    assert chosen(2, Bands(entropy=(2.0, 4.0), surprise=(0.1, 9.0))) == (4, 9)
    assert chosen(4, Bands(entropy=(2.0, 4.0))) == (4, 6, 8, 9)  # 8: the best of the others
    low = Bands(entropy=(0.0, 0.5))  # nobody: as without
    assert chosen(2, low) == (8, 9)


def test_tiers_move_from_easy_to_hard_and_leave_the_certain_alone() -> None:
    assert shares(0.0) == shares(0.3) == pytest.approx((0.6, 0.3, 0.1))
    assert shares(0.5) == pytest.approx((0.35, 0.3, 0.35))
    assert shares(0.7) == shares(1.0) == pytest.approx((0.1, 0.3, 0.6))
    # Twenty certain positions, fifteen easy, ten medium, five hard.
    entropy = torch.tensor([0.1] * 20 + [0.7] * 15 + [1.2] * 10 + [2.0] * 5)

    def count(progress: float) -> list[int]:
        picks = []
        for ordinal in range(1000):
            noise = uniform(0, "placement", ordinal, torch.arange(50))
            given = PlacementInputs(
                Known(entropy, entropy), noise, noise.float() * 0, ramp=progress
            )
            picks += positions("tiers", given, 1, min_prefix=0, horizon=1)
        tiers = torch.bucketize(entropy[picks], torch.tensor([0.5, 1.0, 1.5]))
        return tiers.bincount(minlength=4).tolist()

    for progress in (0.0, 0.5, 1.0):
        found = count(progress)
        assert found[0] == 0
        assert [n / 1000 for n in found[1:]] == pytest.approx(list(shares(progress)), abs=0.05)


def test_the_run_goes_from_easy_to_hard_by_ordinal() -> None:
    options = ["placement.ramp_steps=10", "data.docs_per_step=2", "placement.policy=tiers"]
    options += ["placement.positions_per_doc=1", "data.context_tokens=100"]
    config = Config.parse(minimal(), options)
    choose = placer(config, "tiers", "placement")
    entropy = torch.tensor([0.7, 2.0]).repeat(50)
    next_token = Known(entropy, entropy)
    hard = [
        float(entropy[choose(Context(n, "d", torch.zeros(100, dtype=torch.long)), next_token)])
        > 1.5
        for n in range(20)
    ]
    assert sum(hard[:6]) < sum(hard[-6:])


def test_a_policy_that_follows_the_run_needs_a_length_of_its_own() -> None:
    config = Config.parse(minimal(), ["placement.policy=tiers"])
    choose, flat = placer(config, "tiers", "placement"), torch.ones(100)
    with pytest.raises(ConfigError, match=r"tiers: \{ramp_steps: N\}"):
        choose(Context(0, "d", torch.zeros(100, dtype=torch.long)), Known(flat, flat))


def test_yield_is_what_pretrain_zero_pays_and_zero_where_nobody_wins() -> None:
    gains = torch.tensor(
        [[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [-5, -1, -2, 0], [2, -9, 0, 0]]
    )
    assert yields(gains).tolist() == [0.75, 0.25, 0, 0, 0, 1.5]


def test_the_selector_learns_the_yield_of_a_kind_of_position() -> None:
    record = Selector()
    context = Context(0, "d", torch.tensor([4, 5, 9, 6, 9]))
    flat = torch.full((5,), 1.0)
    assert record.of(context, Known(flat, flat)).tolist() == pytest.approx([1.0] * 5)  # optimistic
    at = (2, 4)
    seen = Rollout(context, at, ((),) * 2, flat[:2], flat[:2])
    gains = torch.tensor([[4.0, 0, 0, 0], [0.0, 0, 0, 0]])  # yields 3 and 0
    for _ in range(300):
        record.observe([Page.of(seen)], gains * 100, gains)  # not of the reward
    found = record.of(context, Known(flat, flat))
    assert found[[2, 4]].tolist() == pytest.approx([3, 0], abs=0.05)
    again = Selector()
    again.restore({name: t.clone() for name, t in record.tensors().items()})
    assert torch.equal(again.of(context, Known(flat, flat)), found)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token a word, punctuation mark or line break; a space belongs to the token after it."""
    text = 'One day. Then 3.5 more\nEnd ! Yes." So it is 3 .5'
    pieces = re.findall(r"\n| ?\w+| ?[^\w\s]\"?", text)
    backend = Tokenizer(models.WordLevel({p: i for i, p in enumerate(dict.fromkeys(pieces))}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?\w+| ?[^\w\s]\"?"), "isolated")
    backend.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = encode(fast, text)
    assert token_strings(fast, ids) == pieces
    fast.text = text
    return fast


def test_sentences_begin_after_a_stop_and_a_space_or_a_line_break(
    words: PreTrainedTokenizerFast,
) -> None:
    ids = encode(words, words.text)
    starts = SentenceStarts(words).of(ids)
    pieces = token_strings(words, ids)
    assert [pieces[i] for i in starts.nonzero().flatten()] == [" Then", "End", " Yes", " So"]
    config = Config.parse(
        minimal(), ["placement.min_prefix_tokens=2", "placement.positions_per_doc=2"]
    )
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"horizon": 1})})
    choose = placer(config, "sentence_starts", "placement", tokenizer=words)
    flat = torch.zeros(len(ids))
    for ordinal in range(20):
        chosen = choose(Context(ordinal, "d", ids), Known(flat, flat))
        assert all(starts[list(chosen)])


def test_what_was_picked() -> None:
    context = Context(0, "d", torch.arange(10))
    entropy, nll = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])
    page = Page.of(Rollout(context, (2, 6), ((),) * 2, entropy, nll))
    found = picked([page], Bands(surprise=(0.1, 9)))
    expected = {"entropy": 1.5, "nll": 1.5, "hard_frac": 0.5, "in_band_frac": 0.5, "depth": 0.4}
    assert found == {f"placement/{k}": pytest.approx(v) for k, v in expected.items()}
    assert picked([], Bands()) == {}


LABELS = Labels(
    "  ee2e3xe",
    {"e": "easy", "2": "to think, 2 hops", "3": "to think, 3 hops", "x": "lost"},
    {4: Oracle("a", 1.5), 6: Oracle("b", 0.5), 8: Oracle("c", 0.0)},
)


def labelled(at: tuple[int, ...], labels: Labels | None = LABELS) -> Rollout:
    context = Context(0, "d", torch.arange(9), labels=labels)
    return Rollout(context, at, ((),) * len(at), torch.zeros(len(at)), torch.zeros(len(at)))


def test_labels_by_token() -> None:
    think, easy, lost = "to think", "easy", "lost"
    names = ["", "", easy, easy, think, easy, think, lost, easy]
    assert class_names(LABELS) == names
    assert class_numbers(LABELS).tolist() == [-1, -1, 0, 0, 2, 0, 2, 1, 0]
    assert oracle_gains(LABELS).tolist() == [0, 0, 0, 0, 1.5, 0, 0.5, 0, 0]


def test_precision_and_recall() -> None:
    def measure(rollouts: list[Rollout], **bounds: int) -> dict[str, float]:
        return hit_rates(count_hits(rollouts, **bounds))

    bounds = {"min_prefix": 2, "horizon": 2}
    # Of two helpful positions a context, one is picked in the first and none in the second.
    found = measure([labelled((4, 5)), labelled((3,)), labelled((3,), None)], **bounds)
    assert found == {"placement/precision": 1 / 3, "placement/recall": 1 / 4}
    # With horizon 4 the last position is 5: one helpful one is left.
    found = measure([labelled((4, 5))], min_prefix=2, horizon=4)
    assert found == {"placement/precision": 1 / 2, "placement/recall": 1}
    nothing = Labels("e" * 9, {"e": "easy"})
    assert measure([labelled((4,), None), labelled((4,), nothing)], **bounds) == {}
    # A page of the same step without such a position counts: its picks are misses.
    found = measure([labelled((4, 6)), labelled((4, 5), nothing)], **bounds)
    assert found == {"placement/precision": 1 / 2, "placement/recall": 1}


def test_gain_by_class() -> None:
    gain = torch.tensor(
        [
            [[1.0, 2.0], [3.0, 4.0]],  # tokens 4 (to think) and 5 (easy), two thoughts
            [[-1.0, 5.0], [0.0, 5.0]],  # tokens 6 (to think) and 7 (lost)
            [[9.0, 9.0], [9.0, 9.0]],  # no labels
            [[0.5, 0.5], [0.5, 0.5]],  # tokens 1 (unknown) and 2 (easy)
        ]
    )
    rollouts = [labelled((4, 6)), labelled((4,), None), labelled((1,))]
    # Of shares as of the whole.
    parts = [class_sums(rollouts[:2], gain[:3]), class_sums(rollouts[2:], gain[3:])]
    assert (
        class_means(parts)
        == class_means([class_sums(rollouts, gain)])
        == {
            "class/easy/gain": (3 + 0.5) / 2,
            "class/lost/gain": 5,
            "class/to_think/gain": (2 - 0.5) / 2,
        }
    )
    assert class_means([class_sums([labelled((4,), None)], gain[2:3])]) == {}
