"""Memories by fixed rules: which piece of what is lost each of them takes."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run
from test_thought_tree import make_rollout

from rntp.config import Config
from rntp.evaluation import evaluate
from rntp.evaluation.pieces import (
    RULES,
    bm25,
    bm25_piece,
    by_rule,
    first_tokens,
    last_piece,
    pieces,
    random_piece,
    rule_controls,
)
from rntp.model.tokenizer import decode
from rntp.trainer import Trainer

LOST = torch.tensor([1, 2, 3, 4, 9, 9, 7, 5, 6, 8])
NOTHING = torch.zeros(0, dtype=torch.int64)


def test_pieces_cover_what_is_lost() -> None:
    found = [piece.tolist() for piece in pieces(LOST, 4)]
    assert found == [[1, 2, 3, 4], [3, 4, 9, 9], [9, 9, 7, 5], [7, 5, 6, 8]]
    assert [piece.tolist() for piece in pieces(LOST[:3], 4)] == [[1, 2, 3]]
    assert [len(piece) for piece in pieces(LOST, 1)] == [1] * 10
    # The last ends where it ends.
    assert pieces(LOST[:9], 4)[-1].tolist() == [9, 7, 5, 6]


def test_rules_by_hand() -> None:
    assert first_tokens(LOST, NOTHING, 3, 0.5).tolist() == [1, 2, 3]
    assert last_piece(LOST, NOTHING, 3, 0.5).tolist() == [5, 6, 8]
    assert last_piece(LOST[:2], NOTHING, 3, 0.5).tolist() == [1, 2]
    drawn = [random_piece(LOST, NOTHING, 4, n / 100).tolist() for n in range(100)]
    assert [drawn.count(p.tolist()) for p in pieces(LOST, 4)] == [25] * 4
    assert bm25_piece(LOST, torch.tensor([7, 40]), 4, 0.5).tolist() == [9, 9, 7, 5]
    assert bm25_piece(LOST, torch.tensor([40]), 4, 0.5).tolist() == [1, 2, 3, 4]  # nothing shared
    assert bm25_piece(LOST, NOTHING, 4, 0.5).tolist() == [1, 2, 3, 4]


def test_rare_tokens_weigh_more_and_repeats_less() -> None:
    found = [torch.tensor(ids) for ids in ([1, 1, 1], [1, 2, 3], [1, 4, 5])]
    scores = bm25(found, torch.tensor([1, 2]))
    rare, common = torch.tensor(1 + 2.5 / 1.5).log(), torch.tensor(1 + 0.5 / 3.5).log()
    assert scores[0] == pytest.approx(float(common) * 3 * 2.2 / 4.2)
    assert scores[1] == pytest.approx(float(common + rare))
    assert scores[2] == pytest.approx(float(common))
    assert scores[1] > scores[0] > scores[2]


def test_a_rule_takes_nothing_from_the_window_or_behind_it() -> None:
    rollout = make_rollout(30, (12, 20), [[(2, True), (3, False)]] * 2, seed=5)
    ids = rollout.context.token_ids
    for name, rule in RULES.items():
        (found,) = by_rule(rule, 5, 4, 0, [rollout], None)
        for position, (memory,) in zip(found.positions, found.thoughts, strict=True):
            lost = ids[: position - 5]
            assert any(torch.equal(memory.sampled_ids, lost[i : i + 4]) for i in range(len(lost)))
            assert not memory.closed, name
        again = by_rule(rule, 5, 4, 0, [rollout], None)
        assert [t[0].sampled_ids.tolist() for t in again[0].thoughts] == [
            t[0].sampled_ids.tolist() for t in found.thoughts
        ]


def test_rules_are_controls_of_an_evaluation(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    sets = ["model.dtype=float32", "reading.window=6", f"evaluation.controls=[{', '.join(RULES)}]"]
    trainer = Trainer(Config.parse(raw, sets))
    contexts = trainer.corpus.heldout_contexts(3)
    result = evaluate(trainer.model, contexts, trainer.config)
    found = result["memory"]["controls"]
    assert list(found) == list(RULES)
    assert len({round(row["gain"], 6) for row in found.values()}) == len(RULES)
    assert all(row["num_positions"] == 6 for row in found.values())
    assert rule_controls(Config.parse(raw)) == {}
    assert decode(trainer.model.tokenizer, contexts[0].token_ids[:5])
