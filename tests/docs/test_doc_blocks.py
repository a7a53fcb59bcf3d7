"""What pages show works: Python runs, commands parse, configs validate, names exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from doc_pages import ROOT, Block, blocks, registries_kept, spans
from rntp_data_prep.config import PrepConfig
from rntp_kernels.tree_attention.selection import Implementation

import rntp
from rntp.ablate import Experiment
from rntp.ablate.grid import plan
from rntp.cli import build_parser
from rntp.errors import ConfigError
from rntp.grow.settings import Frontier
from rntp.plan.cluster import Cluster
from rntp.run.metric_keys import METRICS, find

PYTHON = [block for block in blocks("python") if "not-run" not in block.options]
SHELL = [*blocks("bash"), *blocks("console")]


def by_page(found: list[Block]) -> dict[str, list[Block]]:
    pages: dict[str, list[Block]] = {}
    for block in found:
        pages.setdefault(str(block.page.relative_to(ROOT)), []).append(block)
    return pages


@pytest.mark.parametrize("page", by_page(PYTHON))
def test_python_of_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in one namespace, as a reader would paste it."""
    monkeypatch.chdir(ROOT)
    names = {"__name__": "pasted"}
    with registries_kept():
        for block in by_page(PYTHON)[page]:
            # Training takes what a test has no time for: README's reward has a test of its own.
            text = block.text.replace("rntp.Trainer(config).fit()", "pass")
            exec(compile(text, block.label, "exec"), names)


def test_blocks_that_do_not_run_say_why() -> None:
    for block in blocks("python"):
        if "not-run" in block.options:
            assert re.search(r'not-run="[^"]{8,}"', block.options), block.label


def commands() -> Iterator[tuple[str, str]]:
    """(where, command line) of every shell line in the pages."""
    for block in SHELL:
        for line in block.text.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").strip()
            if command and not command.startswith("#"):
                yield block.label, command


def test_pages_show_commands() -> None:
    assert sum(1 for _ in commands()) > 40


@pytest.mark.parametrize(("where", "command"), commands())
def test_commands_parse(where: str, command: str) -> None:
    command = re.sub(r"\$\([^)]*\)", "said", command)  # what another command would have said
    words = [
        word for part in re.split(r"<\(|\)|\||&&", command) for word in ([part] if part else [])
    ]
    for part in words:
        check(shlex.split(part, comments=True))


def check(words: list[str]) -> None:
    """Parse one command of `rntp` or `make`; others are the shell's."""
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[:1] == ["torchrun"]:
        words = ["rntp", *words[words.index("rntp") + 1 :]]
    if words[:1] == ["rntp"]:
        words = words[: words.index(">")] if ">" in words else words
        if "--version" not in words:
            build_parser().parse_args(words[1:])
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for target in words[1:]:
            assert "=" in target or target in targets, target


@pytest.mark.parametrize("words", [["train"], ["train", "c.yaml", "--fast"], ["fly"]])
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        check(["rntp", *words])


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.label)
def test_yaml_is_a_config(block: Block, tmp_path: Path) -> None:
    raw = yaml.safe_load(block.text)
    if "sources" in raw:
        PrepConfig.model_validate(raw)
    elif "pools" in raw or "sites" in raw:
        Frontier.model_validate(raw)
    elif "device" in raw:
        Cluster.parse(raw)
    elif "arms" in raw:
        path = tmp_path / "experiment.yaml"
        path.write_text(block.text.replace("../quickstart", str(ROOT / "experiments/quickstart")))
        experiment = Experiment.load(path)
        assert len(plan(experiment)) == len(experiment.arms) * len(experiment.seeds)
    else:
        raw["base"] = str(ROOT / raw.get("base", "experiments/quickstart/config.yaml"))
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(raw))
        rntp.Config.load(path)


def test_a_config_with_a_wrong_key_would_be_found(tmp_path: Path) -> None:
    block = Block(ROOT / "README.md", 1, "yaml", "", "reward: {horizonn: 8}")
    with pytest.raises(ConfigError, match=r"did you mean `reward\.horizon`"):
        test_yaml_is_a_config(block, tmp_path)


SECTIONS = rntp.Config.model_fields
NOT_FIELDS = {"data.pages", "run.py"}


def fields() -> set[str]:
    return {
        f"{name}.{field}" for name, s in SECTIONS.items() for field in s.annotation.model_fields
    }


def test_named_fields_exist() -> None:
    """Every `section.field` in a code span."""
    named = {
        (page, match[1])
        for page, text in spans()
        if (match := re.match(r"(\w+\.\w+)\b(?!\.)", text)) and match[1].split(".")[0] in SECTIONS
        if not re.search(r"\.(py|json|jsonl|html|yaml|txt)$", match[1])
    }
    assert len(named) > 60
    assert {(page, name) for page, name in named if name not in fields()} == set()


def test_named_metrics_exist() -> None:
    """Every code span that looks like a key of metrics.jsonl."""
    groups = {metric.key.partition("/")[0] for metric in METRICS if "/" in metric.key}
    named = {
        (page, text)
        for page, text in spans()
        if re.fullmatch(r"\w+/[\w<>]+(/[\w<>]+)?", text) and text.partition("/")[0] in groups
    }
    assert len(named) > 40
    wrong = {(page, text) for page, text in named if not (find(text) or (ROOT / text).exists())}
    of_evaluations = {("docs/evaluation.md", "gain/ci95")}
    assert wrong - of_evaluations == set()


def messages() -> str:
    """All texts of the code that could be part of a message, … for what is filled in."""
    found = []
    for folder in ("rntp", "data_prep/rntp_data_prep"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"\{[^}]*\}", "…", node.value))
    return "\n".join(" ".join(text.split()) for text in found)


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    named = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(named) >= 20
    known = messages()
    for message in named:
        pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
        assert re.search("[^\n]*".join(pieces), known), message


def test_implementations_of_attention_exist() -> None:
    """The table of RNTP_TREE_ATTENTION."""
    text = (ROOT / "docs/performance.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", text.partition("RNTP_TREE_ATTENTION")[2], re.MULTILINE)
    assert {"segmented", "triton", "dense"} <= set(named) <= set(get_args(Implementation))


def test_every_exit_code_is_explained() -> None:
    from rntp import errors

    codes = {e.exit_code for e in vars(errors).values() if isinstance(e, type)} | {0}
    for page in ("docs/troubleshooting.md", "docs/reference/commands.md"):
        told = re.findall(r"^\| (\d) \|", (ROOT / page).read_text(), re.MULTILINE)
        assert set(map(int, told)) == codes
