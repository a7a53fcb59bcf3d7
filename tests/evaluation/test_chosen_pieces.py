"""Pieces that the model itself chooses, held to plain forwards over each of them."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.evaluation.chosen_pieces import chosen_piece
from rntp.evaluation.measure import evaluate
from rntp.evaluation.pieces import lost_and_window, pieces
from rntp.model import LanguageModel, load_model
from rntp.types import Rollout

WINDOW, HORIZON, TOKENS = 6, 4, 5


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    return Config.parse(raw, ["model.dtype=float32", f"reading.window={WINDOW}"])


def logp(model: LanguageModel, ids: list[int], last: int) -> float:
    """log p of the last tokens of a sequence, by the plain model."""
    tokens = torch.tensor(ids)
    with torch.no_grad():
        found = torch.log_softmax(model.hf(tokens[None]).logits[0, :-1], -1)
    return float(found.gather(1, tokens[1:, None])[-last:].sum())


def test_what_is_chosen_makes_the_window_or_the_continuation_most_likely(config: Config) -> None:
    model, plain = load_model(config.model.spec), load_model(config.model.spec)
    plain.hf.set_attn_implementation("sdpa")
    pages = open_corpus(config, open_data(config), model.tokenizer).train
    differ = 0
    for n in range(3):
        context, position = pages[n], 34
        nothing = torch.zeros(0)
        rollout = Rollout(context, (position,), ((),), nothing, nothing)
        lost, kept = lost_and_window(rollout, position, WINDOW)
        ids = context.token_ids.tolist()
        assert kept.tolist() == ids[position - WINDOW : position]
        what_follows = ids[position : position + HORIZON]

        def scores(behind: list[int], last: int, lost: torch.Tensor = lost) -> torch.Tensor:
            opened, closed = model.think_open_id, model.think_close_id
            return torch.tensor(
                [
                    logp(plain, [model.start_id, opened, *p.tolist(), closed, *behind], last)
                    for p in pieces(lost, TOKENS)
                ]
            )

        found = pieces(lost, TOKENS)
        by_window = scores(kept.tolist(), WINDOW)
        by_what_follows = scores([*kept.tolist(), *what_follows], HORIZON)
        assert len(found) > 5
        assert by_window.max() - by_window.min() > 1e-3
        likely = chosen_piece(model, rollout, position, "likely_piece", config)
        best = chosen_piece(model, rollout, position, "best_piece", config)
        assert likely.tolist() == found[int(by_window.argmax())].tolist()
        assert best.tolist() == found[int(by_what_follows.argmax())].tolist()
        differ += likely.tolist() != best.tolist()
        # Of two pieces that are tried, the first and the last, the better.
        of_two = chosen_piece(model, rollout, position, "best_piece", config, most=2)
        two = found[0] if by_what_follows[0] > by_what_follows[-1] else found[-1]
        assert of_two.tolist() == two.tolist()
    assert differ


def test_without_a_window_the_last_piece_is_likely(config: Config) -> None:
    none = Config.parse(config.model_dump(mode="json"), ["reading.window=0"])
    model = load_model(none.model.spec)
    context = open_corpus(none, open_data(none), model.tokenizer).train[0]
    rollout = Rollout(context, (30,), ((),), torch.zeros(0), torch.zeros(0))
    found = chosen_piece(model, rollout, 30, "likely_piece", none)
    assert found.tolist() == context.token_ids[30 - TOKENS : 30].tolist()


def test_as_controls_the_best_piece_is_a_bound_of_all_pieces(config: Config) -> None:
    names = ["last_piece", "random_piece", "likely_piece", "best_piece"]
    asked = Config.parse(
        config.model_dump(mode="json"), [f"evaluation.controls=[{', '.join(names)}]"]
    )
    model = load_model(asked.model.spec)
    data = open_data(asked)
    corpus = open_corpus(asked, data, model.tokenizer)
    found = evaluate(model, corpus.heldout_contexts(3), asked)["memory"]["controls"]
    gains = {name: found[name]["gain"] for name in names}
    assert gains["best_piece"] > max(gains[name] for name in names[:3]) + 1e-4
