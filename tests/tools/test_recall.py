"""`recall`: what it finds of a page's lost part, and that it looks at nothing else."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel, load_model
from rntp.model.tokenizer import encode
from rntp.rollout.carried import piece_behind
from rntp.rollout.tool_calls import ToolCalls
from rntp.run.log import read_metrics
from rntp.tools import REGISTRY, Failure, Page
from rntp.tools.cache import Cache
from rntp.tools.desk import Desk
from rntp.tools.okapi import okapi
from rntp.tools.recall import passages
from rntp.trainer import Trainer
from rntp.types import Context

TEXT = (
    "The harbour opens at six. Boats leave when the bell rings, and the bell rings twice. "
    "In the tower lives a heron who counts the boats; her name is Ida. "
    "Nothing else is known of the island, which is small and flat."
)
LOST, KEPT = TEXT[:-30], TEXT[-30:]
MARKERS = ("<tool>", "</tool>", "<result>", "</result>")


def page(lost: str = LOST) -> Page:
    return Page("here", len(TEXT), TEXT, tuple(range(len(TEXT))), lost)


def test_scores_by_hand() -> None:
    counts = [Counter("aab"), Counter("bcd"), Counter("ddd")]
    one = math.log(1 + 2.5 / 1.5) * 2 * 2.2 / 3.2  # a: in one of three, twice there
    two = math.log(1 + 1.5 / 2.5)  # b: in two of three, once in each: 2.2 / 2.2
    assert okapi(counts, "ab") == pytest.approx([one + two, two, 0])
    assert okapi(counts, "abab") == pytest.approx([one + two, two, 0])
    assert okapi([], "a") == []


def test_passages_overlap_by_half_and_lose_nothing() -> None:
    found = passages("a b c, d e. F g h!", 4)
    assert found == ["a b c, d", "c, d e. F", "e. F g h!"]
    assert passages("a b", 4) == ["a b"]
    assert passages("", 4) == [""]
    for word in TEXT.replace(",", "").replace(".", "").replace(";", "").split():
        assert any(word in text for text in passages(TEXT, 6))


def test_the_passage_that_shares_most_comes_back() -> None:
    recall = REGISTRY["recall"](words=12)
    assert "her name is Ida" in recall("heron name", page())
    assert "opens at six" in recall("when does the HARBOUR open, at six?", page())
    with pytest.raises(Failure) as failed:
        recall("zebra", page())
    assert failed.value.kind == "nothing_found"
    with pytest.raises(Failure):
        recall("heron", page(lost=""))
    with pytest.raises(Failure):  # what stands in the window is no memory
        recall("flat", page())
    assert recall.reads_page
    assert recall.strict is None
    assert REGISTRY["recall"](words=13).digest != recall.digest
    with pytest.raises(ConfigError, match="2 words or more"):
        REGISTRY["recall"](words=1)


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    return load_model(str(model_folders["llama"]), tool_markers=MARKERS)


def test_a_thought_recalls_what_its_reader_has_lost(model: LanguageModel) -> None:
    """And never what comes behind the position, nor what the window keeps."""
    before, window = encode(model.tokenizer, LOST), encode(model.tokenizer, KEPT)
    behind = encode(model.tokenizer, " The secret word is walrus.")
    ids = torch.cat([before, window, behind])
    at = len(before) + len(window)
    desk = Desk({"recall": REGISTRY["recall"](words=12)}, Cache(None), seconds=30.0)
    tools = ToolCalls(model, desk, 2, 32, len(behind), window=len(window))
    whole = Context(0, "doc", ids)
    memory = torch.tensor([0, model.think_open_id, model.think_close_id])
    link = piece_behind(whole, 20, len(ids), memory)
    for context, position in ((whole, at), (link, at - 20 + 3)):
        asked = [
            tools.ask(encode(model.tokenizer, call).tolist(), context, position)
            for call in ("recall heron name", "recall walrus secret", "recall flat")
        ]
        found, *nothing = desk.settle(asked, wait=True)
        assert "her name is Ida" in found.text
        assert [outcome.failure for outcome in nothing] == ["nothing_found"] * 2
    desk.close()


def test_a_run_may_recall_in_a_chain(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    sets = ["reading.window=4", "reading.piece=8", "run.steps=1", "evaluation.docs=0"]
    sets += ["thought.tools={use: {recall: {words: 4}}, result_tokens: 6, calls: 1}"]
    Trainer(Config.parse(raw, sets)).fit()
    [row] = read_metrics(tmp_path / "run")
    assert {"tools/calls", "tokens/given"} <= row.keys()
    with pytest.raises(ConfigError, match=r"reading\.window is null"):
        Config.parse(raw, [sets[-1]])
