"""`rntp completion`, tried in the real shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rntp.cli import build_parser, main
from rntp.commands import completion
from rntp.errors import ConfigError


def script(shell: str) -> str:
    return completion.script(build_parser(), shell)


def complete(words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last of some words."""
    (folder / "completion.sh").write_text(script("bash"))
    program = f"""
        source completion.sh
        COMP_WORDS=({" ".join(repr(word) for word in words)})
        COMP_CWORD={len(words) - 1}
        $(complete -p rntp | sed -E 's/.*-F ([^ ]+).*/\\1/') rntp "$2" ""
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    ran = subprocess.run(
        [bash, "-c", program, "bash", words[-2], words[-1]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.strip() for line in ran.stdout.splitlines() if line.strip()]


def test_bash_completes_commands(tmp_path: Path) -> None:
    assert complete(["rntp", "ini"], tmp_path) == ["init"]
    offered = complete(["rntp", ""], tmp_path)
    assert {"train", "eval", "data", "ckpt", "completion"} <= set(offered)


def test_bash_completes_commands_of_commands_and_options(tmp_path: Path) -> None:
    assert complete(["rntp", "data", "si"], tmp_path) == ["simulate"]
    assert set(complete(["rntp", "train", "--re"], tmp_path)) == {"--resume"}
    assert complete(["rntp", "train", "--resume", "au"], tmp_path) == ["auto"]


def test_bash_completes_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert complete(["rntp", "train", "conf"], tmp_path) == ["config.yaml"]
    assert complete(["rntp", "train", "nothing"], tmp_path) == []


def test_zsh_script_names_commands() -> None:
    made = script("zsh")
    assert made.startswith("#compdef rntp")
    assert "simulate:" in made
    zsh = shutil.which("zsh")
    if zsh:
        subprocess.run([zsh, "-n"], input=made, text=True, check=True)


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    assert "complete -o" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["completion", "fish"])
    assert end.value.code == 2


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(ConfigError, match=r"rntp\[completion\]"):
        script("bash")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == "rntp 0.1.0\n"
