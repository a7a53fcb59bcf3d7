"""A model that looks things up reads and writes with its tools, from the exported folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import tiny_run
from test_calling import tool_run

from rntp import Trainer, cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import load_model
from rntp.model.tokenizer import encode
from rntp.reader import Reader, Settings
from rntp.reader.when import parse_when
from rntp.reader.writing import _Writer
from rntp.run.export import export
from rntp.tools import REGISTRY, Page, register
from rntp.types import Thought

_ = tool_run  # a fixture
TEXT = "The river rose in the night and the people of the town went up the hill to wait. " * 4
EVERY = parse_when("every:24")


@pytest.fixture
def asked() -> Iterator[list[tuple[str, str]]]:
    """Calls of a tool, with the end of the page that each saw."""
    calls: list[tuple[str, str]] = []

    @register("wire", version="1", reads_page=True)
    def wire(arguments: str, page: Page) -> str:
        calls.append((arguments, page.text[-10:]))
        return "news"

    yield calls
    del REGISTRY["wire"]


def trained(models: dict[str, Path], corpus: Path, tmp_path: Path, **reading: object) -> str:
    raw = tiny_run(models["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 1
    raw["model"]["dtype"] = "float32"
    raw["evaluation"] = {"docs": 2, "controls": []}
    tools = {"use": {"wire": None}, "opening": "wire", "result_tokens": 6, "calls": 1}
    raw["thought"]["tools"] = tools
    raw["reading"] = reading
    Trainer(Config.parse(raw)).fit()
    return str(export(tmp_path / "run", tmp_path / "model", say=lambda text: None))


@pytest.mark.parametrize("reading", [{}, {"window": 12}, {"mixing": 0.5}], ids=str)
def test_an_exported_model_reads_and_writes_with_its_tools(
    model_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    asked: list[tuple[str, str]],
    reading: dict[str, object],
) -> None:
    spec = trained(model_folders, corpus, tmp_path, **reading)
    assert Settings.beside(spec).tools["use"] == {"wire": None}
    reader = Reader(spec)
    asked.clear()
    page = reader.read(TEXT, EVERY)
    assert len(page.thoughts) > 2
    result = encode(reader.model.tokenizer, "news").tolist()[:6]
    _, _, opening, closing = reader.model.tool_ids
    for thought in page.thoughts:
        (call,) = thought.calls
        assert (call.name, call.result) == ("wire", "news")
        assert any(call.arguments == arguments for arguments, _ in asked)
        begin = thought.token_ids.index(opening)
        assert thought.token_ids[begin:][: len(result) + 2] == [opening, *result, closing]
        # What was given is not counted.
        assert thought.num_tokens <= reader.settings.thought_tokens
    ends = {end for _, end in asked}
    text = "".join(page.pieces)
    assert all(end in text for end in ends)
    # Writing: a thought is a call with its result; the text behind has no marker.
    asked.clear()
    pieces = list(reader.generate("The river", parse_when("every:4"), tokens=9))
    thoughts = [piece.text for piece in pieces if piece.kind == "thought"]
    assert len(thoughts) == len(asked) >= 2
    assert all("<tool>wire" in text and "<result>news</result>" in text for text in thoughts)
    assert asked[0][1] == "The river"[-10:]
    written = "".join(piece.text for piece in pieces if piece.kind == "text")
    assert "<" not in written.replace("<|endoftext|>", "")
    again = list(Reader(spec).generate("The river", parse_when("every:4"), tokens=9))
    assert again == pieces


def test_what_a_written_thought_sees_is_what_a_plain_forward_sees(
    model_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    asked: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The token behind a thought is drawn from the plain model's prediction behind page, call,
    result and close marker."""
    spec = trained(model_folders, corpus, tmp_path)
    reader = Reader(spec)
    first, thoughts, ponder = [True], list[Thought](), _Writer.ponder

    def noted(self: _Writer, page: torch.Tensor, most: int) -> Thought:
        thoughts.append(ponder(self, page, most))
        return thoughts[-1]

    monkeypatch.setattr(_Writer, "ponder", noted)

    def once(here: object) -> bool:
        return first.pop() if first else False

    ends = reader.generate("The river rose", once, tokens=1, temperature=1e-4)
    _, token = (piece.text for piece in ends)
    model = load_model(spec, tool_markers=reader.settings.tools["markers"])
    ids = encode(model.tokenizer, "The river rose").tolist()
    inner = thoughts[0].content.tolist()
    row = torch.tensor([[*ids, model.think_open_id, *inner, model.think_close_id]])
    model.hf.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = model.hf(row).logits[0, -1]
    logits[[model.think_open_id, model.think_close_id, *model.tool_ids]] = -torch.inf
    assert model.tokenizer.decode([int(logits.argmax())]) == token
    assert len(asked) > 0


def test_other_tools_and_none(
    model_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    asked: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = trained(model_folders, corpus, tmp_path)
    file = tmp_path / "page.txt"
    file.write_text(TEXT)
    arguments = ["read", spec, str(file), "--think", "every:24", "--json"]
    capsys.readouterr()
    cli.main(arguments)
    found = json.loads(capsys.readouterr().out)
    assert all(each["calls"][0]["result"] == "news" for each in found["each"])
    asked.clear()
    cli.main([*arguments, "--tools", "{}"])
    found = json.loads(capsys.readouterr().out)
    assert asked == []
    assert all(each["calls"] == [] for each in found["each"])
    with pytest.raises(ConfigError, match="wire cannot be opened"):
        Reader(spec, tools={"wire": {"speed": 3}}).read(TEXT, EVERY)
    for wrong in ("{a: ", "wire"):
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--tools", wrong])
        assert caught.value.code == 2
    # The gate is fitted to thoughts that look things up.
    asked.clear()
    cli.main(["gate", str(tmp_path / "run"), spec, "--contexts", "12", "--positions", "3"])
    assert len(asked) > 12
    with pytest.raises(SystemExit):
        cli.main(["gate", str(tmp_path / "run"), spec, "--lengths", "2"])
    assert "leave --lengths out" in capsys.readouterr().err
