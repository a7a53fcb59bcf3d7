import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("datatrove", reason="extra `prep`")

from rntp.cli import main


def test_preview_shows_what_is_kept_and_why_the_rest_is_not(
    tmp_path: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    long = "<p>" + "A sentence of some words that says nothing. " * 60 + "</p>"
    rows = [{"url": "u/long", "html": f"<h1>T</h1>{long}"}, {"url": "u/short", "html": "<p>x"}]
    rows.append({"url": "u/none"})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    config = tmp_path / "prep.yaml"
    facts = {"sources": [str(path)], "output": str(tmp_path / "out")}
    config.write_text(yaml.safe_dump({**facts, "tokenizer": str(model_folders["llama"])}))
    main(["data", "preview", str(config), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(row["url"], row["kept"], row["reason"]) for row in found] == [
        ("u/long", True, ""),
        ("u/short", False, "too_few_chars"),
        ("u/none", False, "no_text_field"),
    ]
    assert found[0]["text"].startswith("T\n\nA sentence")
    assert found[0]["read"].startswith("<h1>T</h1>")
    assert not (tmp_path / "out").exists()
    main(["data", "preview", str(config), "--docs", "2"])
    printed = capsys.readouterr().out
    assert "u/short (a.jsonl): dropped: too_few_chars" in printed
    assert "  text │ A sentence" in printed

    main(["data", "prep", str(config)])
    capsys.readouterr()
    main(["data", "stats", str(tmp_path / "out"), "--plot", str(tmp_path / "lengths.png")])
    printed = capsys.readouterr().out
    assert "rejected/duplicate" in printed
    assert "█" * 40 in printed
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
