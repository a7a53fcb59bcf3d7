"""The site builds without a warning, and what is made in it is not stale."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT

import rntp

SCRIPTS = ROOT / "docs/scripts"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["blocks.py", "token_tree.py"])
def test_made_parts_are_not_stale(script: str) -> None:
    checked = run(script, "--check")
    assert checked.returncode == 0, checked.stderr


def test_a_stale_part_is_found(tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPTS))
    import blocks

    text = "<!-- begin figures.speed -->\nold\n<!-- end figures.speed -->\n"
    made = blocks.made(text, blocks.makers())
    assert made != text
    assert "TRL GRPOTrainer" in made
    assert blocks.made(made, blocks.makers()) == made
    with pytest.raises(KeyError):
        blocks.made(text.replace("speed", "sped"), blocks.makers())


def test_every_field_and_command_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/configuration.md").read_text()
    for name, section in rntp.Config.model_fields.items():
        for field in section.annotation.model_fields:
            assert f"### `{name}.{field}`" in text
    assert "### `data.pages.damaged`" in text
    commands = (ROOT / "docs/reference/commands.md").read_text()
    for command in ("train", "data simulate", "ckpt export", "init", "completion"):
        assert f"## `rntp {command}`" in commands


def test_links_of_files_outside_the_site_lead_somewhere() -> None:
    for page in PAGES:
        if page.parent == ROOT:
            for link in re.findall(r"\]\(([^)#:]+)", page.read_text()):
                assert (ROOT / link).exists(), f"{page.name}: {link}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12 * 1024


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The site's sources in a folder of their own, so that tests do not build into `build/`."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    config = (ROOT / "mkdocs.yml").read_text()
    paths = f"[{ROOT}, {ROOT / 'kernels'}, {ROOT / 'data_prep'}]"
    (tmp_path / "mkdocs.yml").write_text(config.replace("[., kernels, data_prep]", paths))
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(copy: Path) -> None:
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    built = build(copy)
    assert built.returncode == 0, built.stdout + built.stderr
    site = copy / "build/docs"
    assert 'id="groupdead_frac"' in (site / "reference/metrics/index.html").read_text()
    assert "group/dead_frac" in (site / "search.json").read_text()
    assert not list(site.rglob("*.py"))
    # Nothing is loaded from elsewhere.
    for page in site.rglob("*.html"):
        assert not re.search(r'(src|rel="stylesheet" href)="https?:', page.read_text()), page


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", ["[a](nowhere.md)", "[a](start.md#nowhere)", "::: rntp.rewards.nothing"]
)
def test_what_is_wrong_fails_the_build(copy: Path, wrong: str) -> None:
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    page = copy / "docs/faq.md"
    page.write_text(f"{page.read_text()}\n{wrong}\n")
    assert build(copy).returncode != 0
