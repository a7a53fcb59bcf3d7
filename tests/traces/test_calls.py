"""Calls by fixed rules as a corpus: which are written, what of them is learnt, a run on them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp import cli
from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.data.manifest import Manifest
from rntp.data.token_ids import RESULT_CLOSE, RESULT_OPEN, TOOL_CLOSE, TOOL_OPEN
from rntp.errors import ConfigError, DataError
from rntp.model import LanguageModel, load_model
from rntp.model.opening import open_model
from rntp.model.reading import LossReads
from rntp.model.tokenizer import decode
from rntp.objective.forward import build_tree, forward
from rntp.objective.quantities import Counts
from rntp.rollout.store.work import pack_contexts, unpack_contexts
from rntp.run.log import read_metrics
from rntp.tools import REGISTRY, Failure, Page
from rntp.tools import register as register_tool
from rntp.tools.proposals import PROPOSALS, Before, expression, last_words, rare_words
from rntp.traces.calls import Wish, write_calls
from rntp.traces.progress_file import ProgressFile
from rntp.trainer import Trainer
from rntp.types import Rollout

OPEN, CLOSE = -1, -2
HORIZON, PER_PAGE = 4, 3


@pytest.fixture(autouse=True)
def _names() -> Iterator[None]:
    """A tool and two rules that call it."""

    @register_tool("twist", version="1")
    def twist(arguments: str, page: Page) -> str:
        if arguments == "none":
            raise Failure("nothing_found", "nothing found")
        return arguments[::-1]

    @PROPOSALS.register("ends")
    def ends(before: Before) -> list[str]:
        return [f"twist {before.text[-3:]}", "twist none"]

    @PROPOSALS.register("starts")
    def starts(before: Before) -> list[str]:
        return [f"twist {before.text[:3]}", "twist " + "x" * 90]

    yield
    del REGISTRY["twist"], PROPOSALS["ends"], PROPOSALS["starts"]


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["thought"] |= {"thought_tokens": 20, "tools": {"use": {"twist": None}, "result_tokens": 6}}
    raw["placement"]["positions_per_doc"] = PER_PAGE
    return Config.parse(raw, ["model.dtype=float32"])


def documents(folder: Path) -> list[tuple[list[int], list[dict]]]:
    manifest = Manifest.load(folder)
    read = [manifest.read(n).metadata for n in range(manifest.num_docs)]
    return [(metadata["token_ids"], metadata["calls"]) for metadata in read]


def thoughts(codes: list[int]) -> list[tuple[int, list[int]]]:
    """(place in the bare page, codes between the think markers) of each thought."""
    found, place, opened = [], 0, -1
    for n, code in enumerate(codes):
        if code == OPEN:
            opened = n
        elif code == CLOSE:
            found.append((place, codes[opened + 1 : n]))
            opened = -1
        elif opened < 0:
            place += 1
    return found


def bare(codes: list[int]) -> list[int]:
    """The page without its thoughts."""
    kept, inside = [], False
    for code in codes:
        inside = inside or code == OPEN
        kept += [] if inside else [code]
        inside = inside and code != CLOSE
    return kept


def ids_of(model: LanguageModel, codes: list[int]) -> list[int]:
    markers = [model.think_open_id, model.think_close_id, *model.tool_ids]
    return [markers[-code - 1] if code < 0 else code for code in codes]


def test_the_call_that_gains_most_is_written_with_its_result(
    config: Config, tmp_path: Path
) -> None:
    wish = Wish(["ends", "starts"], 6, margin=-100.0, bare=0.0)
    facts = write_calls(config, tmp_path / "made", wish)
    assert json.loads((tmp_path / "made" / "calls.json").read_text()) == facts
    assert (facts["positions"], facts["calls"], facts["declined"]) == (18, 18, 0)
    assert facts["by_rule"].keys() == {"ends", "starts"}
    assert facts["funnel"] == {
        "ends, asked": 36,
        "ends, nothing_found": 18,
        "ends, useful": 18,
        "ends, with a result": 18,
        "starts, asked": 18,
        "starts, too long": 18,
        "starts, useful": 18,
        "starts, with a result": 18,
    }
    model = open_model(config)
    model.hf.set_attn_implementation("sdpa")
    pages = open_corpus(config, open_data(config), model.tokenizer).train

    def logp(codes: list[int], number: int) -> float:
        ids = torch.tensor(ids_of(model, codes))
        with torch.no_grad():
            found = torch.log_softmax(model.hf(ids[None]).logits[0, :-1], -1)
        return float(found.gather(1, ids[1:, None])[-number:].mean())

    for ordinal, (codes, calls) in enumerate(documents(tmp_path / "made")):
        page = pages[ordinal].token_ids.tolist()
        assert bare(codes) == page
        written = thoughts(codes)
        assert [place for place, _ in written] == [call["position"] for call in calls]
        for (p, inner), call in zip(written, calls, strict=True):
            text = decode(model.tokenizer, torch.tensor(page[:p]))
            gains = {}
            for rule, argument in (("ends", text[-3:]), ("starts", text[:3])):
                codes_of = [TOOL_OPEN, *model.tokenizer(f"twist {argument}")["input_ids"]]
                result = model.tokenizer(argument.strip()[::-1])["input_ids"][:6]
                branch = [*codes_of, TOOL_CLOSE, RESULT_OPEN, *result, RESULT_CLOSE]
                behind = page[p : p + HORIZON]
                with_call = logp([*page[:p], OPEN, *branch, CLOSE, *behind], HORIZON)
                gains[rule] = with_call - logp(page[: p + HORIZON], HORIZON)
                if rule == call["rule"]:
                    assert inner == branch
            assert call["gain"] == pytest.approx(max(gains.values()), abs=1e-4)
            assert call["gain"] == pytest.approx(gains[call["rule"]], abs=1e-4)


def test_behind_a_window_results_are_read_before_it_and_calls_are_not(
    config: Config, tmp_path: Path
) -> None:
    """Documents of a position are those that `rntp memories` makes; the gain is of the reading."""
    window = 6
    behind = Config.parse(config.model_dump(mode="json"), [f"reading.window={window}"])
    facts = write_calls(behind, tmp_path / "made", Wish(["ends"], 4, margin=-100.0, bare=0.3))
    with_call = facts["calls"]
    assert facts["left_bare"] > 0
    assert facts["documents"] == 2 * with_call + facts["positions"]
    model = open_model(behind)
    model.hf.set_attn_implementation("sdpa")
    pages = open_corpus(behind, open_data(behind), model.tokenizer).train
    manifest, kinds = Manifest.load(tmp_path / "made"), {"read": 0, "bare": 0, "write": 0}

    def logp(ids: list[int]) -> float:
        with torch.no_grad():
            found = torch.log_softmax(model.hf(torch.tensor([ids])).logits[0, :-1], -1)
        return float(found.gather(1, torch.tensor(ids)[1:, None])[-HORIZON:].mean())

    for n in range(manifest.num_docs):
        document = manifest.read(n)
        kind, ordinal, p = document.id.split("-")
        kinds[kind] += 1
        codes, at = document.metadata["token_ids"], int(p)
        page = pages[int(ordinal)].token_ids.tolist()
        read = page[at - window : at + HORIZON]
        if kind == "bare":
            assert codes == [model.start_id, *read]
            assert document.metadata["calls"] == []
            continue
        (call,) = document.metadata["calls"]
        assert call["position"] == at
        begin, given = (1, codes.index(CLOSE) + 1) if kind == "read" else (at, at + 1)
        branch = codes[begin : codes.index(CLOSE) + 1]
        began = TOOL_OPEN if kind == "write" else RESULT_OPEN
        assert [*branch[:2], *branch[-2:]] == [OPEN, began, RESULT_CLOSE, CLOSE]
        assert document.metadata["given_tokens"] == given
        if kind == "write":
            assert codes == [*page[:at], *branch]
            continue
        assert codes == [model.start_id, *branch, *read]
        gain = logp(ids_of(model, codes)) - logp([model.start_id, *read])
        assert call["gain"] == pytest.approx(gain, abs=1e-4)
    assert kinds == {"read": with_call, "bare": facts["positions"], "write": with_call}
    some = write_calls(
        behind, tmp_path / "some", Wish(["ends"], 4, margin=-100.0, bare=0.3, kinds=["write"])
    )
    assert some["documents"] == with_call


def test_what_gains_less_is_declined_and_a_share_stays_bare(config: Config, tmp_path: Path) -> None:
    every = write_calls(config, tmp_path / "all", Wish(["ends"], 20, margin=-100.0, bare=0.0))
    gains = [c["gain"] for _, calls in documents(tmp_path / "all") for c in calls]
    assert len(gains) == every["positions"] == 20 * PER_PAGE
    middle = sorted(gains)[len(gains) // 2]
    some = write_calls(config, tmp_path / "some", Wish(["ends"], 20, margin=middle, bare=0.4))
    assert some["calls"] + some["declined"] + some["left_bare"] == some["positions"]
    assert 0.2 < some["left_bare"] / some["positions"] < 0.6
    assert some["declined"] > 5
    for codes, calls in documents(tmp_path / "some"):
        assert all(call["gain"] > middle for call in calls)
        with_call = [place for place, inner in thoughts(codes) if inner]
        assert with_call == [call["position"] for call in calls]
    with pytest.raises(ConfigError, match=r"none of 60 positions .* ends, useful|lower --margin"):
        write_calls(config, tmp_path / "none", Wish(["ends"], 20, margin=100.0))
    assert not (tmp_path / "none").exists()


def test_results_are_read_and_never_learnt(config: Config, tmp_path: Path) -> None:
    write_calls(config, tmp_path / "made", Wish(["ends"], 8, margin=None, bare=0.0))
    raw = config.model_dump(mode="json")
    raw["data"] |= {"source": str(tmp_path / "made"), "context_tokens": 200, "heldout_fraction": 0}
    reading = Config.parse(raw, ["evaluation.docs=0"])
    model = open_model(reading)
    model.hf.set_attn_implementation("sdpa")
    train = open_corpus(reading, open_data(reading), model.tokenizer).train
    opening, closing = model.tool_ids[2:]
    for ordinal in range(8):
        context = train[ordinal]
        ids = context.token_ids.tolist()
        inside, wanted = False, []
        for token in ids:
            inside = inside or token == opening
            wanted.append(inside)
            inside = inside and token != closing
        assert context.given.tolist() == wanted
        assert 3 * PER_PAGE <= sum(wanted) <= 8 * PER_PAGE
        assert context.predicted.tolist() == [n for n, g in enumerate(wanted) if n and not g]
        (again,) = unpack_contexts(pack_contexts([context]))
        assert torch.equal(again.given, context.given)
        nothing = torch.zeros(0)
        page = Rollout(context, (), (), nothing, nothing)
        tree = build_tree(model, [page], 1, LossReads(context=True))
        with torch.no_grad():
            logp = forward(model, tree, temperature=1.0).context_logp
            every = model.hf(context.token_ids[None]).logits[0, :-1].log_softmax(-1)
        every = every.gather(1, context.token_ids[1:, None])[:, 0]
        assert logp == pytest.approx(every[context.predicted - 1], abs=1e-4)
        assert Counts.of([page], 1).context == len(logp) == len(every) - sum(wanted)
    raw["thought"]["tools"]["use"] = {}
    without = Config.parse(raw, ["evaluation.docs=0"])
    plain = load_model(without.model.spec)
    with pytest.raises(DataError, match=r"thought\.tools\.use"):
        _ = open_corpus(without, open_data(without), plain.tokenizer).train[0]


def test_a_run_trains_on_them(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    cli.main(
        [
            *("calls", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "made")),
            *("--contexts", "8", "--rules", "ends,starts", "--unscored"),
        ]
    )
    printed = capsys.readouterr().out
    assert "calls, ends" in printed
    facts = json.loads((tmp_path / "made" / "calls.json").read_text())
    assert f"data.context_tokens: {facts['longest']}" in printed
    assert facts["gain/mean"] is None
    raw = config.model_dump(mode="json")
    raw["run"]["dir"] = str(tmp_path / "reads")
    raw["data"] |= {"source": str(tmp_path / "made"), "context_tokens": facts["longest"]}
    raw["data"]["heldout_fraction"] = 0
    raw["thought"]["thoughts_per_position"] = 0
    raw["objective"] |= {"pg_weight": 0, "continuation_weight": 0}
    raw["evaluation"] = {"docs": 0}
    Trainer(Config.parse(raw, ["run.steps=12", "optim.lr=0.01"])).fit()
    rows = read_metrics(tmp_path / "reads")
    losses = [row["loss/ntp"] for row in rows]
    assert losses[-1] < losses[0] - 0.3
    manifest = Manifest.load(tmp_path / "made")
    assert rows[0]["tokens/context"] <= 3 * int(manifest.num_tokens.max())


def test_it_goes_on_after_a_kill(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = Wish(["ends", "starts"], 6, margin=-0.01, bare=0.3)
    whole = write_calls(config, tmp_path / "whole", wish)
    made, adding = [], ProgressFile.add

    def killed(self: ProgressFile, row: dict) -> None:
        made.append(row["ordinal"])
        if len(made) == 4:
            raise KeyboardInterrupt
        adding(self, row)

    monkeypatch.setattr(ProgressFile, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        write_calls(config, tmp_path / "made", wish)
    left = tmp_path / "made.progress.jsonl"
    with left.open("a") as file:
        file.write('{"ordinal": 3, "co')  # torn
    with pytest.raises(ConfigError, match="other settings"):
        write_calls(config, tmp_path / "made", Wish(["ends"], 6))
    again = write_calls(config, tmp_path / "made", wish)
    assert made == [0, 1, 2, 3, 3, 4, 5]
    assert documents(tmp_path / "made") == documents(tmp_path / "whole")
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert not left.exists()


def test_rules_look_at_what_stands_before() -> None:
    text = "Home. The Harbour song, by Ida Brenn,\n was first printed in 1911 and sung"
    assert last_words(Before(text)) == [
        "search song, by Ida Brenn, was first printed in 1911 and sung"[:7]
        + "Harbour song, by Ida Brenn, was first printed in 1911 and sung"
    ]
    documents = {"the": 90, "song": 9, "was": 80, "first": 70, "printed": 5, "sung": 7, "and": 95}
    documents |= {"home": 60, "by": 90}
    assert rare_words(Before(text, documents)) == ["search harbour ida brenn printed sung"]
    assert last_words(Before(" \n- ")) == rare_words(Before("12 of")) == []
    sums = "It has 12 * (3 + 4) rows, -2**10 bytes, version 1.2.3, a 7-bit code, and 5 / 2 ="
    assert expression(Before(sums)) == ["python 5 / 2", "python -2**10", "python 12 * (3 + 4)"]
    doctest = "Then\n>>> x = [1, 2]\n>>> for n in x:\n...     n\n1\n2\n>>> len(x)\n"
    assert expression(Before(doctest)) == [
        "python x = [1, 2]\nfor n in x:\n    n\nlen(x)",
        "python len(x)",
    ]
    lacks = "math - Functions\n\n>>> 1 / 0\nTraceback (most recent call last)\n>>> re.match(sqrt)\n"
    assert expression(Before(lacks + ">>> log(2 + 3")) == [
        "python re.match(sqrt)\nlog(2 + 3",
        "python log(2 + 3",
        "python 2 + 3",
        "python 1 / 0",
    ]
    assert expression(Before(lacks)) == [
        "python from math import *\nimport re\nre.match(sqrt)",
        "python re.match(sqrt)",
        "python 1 / 0",
    ]
    assert expression(Before("On 24 May there were 7 of them.")) == []


def test_mistakes_are_explained(config: Config, tmp_path: Path) -> None:
    for sets, wish, message in (
        (["thought.tools={}"], Wish(["ends"], 2), r"thought\.tools"),
        (
            ["reading.window=6", "reading.piece=12", "thought.tools={use: {recall: null}}"],
            Wish(["ends"], 2),
            r"reading\.piece",
        ),
        ([], Wish(["ends"], 2, kinds=["read"]), r"reading\.window is null"),
        (["reading.window=6"], Wish(["ends"], 2, kinds=["reed"]), "--kinds: reed"),
        ([], Wish(["worst"], 2), "no proposal 'worst'; there are: ends, expression"),
        ([], Wish([], 2), "--rules: none"),
        ([], Wish(["ends"], 0), "--contexts"),
        ([], Wish(["ends"], 2, bare=1.0), "--bare"),
    ):
        changed = Config.parse(config.model_dump(mode="json"), sets)
        with pytest.raises(ConfigError, match=message):
            write_calls(changed, tmp_path / "made", wish)
    (tmp_path / "made").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        write_calls(config, tmp_path / "made", Wish(["ends"], 2))
