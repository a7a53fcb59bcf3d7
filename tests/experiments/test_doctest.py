"""The corpus of interactive examples: what is cut, where labels stand, and the table of a run."""

import gzip
import html
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_tokenizer

from rntp import cli
from rntp.config import Config
from rntp.data import Manifest
from rntp.data.corpus import open_corpus, open_data
from rntp.data.documents import heldout_draw
from rntp.evaluation.fixed_calls import COMPUTATIONS, by_rule
from rntp.model.opening import open_model
from rntp.placement.labels import class_names
from rntp.tools.sessions import examples_of
from rntp.types import Rollout

TOOLS = Path(__file__).parents[2] / "experiments" / "tools"
sys.path.insert(0, str(TOOLS))

import arms_table  # noqa: E402
import make_doctest  # noqa: E402
from doctest_pages import Block, Cut, blocks_of, pieces_of  # noqa: E402

PROSE = "The sum of two numbers is found at once, whatever they are, and so is that of many."


SMALL = Cut(tokens=190, before=150, behind=8)


def page_of(number: int) -> str:
    """A page with two sums that the tool gives, what it cannot give, and an exception."""
    code = f""">>> x = {number}
>>> x + 100
{number + 100}
>>> 1 / 0
Traceback (most recent call last):
ZeroDivisionError: division by zero

>>> print(x * 3,
...       x)
{number * 3} {number}
>>> nobody.knows()
'it'"""
    marked = html.escape(code, quote=False).replace("&gt;&gt;&gt; ", "<span>&gt;&gt;&gt; </span>")
    return f"""<html><body><div class="nav"><p>Menu</p></div>
<section id="a"><h1>Sums, {number}<a class="headerlink" href="#a">¶</a></h1>
<p>{PROSE}
{PROSE}</p><section><pre><span></span>{marked}
</pre></section><ul><li><p>That is <b>all</b>.</p></li><li>Really: {PROSE}</li></ul></section>
<p>Imprint</p></body></html>"""


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]
) -> tuple[Path, dict[str, int]]:
    """A corpus of the tiny tokenizer, and its counts."""
    folder = tmp_path_factory.mktemp("doctest")
    for package in make_doctest.PACKAGES.values():
        with gzip.open(folder / f"{package}.jsonl.gz", "wt", encoding="utf-8") as file:
            rows = [{"url": f"u{n}", "html": page_of(n + 5)} for n in range(30)]
            rows.insert(1, {"url": "bare", "html": "<section><p>No example.</p></section>"})
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_doctest, "CUT", SMALL)  # the model sees 256 tokens, thought and all
        counts = make_doctest.write(folder / "corpus", folder, str(model_folders["llama"]), "monty")
    return folder / "corpus", dict(counts)


def test_a_page_becomes_prose_and_code() -> None:
    blocks = blocks_of(page_of(2))
    assert [block.code for block in blocks] == [False, False, True, False, False]
    assert [blocks[0].text, blocks[3].text] == ["Sums, 2", "That is all."]
    assert blocks[1].text == f"{PROSE} {PROSE}"
    assert blocks[2].text.startswith(">>> x = 2\n>>> x + 100\n102\n>>> 1 / 0\nTrace")
    assert blocks[2].text.endswith(
        "zero\n\n>>> print(x * 3,\n...       x)\n6 2\n>>> nobody.knows()\n'it'"
    )
    assert blocks_of("<p>No section</p>") == []


def test_pieces_ask_for_every_output_once_and_show_its_session() -> None:
    lines = "".join(f">>> {n} + 1000\n{n + 1000}\n" for n in range(40)).rstrip("\n")
    blocks = [Block("Title\nmore", False), Block(lines, True), Block("x" * 500, False)]

    def begins(text: str) -> list[int]:
        return list(range(len(text)))  # a character is a token

    pieces = pieces_of(blocks, begins, Cut(tokens=120, before=60, behind=8))
    assert max(piece.num_tokens for piece in pieces) == 120
    asked = []
    for piece in pieces:
        assert piece.text.startswith("Title\n")
        assert len(piece.text) == piece.num_tokens
        for output in piece.outputs:
            asked.append(output.text)
            assert output.text.startswith(piece.text[output.token :][: len(output.text)])
            assert {*range(output.token, output.token + 4)} <= piece.came
            assert output.token + 8 <= piece.num_tokens
            before = list(examples_of(piece.text[: output.token]))
            # Of 18 characters each, as many as 60 characters have behind the first.
            assert len(before) >= (3 if int(output.text) > 1003 else 1)
            assert int(before[-1].typed.partition(" ")[0]) + 1000 == int(output.text)
    assert asked == [str(n + 1000) for n in range(40)]
    assert len(pieces) > 10


