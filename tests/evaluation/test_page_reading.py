"""Whole pages read piece by piece with a memory: each arm by hand, its cost, and the command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compute_norms_in_float64, tiny_run

from rntp import cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.page_reading import ARMS, PageReading, Piece, Spent, read_pages
from rntp.evaluation.page_table import page_table
from rntp.evaluation.target import evaluate_pages
from rntp.model import LanguageModel, load_model
from rntp.rollout.carried import written_by_nobody
from rntp.types import Context

PIECE, WINDOW, BUDGET, START = 7, 3, 5, 0


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    loaded = load_model(str(model_folders["llama"]), dtype=torch.float64)
    compute_norms_in_float64(loaded.hf)
    return loaded


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    sets = [f"reading.window={WINDOW}", f"reading.piece={PIECE}", "model.dtype=float64"]
    return Config.parse(raw, sets)


def page_of(ordinal: int, length: int) -> Context:
    generator = torch.Generator().manual_seed(ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 300, (length,), generator=generator))


def plainly(model: LanguageModel, before: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Loss of each token behind the others, from ids alone."""
    whole = torch.cat([before, tokens])
    logp = model.hf(whole[None]).logits[0, :-1].log_softmax(-1)
    return -logp.gather(1, whole[1:, None])[-len(tokens) :, 0].detach()


def test_each_arm_reads_what_it_may_and_nothing_else(model: LanguageModel, config: Config) -> None:
    pages = [page_of(0, 30), page_of(1, 14), page_of(2, 22)]
    found, spent = read_pages(model, pages, config)
    start = torch.tensor([START])
    model.hf.set_attn_implementation("sdpa")
    changed = 0.0
    for page, reading in zip(pages, found, strict=True):
        ids, window, memory = page.token_ids, [], []
        firsts = range(PIECE, len(ids), PIECE)
        assert len(reading.memories) == len(firsts) + 1
        assert reading.memories[0].content.tolist() == []
        assert reading.written == [True] * len(firsts)
        for first, written in zip(firsts, reading.memories[1:], strict=True):
            piece, behind = ids[first : first + PIECE], ids[first - WINDOW : first]
            window.append(plainly(model, torch.cat([start, behind]), piece))
            said = torch.tensor(
                [START, model.think_open_id, *written.content.tolist(), model.think_close_id]
            )
            memory.append(plainly(model, torch.cat([said, behind]), piece))
        everything = plainly(model, ids[:PIECE], ids[PIECE:])
        for arm, wanted in zip(ARMS, (window, memory, [everything]), strict=True):
            torch.testing.assert_close(
                reading.nll[arm].double(), torch.cat(wanted), rtol=0, atol=1e-6
            )
        changed += float((reading.nll["memory"] - reading.nll["window"]).abs().sum())
    model.hf.set_attn_implementation("rntp")
    assert changed > 1e-3
    # Pages of 5, 2 and 4 pieces, of which the last are shorter.
    assert spent["everything"].computed == 29 + 13 + 21
    pieces = (6 + 3 * 10 + 5) + (6 + 10) + (6 + 2 * 10 + 4)
    assert spent["window"].computed == pieces
    assert spent["window"].held == 1 + WINDOW + PIECE - 1


def test_what_is_held_does_not_grow_with_the_page(model: LanguageModel, config: Config) -> None:
    most = []
    for length in (30, 90):
        _, spent = read_pages(model, [page_of(n, length) for n in range(3)], config)
        most.append({arm: spent[arm].held for arm in ARMS})
    assert most[0]["everything"] == 29
    assert most[1]["everything"] == 89
    assert most[0]["window"] == most[1]["window"]
    writing = 1 + BUDGET + 2 + PIECE + BUDGET
    assert most[1]["memory"] <= max(writing, 1 + BUDGET + 2 + WINDOW + PIECE - 1)


