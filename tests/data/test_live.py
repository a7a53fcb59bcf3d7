"""Training on pages that were not prepared: the same contexts every time, or a refusal."""

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import same_shards, tiny_run, write_corpus
from many_ranks import run_ranks, values

from rntp.cli import main
from rntp.config import Config
from rntp.data import live_stream
from rntp.data.live import Live, Reading, is_live
from rntp.data.live_stream import BLOCK, LiveHeldout, LiveStream
from rntp.data.stream import is_heldout
from rntp.errors import CheckpointError, ConfigError, DataError
from rntp.run.log import read_metrics
from rntp.runtime.ranks import open_ranks
from rntp.trainer import Trainer

WORDS = 120


def prose(n: int, words: int = WORDS) -> str:
    """Document n: words n·1000, n·1000 + 1, … without anything that cleaning would touch."""
    return " ".join(f"w{1000 * n + i}" for i in range(words))


def write_lines(path: Path, numbers: range, words: int = WORDS) -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"url": f"https://e.org/{n}", "title": f"T{n}", "text": prose(n, words)} for n in numbers
    ]
    rows.insert(1, {"url": "short", "title": "", "text": "too short"})  # never a document
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encode(text: str) -> torch.Tensor:
    return torch.tensor([int(word.strip("w")) for word in text.split()], dtype=torch.int64)


def stream(source: object, **changes: Any) -> LiveStream:
    settings: dict[str, Any] = {
        "seed": 5,
        "context_tokens": 32,
        "min_document_tokens": 16,
        "heldout_fraction": 0.25,
    }
    return LiveStream(Live(str(source)), encode, **{**settings, **changes})


def facts(context: Any) -> tuple[Any, ...]:
    return (
        context.ordinal,
        context.document_id,
        context.start,
        context.visit,
        context.title,
        tuple(context.token_ids.tolist()),
    )


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_stream, "BLOCK", 8)