def test_labels_stand_where_outputs_begin(
    made: tuple[Path, dict[str, int]], model_folders: dict[str, Path]
) -> None:
    folder, counts = made
    manifest = Manifest.load(folder)
    tokenizer = tiny_tokenizer()
    classes, others = [], 0
    for number in range(manifest.num_docs):
        document = manifest.read(number)
        labels = document.metadata["labels"]
        ids = manifest.read_ids(number)[1]
        assert len(labels["classes"]) == len(ids) <= SMALL.tokens
        assert tokenizer.decode(ids) == document.text
        outputs = {e.begin: e for e in examples_of(document.text) if e.output}
        for token, label in enumerate(labels["classes"]):
            begin = len(tokenizer.decode(ids[:token]))
            if label in "cn":
                classes.append(labels["names"][label])
                # "x + 100" and the print are computed, nobody knows the other.
                knows = outputs[begin].output != "'it'"
                assert label == ("c" if knows else "n"), outputs[begin]
            elif label == "o":
                others += 1
                assert token >= make_doctest.MIN_PREFIX
                assert not any(e.begin <= begin < e.end for e in outputs.values())
    # Of every page, in both packages: two that are computed and one that is not.
    assert counts["python3.11-doc, pages"] == counts["python-django-doc, pages"] == 30
    assert counts["python3.11-doc, outputs"] == counts["python-django-doc, outputs"] == 90
    assert counts["python3.11-doc, outputs computed"] == 60
    assert sorted(set(classes)) == ["output, computed", "output, not computed"]
    assert len(classes) == 180
    assert others == 4 * manifest.num_docs


def test_a_page_is_held_out_with_all_its_pieces(made: tuple[Path, dict[str, int]]) -> None:
    folder, counts = made
    config = Config.load(TOOLS / "doctest.yaml")
    assert config.data.heldout_fraction == make_doctest.HELDOUT
    assert config.data.context_tokens == make_doctest.CUT.tokens == config.reading.window
    assert config.reward.horizon == make_doctest.HORIZON
    assert config.placement.min_prefix_tokens == make_doctest.MIN_PREFIX
    assert config.thought.thought_tokens == make_doctest.THOUGHT_TOKENS
    assert config.thought.tools.result_tokens == make_doctest.RESULT_TOKENS
    sides: dict[str, set[bool]] = {}
    for name in Manifest.load(folder).document_ids:
        heldout = heldout_draw(name) < make_doctest.HELDOUT
        sides.setdefault(make_doctest.page_of(name), set()).add(heldout)
    assert len(sides) == 60
    assert all(len(side) == 1 for side in sides.values())
    assert sum(True in side for side in sides.values()) == counts["held out, pages"] > 0
    assert make_doctest.page_of("python-0003-012-7") == "python-0003"


def sets_of(folder: Path, model: Path) -> dict[str, object]:
    """Settings of a toy run."""
    python = "{runtime: monty, seconds: 20}"
    return {
        "model.spec": model,
        "model.dtype": "float32",
        "data.source": folder,
        "data.docs_per_step": 2,
        "data.context_tokens": 190,
        "reading.window": 190,
        "thought.thought_tokens": 30,
        "run.steps": 2,
        "optim.warmup_steps": 0,
        "thought.tools": f"{{use: {{python: {python}}}, calls: 1, result_tokens: 28, seconds: 30}}",
    }