def test_one_piece_is_read_in_sight_of_the_memory_before_it(
    model: LanguageModel, config: Config
) -> None:
    """Text that a chain has left reaches a memory through the memory before, or not at all."""
    page = page_of(0, 30)
    other = replace(page, token_ids=torch.cat([page_of(9, 7).token_ids, page.token_ids[7:]]))
    asked: list[Piece] = []

    def second(piece: Piece) -> bool:
        asked.append(piece)
        return piece.first == PIECE  # once, at the end of the second piece

    one, two = (read_pages(model, [p], config, rewrites=second)[0][0] for p in (page, other))
    assert one.written == two.written == [False, True, False, False]
    assert [p.first for p in asked[:4]] == [0, PIECE, 2 * PIECE, 3 * PIECE]
    assert one.memories[1].content.tolist() == []  # the one before goes on
    assert one.memories[2].content.tolist() == one.memories[3].content.tolist() != []
    # The first piece was forgotten, so that the other text changes nothing behind it but …
    for a, b in zip(one.memories[1:], two.memories[1:], strict=True):
        assert torch.equal(a.content, b.content)
    assert torch.equal(one.nll["memory"][PIECE:], two.nll["memory"][PIECE:])
    assert not torch.equal(one.nll["memory"][:PIECE], two.nll["memory"][:PIECE])  # … its window
    # What is asked knows what the model expected of the piece.
    torch.testing.assert_close(asked[1].nll_W, one.nll["memory"][:PIECE])
    never = read_pages(model, [page], config, rewrites=lambda piece: False)
    assert never[1]["memory"].computed < never[1]["everything"].computed + 4 * (WINDOW + 3)


def reading(page: Context, **nll: list[float]) -> PageReading:
    nothing = written_by_nobody(torch.zeros(0, dtype=torch.int64))
    links = len(nll["memory"]) // 2
    return PageReading(
        page,
        {arm: torch.tensor(values) for arm, values in nll.items()},
        [nothing] * (links + 1),
        [True] * links,
    )


def test_the_table_by_hand(model: LanguageModel, config: Config) -> None:
    two = config.reading.model_copy(update={"piece": 2, "window": 1})
    config = config.model_copy(update={"reading": two})
    found = [
        # The model reaches four tokens of the first page: the last piece is missing.
        reading(page_of(0, 6), window=[2, 2, 4, 4], memory=[1, 2, 3, 3], everything=[1, 1]),
        reading(page_of(1, 4), window=[3, 3], memory=[3, 3], everything=[1, 3]),
    ]
    spent = {arm: Spent(seconds=0.6, computed=12, held=5) for arm in ARMS}
    table = page_table(model, found, spent, config)
    assert table["num_tokens"] == 6
    arms = table["arms"]
    assert [arms[a]["nll"] for a in ARMS] == pytest.approx([18 / 6, 15 / 6, 6 / 4])
    assert [arms[a]["num_tokens"] for a in ARMS] == [6, 6, 4]
    assert arms["window"]["seconds_per_1000"] == pytest.approx(100)
    assert arms["everything"]["computed_per_token"] == 3
    # Two layers, keys and values of two heads of eight, float64.
    assert arms["memory"]["kv_bytes"] == 5 * 2 * 2 * 16 * 8
    assert table["recovered"] == pytest.approx(1 / 4)
    saved = table["saved"]["memory"]["bits_per_byte"]
    size = 18 / math.log(2) / arms["window"]["bits_per_byte"]
    assert saved == pytest.approx(3 / math.log(2) / size)
    low, high = table["saved"]["memory"]["ci95"]
    assert low == pytest.approx(0)
    assert high >= saved
    assert [(row["from"], row["to"]) for row in table["curve"]] == [(2, 4), (4, 6)]
    assert [row["num_tokens"] for row in table["curve"]] == [4, 2]
    assert table["curve"][0]["everything"] > 0
    assert table["curve"][1]["everything"] is None


def test_the_command(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    out = tmp_path / "pages.json"
    cli.main(["eval", str(path), "--pages", "3", "--page-tokens", "40", "--out", str(out)])
    facts = json.loads(out.read_text())
    assert facts["num_docs"] == 3
    assert facts["longest_page"] == 40
    assert facts["num_tokens"] == 3 * 33
    assert (facts["step"], facts["config_digest"]) == (0, config.digest())
    assert np.isfinite([facts["arms"][arm]["bits_per_byte"] for arm in ARMS]).all()
    text = capsys.readouterr().out
    for line in ("3 pages of up to 40 tokens in pieces of 7", "the window alone", "35 … 40"):
        assert line in text
    again = evaluate_pages(path, count=3, page_tokens=40, say=print)
    assert again["curve"] == facts["curve"]
    longer = evaluate_pages(path, count=3, piece=12, page_tokens=40, say=print)
    assert longer["num_tokens"] == 3 * 28
    with pytest.raises(ConfigError, match="as many as"):
        evaluate_pages(path, count=3, piece=2, say=print)
    bare = config.model_copy(update={"reading": config.reading.model_copy(update={"piece": None})})
    path.write_text(bare.to_yaml())
    with pytest.raises(ConfigError, match=r"reading\.piece or --piece"):
        evaluate_pages(path, count=3, say=print)