def test_what_is_live_and_what_is_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    for source in ("hf:a/b", "hf:a/b:test", "c/*.warc.gz", "x.parquet", "https://e.org/a.jsonl"):
        assert is_live(source), source
    for source in ("build/web", "hf://datasets/a/b", tmp_path / "folder.tar", {"x.tar": 1.0}):
        assert not is_live(source), source
    with pytest.raises(ConfigError, match=r"behind a URL are not read.*rntp data prep prep\.yaml"):
        Live("https://e.org/a.jsonl")
    with pytest.raises(DataError, match=r"there is no source .*correct `data\.source`"):
        Live(str(tmp_path / "none.jsonl"))


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_contexts_are_a_function_of_the_ordinal(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", range(50))
    forwards = stream(path)
    found = [facts(forwards[n]) for n in range(120)]
    again = stream(path)
    for n in (119, 3, 64, 0, 40, 41, 118):  # in any order, by reading again
        assert facts(again[n]) == found[n]
    assert [facts(stream(path, seed=6)[n]) for n in range(30)] != found[:30]
    assert all(tokens == tuple(range(tokens[0], tokens[0] + 32)) for *_, tokens in found)


@pytest.mark.usefixtures("small_blocks")
def test_every_document_comes_once_a_pass_shuffled_within_blocks(tmp_path: Path) -> None:
    live = stream(write_lines(tmp_path / "a.jsonl", range(50)))
    first = [live[n] for n in range(50)]
    total = live.num_documents
    assert total == sum(context.visit == 0 for context in first) < 50
    places = [int(context.title[1:]) for context in first[:total]]
    assert len(set(places)) == total
    assert places != sorted(places)
    in_order = sorted(places)
    for b in range(0, total, 8):
        assert sorted(places[b : b + 8]) == in_order[b : b + 8]
    second = [live[total + n] for n in range(total)]
    assert {c.visit for c in second} == {1}
    assert {c.document_id for c in second} == {c.document_id for c in first[:total]}
    assert [c.title for c in second] != [c.title for c in first[:total]]


@pytest.mark.usefixtures("small_blocks")
def test_splits_are_those_of_a_corpus_and_leave_nothing_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", range(60))
    live = stream(path)
    _ = live[60]
    train = {live[n].document_id for n in range(live.num_documents)}
    settings = {"seed": 5, "context_tokens": 32, "min_document_tokens": 16}
    held = LiveHeldout(Live(str(path)), encode, count=100, heldout_fraction=0.25, **settings)
    heldout = {held[n].document_id for n in range(held.num_documents)}
    assert len(train) + len(heldout) == 60
    assert not train & heldout
    assert all(is_heldout(name, 0.25) for name in heldout)
    few = LiveHeldout(Live(str(path)), encode, count=3, heldout_fraction=0.25, **settings)
    assert [facts(few[n]) for n in range(3)] == [facts(held[n]) for n in range(3)]
    with pytest.raises(DataError, match=r"none of the 61 pages .* held-out document"):
        LiveHeldout(Live(str(path)), encode, count=3, heldout_fraction=0.0, **settings)
    with pytest.raises(DataError, match=r"none of the 61 pages .* train document of 500 tokens"):
        _ = stream(path, min_document_tokens=500)[0]


@pytest.mark.usefixtures("small_blocks")
def test_pieces_give_every_token_once_and_a_few_documents_again_and_again(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", range(20), words=100)
    live = stream(path, windows="all", heldout_fraction=0.0)
    _ = live[100]
    assert live.num_documents == 20 * 4  # 100 tokens in windows of 32
    tokens = [t for n in range(80) for t in live[n].token_ids.tolist()]
    assert sorted(tokens) == sorted(1000 * n + i for n in range(20) for i in range(100))
    with pytest.raises(ConfigError, match=r"data\.windows: all cuts documents"):
        stream(path, windows="all", min_document_tokens=30)
    few = stream(path, max_documents=11, heldout_fraction=0.0)
    titles = [few[n].title for n in range(22)]
    assert sorted(titles[:11]) == sorted(f"T{n}" for n in range(11)) == sorted(titles[11:])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("windows", ["one", "all"])
@pytest.mark.parametrize("frontier", [1, 8, 13, 50, 173])
def test_a_place_brings_another_stream_to_the_same_contexts(
    tmp_path: Path, windows: str, frontier: int
) -> None:
    path = write_lines(tmp_path / "a.jsonl", range(50))
    whole = stream(path, windows=windows)
    found = [facts(whole[n]) for n in range(frontier + 60)]
    place = stream(path, windows=windows).place(frontier, lambda: None)
    resumed = stream(path, windows=windows)
    _ = resumed[0]  # as a start-up does
    polled: list[int] = []
    place = json.loads(json.dumps(place))
    assert resumed.go_to(place, lambda: polled.append(1)) == []
    assert [facts(resumed[n]) for n in range(frontier, frontier + 60)] == found[frontier:]
    assert facts(resumed[0]) == found[0]
    assert stream(path).place(0, lambda: None) is None


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("frontier", [1, 13, 50])
def test_what_became_of_the_pages_is_counted_across_a_resume(tmp_path: Path, frontier: int) -> None:
    path = write_lines(tmp_path / "a.jsonl", range(50))
    path.write_bytes(path.read_bytes() + b'{"text": "cut\n' + b'{"text": 7}\n')
    whole = stream(path)
    _ = whole[frontier - 1]
    place = json.loads(json.dumps(whole.place(frontier, lambda: None)))
    resumed = stream(path)
    assert resumed.go_to(place, lambda: None) == []
    assert resumed.funnel == whole.funnel
    reading = Reading(Live(str(path)), encode)
    assert sum(1 for _ in reading.documents()) == 50
    assert reading.counts == {
        "pages": 53,
        "kept": 50,
        "rejected/malformed_line": 1,
        "rejected/no_text_field": 1,
        "rejected/too_few_chars": 1,
        "neutralised_markers": 0,
    }


def test_fields_and_damage_are_settings_of_live_pages(raw: dict, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl.gz"
    rows = [{"page": {"body": prose(n)}} for n in range(40)]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path.write_bytes(packed[:-12])
    sets = [f"data.source={path}", "run.steps=1"]
    with pytest.raises(DataError, match=r"b\.jsonl\.gz is truncated or damaged .*damaged: use"):
        fit(raw, *sets)
    sets.append("data.pages={damaged: use}")
    with pytest.raises(DataError, match=r"the fields page\.body: name .*`text_field`"):
        fit(raw, *sets)
    trainer = fit(raw, *sets, "data.pages={damaged: use, text_field: page.body}")
    assert trainer.corpus.funnel["rejected/damaged"] == 1
    assert trainer.corpus.funnel["kept"] >= 30
    corpus = write_corpus(tmp_path / "corpus")
    sets = [f"data.source={corpus}", f"run.dir={tmp_path / 'other'}"]
    config = Config.parse(raw, [*sets, "data.pages={damaged: use}"])
    with pytest.raises(ConfigError, match=r"data\.pages says how pages are read that train unprep"):
        Trainer(config)


def test_a_resume_passes_over_pages_without_tokenising_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", range(1, 3 * BLOCK + 1), words=50)
    calls: list[str] = []

    def counting(text: str) -> torch.Tensor:
        calls.append(text)
        return encode(text).repeat(3)

    def opened() -> LiveStream:
        return LiveStream(
            Live(str(path)),
            counting,
            seed=5,
            context_tokens=32,
            min_document_tokens=16,
            heldout_fraction=0.0,
        )

    place = opened().place(2 * BLOCK + 5, lambda: None)
    assert len(calls) == 3 * BLOCK
    calls.clear()
    assert opened().go_to(place or {}, lambda: None) == []
    assert len(calls) == BLOCK


@pytest.mark.usefixtures("small_blocks")
def test_a_changed_source_is_told_from_the_one_that_was_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", range(50))
    place = stream(path).place(20, lambda: None)
    assert place is not None
    old = path.read_text().splitlines(keepends=True)

    def differences(lines: list[str]) -> list[str]:
        path.write_text("".join(lines))
        return stream(path).go_to(place, lambda: None)

    changed = [*old[:5], old[5].replace("w4001", "w4002"), *old[6:]]
    [line] = differences(changed)
    assert line.startswith(f"pages: {place['before'][0]} pages with hash")
    inside = place["before"][0] + 2
    one = old[inside].replace(" w", " w9", 1)
    [line] = differences([*old[:inside], one, *old[inside + 1 :]])
    assert line.startswith(f"pages: {place['after'][0]} pages with hash")
    [line] = differences(old[:4])
    assert line.endswith("here")
    assert "there, 4 pages" in line
    assert differences([*old, old[2]]) == []  # what was added later was not read
    path.write_text("".join(old))
    other = {**place, "extractor": "another 1.0"}
    assert stream(path).go_to(other, lambda: None)[0].startswith("extractor: another 1.0 there")
    path.write_text("".join(old))
    live = stream(path)
    _ = live[60]
    in_second_block = 3 * live.num_documents + 9
    path.write_text("".join([old[0].replace("w1 ", "w2 "), *old[1:]]))
    with pytest.raises(DataError, match="now that they are read again"):
        _ = live[in_second_block]


def test_a_cut_file_ends_the_reading_with_its_name(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "a.jsonl", range(50)).read_bytes()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(rows)[:-200])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is truncated or damaged"):
        _ = stream(path)[0]


@pytest.mark.usefixtures("small_blocks")
def test_what_breaks_off_does_not_pass_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = stream(write_lines(tmp_path / "a.jsonl", range(50)))
    expected = [facts(live[n]) for n in range(30)]
    whole, broken = Live.pages, [True]

    def pages(self: Live, tally: Any = None) -> Any:
        for n, page in enumerate(whole(self, tally)):
            if n == 20 and broken[0]:
                raise DataError("the line went dead")
            yield page

    monkeypatch.setattr(Live, "pages", pages)
    again = stream(tmp_path / "a.jsonl")
    assert facts(again[3]) == expected[3]
    for _ in range(3):
        with pytest.raises(DataError, match="the line went dead"):
            _ = again[29]
    broken[0] = False
    assert facts(again[29]) == expected[29]


@pytest.mark.slow
def test_a_pass_over_the_sample_has_the_documents_of_its_preparation(tmp_path: Path) -> None:
    pytest.importorskip("datatrove", reason="extra `prep`")
    from rntp_data_prep import PrepConfig, prepare

    sample = Path(__file__).parents[2] / "data_prep" / "sample" / "sample.warc.gz"

    def words(text: str) -> torch.Tensor:
        return torch.arange(len(text.split()))

    settings = {"sources": [str(sample)], "output": tmp_path / "c", "tokenizer": "words"}
    manifest = prepare(PrepConfig(**settings), words, "d" * 16, lambda _: None)
    live = LiveStream(
        Live(str(sample)),
        words,
        seed=0,
        context_tokens=32,
        min_document_tokens=1,
        heldout_fraction=0.0,
    )
    _ = live[manifest.num_docs]
    assert live.num_documents == manifest.num_docs > 100
    found = {live[n].document_id for n in range(live.num_documents)}
    assert found == set(manifest.document_ids)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_datasets_streams_gives_the_contexts_of_the_file(tmp_path: Path, form: str) -> None:
    pytest.importorskip("datasets", reason="extra `hf`")
    lines = write_lines(tmp_path / "d" / "train.jsonl", range(40))
    expected = stream(lines)
    wanted = [facts(expected[n])[1:] for n in range(60)]
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        table = pyarrow.Table.from_pylist(rows)
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "d" / "train.parquet")
        lines.unlink()
    live = stream(f"hf:{tmp_path / 'd'}")
    assert [facts(live[n])[1:] for n in range(60)] == wanted
    with pytest.raises(DataError, match=r"hf:.*nosuch cannot be read"):
        _ = stream(f"hf:{tmp_path / 'd'}:nosuch")[0]


def test_a_missing_reader_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    load = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("datasets", "chardetng_py", "pyarrow"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ConfigError, match=r"needs datasets, .*rntp\[hf\]"):
        _ = stream("hf:a/b")[0]
    (tmp_path / "a.html").write_bytes("<p>Bäcker, süß".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"needs chardetng_py, .*rntp\[prep\]"):
        _ = stream(tmp_path / "a.html")[0]
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"needs pyarrow, .*rntp\[parquet\]"):
        _ = stream(tmp_path / "a.parquet")[0]


