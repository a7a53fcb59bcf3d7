"""More thoughts where they differ: rows of a position are one group, drawn apart and compared."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_config import minimal
from test_forward import config_of, distance, model, rollouts, run
from test_objective import case

from rntp.config import Config
from rntp.model import LanguageModel, load_model
from rntp.objective.credit import credit
from rntp.objective.rewards_and_advantages import advantages_over_step
from rntp.placement.learnability import Learnability
from rntp.placement.placer import training_placer
from rntp.placement.records import open_record
from rntp.placement.repeats import (
    group_of_rows,
    members,
    repeated,
    rows_before,
    rows_of_groups,
    spread,
)
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.unshared import UnsharedEngine
from rntp.types import Context, Known, Page, Rollout

_ = (model, rollouts)  # fixtures


def test_rows_go_where_a_mean_is_least_sure() -> None:
    std = torch.tensor([0.0, 3.0, 1.0, 0.0])
    # σ²/(n(n+1)) of the second: 4.5, 1.5, 0.75, 0.45; of the third: 0.5.
    assert repeated((5, 9, 12, 20), std, 0) == (5, 9, 12, 20)
    assert repeated((5, 9, 12, 20), std, 3) == (5, 9, 9, 9, 9, 12, 20)
    assert repeated((5, 9, 12, 20), std, 4) == (5, 9, 9, 9, 9, 12, 12, 20)
    # In the long run in proportion to σ; what has never differed gets next to nothing.
    rows = repeated((1, 2, 3), torch.tensor([2.0, 1.0, 0.0]), 297)
    assert [rows.count(p) for p in (1, 2, 3)] == [199, 100, 1]
    # Nothing differs, or nothing is known: alike.
    assert repeated((1, 2, 3), torch.zeros(3), 6) == (1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert repeated((1, 2, 3), torch.full((3,), 0.7), 3) == (1, 1, 2, 2, 3, 3)


def test_rows_members_and_groups() -> None:
    assert rows_before((4, 4, 7, 9, 9, 9)) == [0, 1, 0, 0, 1, 2]
    # The same place of another context is another group.
    group_P = group_of_rows([(4, 4, 7), (7, 9)])
    assert group_P.tolist() == [0, 0, 1, 2, 3]
    assert [rows.tolist() for rows in rows_of_groups(group_P)] == [[[2], [3], [4]], [[0, 1]]]
    assert members([(4, 4, 7)], 2).tolist() == [[0, 1], [2, 3], [0, 1]]
    reward_PG = torch.tensor([[0.0, 2.0], [4.0, 2.0], [1.0, 1.0], [0.0, 6.0], [2.0, 2.0]])
    expected = torch.stack(
        [torch.tensor([0.0, 2, 4, 2]).std(correction=0), *(torch.tensor([0.0, 3.0, 0.0]))]
    )
    torch.testing.assert_close(spread(reward_PG, group_P), expected)
    assert group_of_rows([]).shape == (0,)


def in_rows(whole: Rollout, times: int) -> Rollout:
    """The same thoughts, each group in so many rows."""
    size = len(whole.thoughts[0]) // times
    return replace(
        whole,
        positions=tuple(p for p in whole.positions for _ in range(times)),
        thoughts=tuple(
            group[n * size : (n + 1) * size] for group in whole.thoughts for n in range(times)
        ),
        entropy=whole.entropy.repeat_interleave(times),
        nll=whole.nll.repeat_interleave(times),
    )


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["objective.advantage={group_mean: {divide_by_std: true}}"],
        ["baseline.use=group_member", "objective.drop_groups_below=0"],
        ["baseline.use=position_weight", "objective.normalize=budget"],
    ],
    ids=str,
)
def test_two_rows_of_two_teach_what_one_of_four_does(
    model: LanguageModel, options: list[str]
) -> None:
    draw = torch.Generator().manual_seed(3)
    contexts = [Context(n, f"d{n}", torch.randint(1, 318, (28,), generator=draw)) for n in range(2)]
    engine = InProcessEngine(model, thoughts=4, budget=5, temperature=1.0, seed=0, slots=32)
    whole = engine.sample(contexts, lambda c, n: (5, 14, 20))
    split = [in_rows(rollout, 2) for rollout in whole]
    config = config_of(*options)
    apart = config_of(*options, "thought.thoughts_per_position=2")
    of_whole, expected, _ = run(model, whole, config)
    of_rows, found, _ = run(model, split, apart)
    assert of_rows == pytest.approx(of_whole, rel=1e-10)
    assert distance(found, expected) < 1e-10
    # Rows that are compared by themselves teach something else.
    rewarded = case(model, split, apart)[2]
    alone = credit(rewarded.driving_PG, rewarded.no_think_logp_PH, apart)[0]
    assert (alone - rewarded.advantage_PG).abs().max() > 0.01


def test_groups_of_unlike_sizes_against_credit_by_hand() -> None:
    reward_PG = torch.tensor([[0.0, 2.0], [4.0, 2.0], [1.0, 1.0], [0.0, 6.0]], dtype=torch.float64)
    none_PH = torch.zeros(4, 3, dtype=torch.float64)
    group_P = torch.tensor([0, 0, 1, 2])
    config = config_of("objective.drop_groups_below=0")
    advantage_PG, counted_P = credit(reward_PG, none_PH, config, group_P=group_P)
    # Leave one out: G/(G−1) times the distance from the group's mean.
    expected = torch.tensor([[-2.0, 0], [2, 0], [0, 0], [-3, 3]], dtype=torch.float64)
    expected[:2] *= 4 / 3
    expected[3] *= 2
    torch.testing.assert_close(advantage_PG, expected)
    assert counted_P.tolist() == [True, True, False, True]
    # A verdict that is missing leaves its group of four, not its row of two.
    missing = torch.zeros(4, 2, dtype=torch.bool)
    missing[0, 0] = True
    there = torch.where(missing, torch.nan, reward_PG)
    advantage_PG, _ = credit(there, none_PH, config_of(), missing_PG=missing, group_P=group_P)
    mean = torch.tensor([2.0, 4, 2]).mean().double()
    torch.testing.assert_close(advantage_PG[0, 1], 1.5 * (2 - mean))
    assert advantage_PG[0, 0] == 0


def test_groups_of_a_step_that_is_put_together(
    model: LanguageModel, rollouts: list[Rollout]
) -> None:
    """Microbatches number their groups from 0 each; over the step no two are one."""
    split = [in_rows(rollout, 3) for rollout in rollouts]
    config = config_of("objective.drop_groups_below=0")
    parts = [case(model, [rollout], config)[2] for rollout in split]
    whole = case(model, split, config)[2]
    again = torch.cat([part.advantage_PG for part in advantages_over_step(parts, config)])
    torch.testing.assert_close(again, whole.advantage_PG)
    assert whole.advantage_PG.abs().max() > 0


def at_twice(context: Context, next_token: object) -> tuple[int, ...]:
    return (5, 5, 12, 20, 20, 20)


def at_once(context: Context, next_token: object) -> tuple[int, ...]:
    return (5, 12, 20)


def drawn(every: list[Rollout]) -> list[dict[int, list[list[int]]]]:
    """For each context the thoughts of every position, in order."""
    found = []
    for rollout in every:
        of: dict[int, list[list[int]]] = {}
        for position, row in zip(rollout.positions, rollout.thoughts, strict=True):
            of.setdefault(position, []).extend(
                [*t.sampled_ids.tolist(), -1, *t.answer_ids.tolist()] for t in row
            )
        found.append(of)
    return found


def test_rows_are_drawn_as_one_larger_group_would_be(model_folders: dict[str, Path]) -> None:
    draw = torch.Generator().manual_seed(4)
    contexts = [Context(n, f"d{n}", torch.randint(1, 318, (28,), generator=draw)) for n in range(2)]
    folder = str(model_folders["llama"])
    shared, plain = load_model(folder), load_model(folder, sharing="none")
    settings = {"budget": 6, "answer_tokens": 3, "temperature": 0.9, "seed": 2}
    found = InProcessEngine(shared, thoughts=2, slots=32, **settings).sample(contexts, at_twice)
    assert [len(row) for rollout in found for row in rollout.thoughts] == [2] * 12
    six = InProcessEngine(shared, thoughts=6, slots=32, **settings).sample(contexts, at_once)
    for rows, group in zip(drawn(found), drawn(six), strict=True):
        assert [len(rows[p]) for p in (5, 12, 20)] == [4, 2, 6]
        assert all(rows[p] == group[p][: len(rows[p])] for p in rows)
    assert drawn(UnsharedEngine(plain, thoughts=2, **settings).sample(contexts, at_twice)) == drawn(
        found
    )


def test_places_and_what_is_remembered_of_them() -> None:
    config = Config.parse(
        minimal(),
        [
            "placement.policy={random: {repeats: 0.5}}",
            "placement.positions_per_doc=6",
            "data.context_tokens=64",
        ],
    )
    assert config.repeated_positions == 3
    assert isinstance(open_record(config), Learnability)
    assert open_record(Config.parse(minimal())) is None
    record = Learnability()
    token = torch.arange(64) % 4  # the token before a position says of which kind it is
    context, entropy = Context(0, "d", token), torch.ones(64)
    place = training_placer(config, record, tokenizer=None)  # type: ignore[arg-type]
    assert len(place(context, Known(entropy, entropy))) == 6
    page = Page(0, 0, None, 64, (33, 33, 34), token[torch.tensor([[32, 31], [32, 31], [33, 32]])],
                torch.ones(3), torch.ones(3))  # fmt: skip
    reward_PG = torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.0, 1.0]])
    record.observe([page], reward_PG, reward_PG)
    std_L = record.of(context, Known(entropy, entropy))
    assert std_L[33] == 1.5  # of all four, though each row earns the same
    assert std_L[34] == 0.0
    positions = place(context, Known(entropy, entropy))
    assert len(positions) == 6
    assert len(set(positions)) == 3
    more = [p for p in positions if positions.count(p) > 1]
    assert more
    assert max(std_L[p] for p in positions) == std_L[more[0]]