def test_a_call_by_rule_gives_the_output_and_never_saw_it(
    made: tuple[Path, dict[str, int]], model_folders: dict[str, Path]
) -> None:
    sets = sets_of(made[0], model_folders["llama"])
    config = Config.load(TOOLS / "doctest.yaml", [f"{k}={v}" for k, v in sets.items()])
    model = open_model(config)
    corpus = open_corpus(config, open_data(config), model.tokenizer)
    rollouts, outputs = [], []
    for context in corpus.heldout_contexts(4):
        assert context.labels is not None
        names = context.labels.classes
        positions = tuple(i for i, label in enumerate(names) if label in "cn")
        assert {"output", "other"} <= set(class_names(context.labels))
        nothing = torch.zeros(len(positions))
        rollouts.append(Rollout(context, positions, ((),) * len(positions), nothing, nothing))
        text = model.tokenizer.decode(context.token_ids)
        of = {e.begin: e.output for e in examples_of(text)}
        for position in positions:
            begin = len(model.tokenizer.decode(context.token_ids[:position]))
            outputs.append((names[position], of[begin]))
    roomy = Config.parse(config.model_dump(mode="json"), ["thought.thought_tokens=96"])
    found = by_rule(COMPUTATIONS["expression"], model, roomy, rollouts, model.tokenizer)
    thoughts = [group[0] for rollout in found for group in rollout.thoughts]
    for (label, output), thought in zip(outputs, thoughts, strict=True):
        assert bool(thought.calls) == (label == "c")
        for call in thought.calls:
            assert output not in call.arguments, call
            assert call.result.splitlines()[-1] == output
    assert {label for label, _ in outputs} == {"c", "n"}


def test_only_tokens_of_the_output_count() -> None:
    def at(tokens: list[str], name: str) -> int:
        page = {"tokens": ["a", "b", *tokens]}
        place = {"position": 2, "class": name, "logp_empty": [0.0] * 5}
        return arms_table.output_tokens(page, place)

    assert at(["4", "2", "\n", ">>>", " x"], "output, computed") == 2
    assert at(["4", "2", "\n", ">>>", " x"], "other") == 5
    assert at(["4", "\n", "2", "\n", "\n"], "output, not computed") == 3
    assert at(["4", ",", " 2", ",", " 3", "\n", ">>>"], "output, computed") == 5
    assert at(["42\n", ">>>", " x", "y", "z"], "output, computed") == 1


def test_a_run_ends_in_a_table(
    made: tuple[Path, dict[str, int]],
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = sets_of(made[0], model_folders["llama"]) | {
        "evaluation.docs": 4,
        "parallel.tokens_per_microbatch": 2000,
    }
    for name in ("doctest", "doctest_plain"):
        sets = toy | {"run.dir": tmp_path / name}
        options = [o for key, value in sets.items() for o in ("--set", f"{key}={value}")]
        cli.main(["train", str(TOOLS / f"{name}.yaml"), *options])
    out = tmp_path / "DOCTEST.md"
    runs = [str(tmp_path / "doctest"), f"--plain={tmp_path / 'doctest_plain'}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["", "doctest", *runs])
    arms_table.main()
    sections = out.read_text().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(
        arms_table.EXPERIMENTS["doctest"].groups.values()
    )
    found = json.loads((tmp_path / "doctest" / "eval" / "step_00000000.json").read_text())
    for section, group in zip(sections, arms_table.EXPERIMENTS["doctest"].groups, strict=True):
        rows = {line.split(" | ")[0].strip("| "): line for line in section.splitlines()}
        some = [
            (page, at)
            for page in found["pages"]
            for at in page["positions"]
            if at["class"].startswith(group)
        ]
        assert some, group
        assert rows["positions"].split(" | ")[1] == str(len(some))
        nats, tokens = 0.0, 0
        for page, at in some:
            count = arms_table.output_tokens(page, at)
            nats, tokens = nats - sum(at["logp_empty"][:count]), tokens + count
        assert rows["loss without a thought"].split(" | ")[1] == f"{nats / tokens:.4f}"
        for row in ("… over plain training", "**learned call**", "fixed call, the session so far"):
            assert rows[row].count("[") == 2, (group, row)