@pytest.fixture
def raw(tmp_path: Path, model_folders: dict[str, Path]) -> dict:
    path = write_lines(tmp_path / "pages" / "a.jsonl", range(40))
    raw = tiny_run(model_folders["llama"], path, tmp_path / "run")
    raw["evaluation"] = {"docs": 2, "thoughts_per_position": 1}
    return raw


def fit(raw: dict, *sets: str, **options: Any) -> Trainer:
    trainer = Trainer(Config.parse(raw, list(sets)), **options)
    trainer.fit()
    return trainer


def numbers(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in read_metrics(folder)
    ]


@pytest.mark.usefixtures("small_blocks")
def test_a_run_on_live_pages_resumes_bit_for_bit(raw: dict, tmp_path: Path) -> None:
    whole = fit(raw, f"run.dir={tmp_path / 'whole'}").config.run.dir
    fit(raw, "run.steps=2", "evaluation.docs=2")
    halves = fit(raw).config.run.dir
    assert numbers(whole) == numbers(halves)
    assert len({row["data/digest"] for row in numbers(whole)}) == 4
    last = [folder / "checkpoints" / "step_00000004" for folder in (whole, halves)]
    same_shards(*last)
    threads = fit(raw, f"run.dir={tmp_path / 'threads'}", "data.workers=2").config.run.dir
    assert numbers(whole) == numbers(threads)
    log = (whole / "log.txt").read_text()
    assert log.count("shuffled within blocks of neighbouring documents only") == 1
    assert "rntp data prep prep.yaml" in log
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["data_guarantee"].startswith("live pages: read as it comes")


