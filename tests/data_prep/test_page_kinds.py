"""Every kind of file that goes wrong: the right texts or a counted reason, prepared and live."""

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datatrove", reason="extra `prep`")

from kinds import Case
from kinds_archives import archives
from kinds_files import files, tables
from rntp_data_prep import PrepConfig, prepare
from rntp_data_prep.texts import text_id

from rntp.cli import main
from rntp.data.live import Live, Reading
from rntp.data.manifest import Manifest
from rntp.errors import DataError

CASES = [*archives(), *files(), *(tables() if find_spec("pyarrow") else ())]
KEPT = [case for case in CASES if not case.refused]
REFUSED = [case for case in CASES if case.refused]


def ids(text: str) -> torch.Tensor:
    """A token for every three characters: of any script, enough for the defaults of both."""
    return torch.zeros(len(text) // 3, dtype=torch.int64)


def written(folder: Path, case: Case) -> Path:
    path = folder / case.name
    path.write_bytes(case.data)
    return path


def prepared(folder: Path, some: list[Case]) -> Manifest:
    fields: dict[str, Any] = {"text_field": {}, "html_field": {}}
    for case in some:
        for name in fields.keys() & case.options.keys():
            fields[name][str(folder / case.name)] = case.options[name]
    [damaged] = {case.options.get("damaged", "refuse") for case in some}
    config = PrepConfig(
        sources=tuple(str(written(folder, case)) for case in some),
        output=folder / f"corpus-{damaged}",
        tokenizer="thirds",
        workers=1,
        damaged=damaged,  # type: ignore[arg-type]
        **fields,
    )
    return prepare(config, ids, "d" * 16, lambda _: None)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By source: texts and reasons, and the notes of all; of one preparation for each setting."""
    folder = tmp_path_factory.mktemp("kinds")
    found: dict[str, Any] = {"folder": folder, "notes": Counter(), "funnels": Counter()}
    for damaged in ("refuse", "use"):
        some = [case for case in KEPT if case.options.get("damaged", "refuse") == damaged]
        manifest = prepared(folder, some)
        for case in some:
            found[case.name] = [], Counter()
        for n in range(manifest.num_docs):
            document = manifest.read(n)
            found[str(document.metadata["source"])][0].append(document.text)
        ledger = (manifest.folder / "rejects.jsonl").read_text(encoding="utf-8")
        for entry in map(json.loads, ledger.splitlines()):
            found[entry["source"]][1][entry["reason"]] += 1
        found["funnels"].update(manifest.funnel)
    return found


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.name)
def test_the_right_texts_come_out_prepared_and_live(case: Case, corpora: dict[str, Any]) -> None:
    texts, reasons = corpora[case.name]
    assert texts == case.texts
    assert reasons == case.reasons
    live = Live(str(corpora["folder"] / case.name), **case.options)
    reading = Reading(live, ids)
    documents = list(reading.documents())
    assert [document.id for document in documents] == [text_id(text) for text in case.texts]
    assert reading.counts == {
        "pages": len(case.texts) + sum(case.reasons.values()),
        "kept": len(case.texts),
        **{f"rejected/{reason}": count for reason, count in sorted(case.reasons.items())},
        "neutralised_markers": 0,
        **case.notes,
    }


def test_a_preparation_counts_what_live_reading_counts(corpora: dict[str, Any]) -> None:
    expected: Counter[str] = Counter()
    for case in KEPT:
        expected.update(case.notes)
        expected.update({f"rejected/{reason}": count for reason, count in case.reasons.items()})
        expected["pages"] += len(case.texts) + sum(case.reasons.values())
        expected["kept"] += len(case.texts)
    assert +corpora["funnels"] == expected
    assert expected["pages"] > 300


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_damage_is_refused_with_the_name_prepared_and_live(case: Case, tmp_path: Path) -> None:
    pattern = rf"(?s){case.name.split(' ')[0]} .*{case.refused}"
    with pytest.raises(DataError, match=pattern) as first:
        prepared(tmp_path, [case])
    with pytest.raises(DataError, match=pattern) as second:
        list(Reading(Live(str(tmp_path / case.name)), ids).documents())
    assert str(first.value) == str(second.value)
    assert first.value.exit_code == 3


@pytest.mark.parametrize("name", ["a.wet", "a.warc.gz", "a.jsonl.zst", "a.parquet", "a.tar"])
def test_the_command_ends_with_3_and_the_file_for_damage_of_any_kind(
    name: str,
    tmp_path: Path,
    model_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    path.write_bytes(b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 99\r\n\r\nText")
    facts = {"sources": [str(path)], "tokenizer": str(model_folders["llama"])}
    facts["output"] = str(tmp_path / "out")
    (tmp_path / "prep.yaml").write_text(json.dumps(facts))
    for command in ("prep", "preview"):
        with pytest.raises(SystemExit) as ended:
            main(["data", command, str(tmp_path / "prep.yaml")])
        assert ended.value.code == 3
        said = capsys.readouterr().err
        assert f"{path} is truncated or damaged at byte 0, after 0 pages: the record of " in said
        assert "4 of 99 bytes" in said
        assert "Traceback" not in said


def test_fields_of_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    facts = {"sources": [str(tmp_path / "a.jsonl")], "output": tmp_path / "o", "tokenizer": "x"}
    config = PrepConfig(**facts, html_field={"*/b.jsonl": "doc"})
    with pytest.raises(DataError, match=r"html_field: no source is named \*/b\.jsonl"):
        config.source_files()
    config = PrepConfig(**facts, text_field={"*/a.jsonl": "body"})
    [source] = config.source_files()
    assert config.options(source).text_field == "body"
    assert config.options("other").text_field == ""