def train(raw: dict, sets: list[str]) -> None:
    config = Config.parse(raw, sets)
    with open_ranks(config) as ranks:
        Trainer(config, ranks=ranks).fit()


@pytest.mark.slow
def test_two_ranks_read_the_contexts_of_one_and_go_on_alone(raw: dict, tmp_path: Path) -> None:
    one = fit(raw, f"run.dir={tmp_path / 'one'}").config.run.dir
    sets = [f"run.dir={tmp_path / 'two'}"]
    values(run_ranks(2, tmp_path / "ranks", train, raw, [*sets, "run.steps=2"]))
    fit(raw, *sets)
    digests = [row["data/digest"] for row in read_metrics(one)]
    assert len(set(digests)) == 4
    assert [row["data/digest"] for row in read_metrics(tmp_path / "two")] == digests


@pytest.mark.usefixtures("small_blocks")
def test_a_changed_source_stops_the_resume_or_begins_a_segment(raw: dict, tmp_path: Path) -> None:
    fit(raw, "run.steps=2")
    path = Path(raw["data"]["source"])
    old = path.read_text()
    path.write_text(old.replace("w3001", "w3002"))
    with pytest.raises(CheckpointError, match=r"pages: \d+ pages with hash .*\n.*--accept-data-ch"):
        fit(raw, "run.steps=3")
    trainer = fit(raw, "run.steps=3", accept_data_change=True)
    assert [segment["step"] for segment in trainer.state.segments] == [0, 2]
    fit(raw, "run.steps=4")
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    # From a live source to a corpus is another corpus.
    corpus = write_corpus(tmp_path / "corpus")
    with pytest.raises(CheckpointError, match=r"corpus: .* there"):
        fit(raw, "run.steps=5", f"data.source={corpus}")


def test_what_live_pages_cannot_do_is_refused_with_the_remedy(
    raw: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = raw["data"]["source"]
    for sets, match in (
        (["data.replay_docs=1"], r"data\.replay_docs goes back .*rntp data prep prep\.yaml"),
        (["data.workers={process: 1}"], "set it to 1, which are threads"),
        ([f"data.source={{{source}: 1, build/web: 1}}"], "which a mixture cannot do; prepare"),
        ([f"evaluation.source={source}"], r"which evaluation\.source cannot do; prepare"),
    ):
        with pytest.raises(ConfigError, match=match):
            Trainer(Config.parse(raw, sets))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    for command in (["verify", source], ["stats", source], ["simulate", str(path)]):
        with pytest.raises(SystemExit) as ended:
            main(["data", *command])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert f"which rntp data {command[0]} cannot do; prepare it" in said
        assert "rntp data prep prep.yaml" in said


def test_the_command_that_prepares_is_a_preparation(tmp_path: Path) -> None:
    import shlex

    from rntp.data.live import prepare_command

    source = str(write_lines(tmp_path / "it's" / "a.jsonl", range(3)))
    words = list(islice(shlex.split(prepare_command(source, "package:x")), 2, 5))
    facts = yaml.safe_load("\n".join(words))
    assert facts == {"sources": [source], "output": "build/live", "tokenizer": "package:x"}
