"""The whole preparation: steps, near-duplicates, decontamination, kills."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("datatrove", reason="extra `prep`")

from rntp_data_prep import PrepConfig, prepare
from rntp_data_prep.clean import clean
from rntp_data_prep.extract import extract
from rntp_data_prep.sources import pages

from rntp.data.manifest import Manifest
from rntp.errors import DataError

DIGEST = "d" * 16
COMMON = "the of and to a in that is was he for it with as his on be at by i this had not are but"
NOUNS = "river stone market window letter garden teacher engine winter village harbour forest"


def words(text: str) -> list[str]:
    return text.split()


def silent(_: str) -> None:
    pass


def prose(seed: int, sentences: int = 12) -> str:
    """Words that differ for every seed."""
    draw = random.Random(seed)
    found = []
    for _ in range(sentences):
        chosen = [draw.choice((COMMON if n % 2 else NOUNS).split()) for n in range(12)]
        found.append(" ".join(["The", *chosen]) + f" {draw.randrange(10**6)}.")
    return "\n".join(found)


def real_pages(count: int) -> list[str]:
    """Long pages of the sample with little code, cleaned."""
    sample = Path(__file__).parents[2] / "data_prep" / "sample" / "sample.warc.gz"
    found = [extract(page.html) for page in pages(str(sample)) if page.html]
    texts = [clean(text, title)[0] for title, text in found]
    tokens = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
    alphabetic = [sum(t[0].isalpha() for t in found) / len(found) for found in tokens]
    prosaic = sorted(zip(alphabetic, texts, strict=True), reverse=True)
    return [text for _, text in prosaic if len(text) > 4000][:count]


def write_rows(path: Path, texts: list[str]) -> Path:
    rows = [{"url": f"https://e.org/{path.stem}/{n}", "text": t} for n, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, *sources: Path, **changes: Any) -> PrepConfig:
    facts = {
        "sources": [str(source) for source in sources],
        "output": folder / "shards",
        "tokenizer": "words",
        "min_tokens": 20,
        "min_chars": 50,
        "workers": 1,
    }
    return PrepConfig.model_validate({**facts, **changes})


def ledger(folder: Path) -> dict[str, str]:
    text = (folder / "shards" / "rejects.jsonl").read_text(encoding="utf-8")
    return {e["url"]: e["reason"] for e in map(json.loads, text.splitlines())}


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_corpus(tmp_path: Path) -> None:
    sources = [
        write_rows(tmp_path / f"{n}.jsonl", [prose(10 * n + m) for m in range(10)])
        for n in range(5)
    ]
    digests = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        config = settings(tmp_path / str(workers), *sources, workers=workers)
        digests.append(prepare(config, words, DIGEST, silent).digest)
        assert sorted(os.listdir(tmp_path / str(workers))) == ["shards"]
    assert digests[0] == digests[1]


def test_shards_are_read_by_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="not installed")
    source = write_rows(tmp_path / "a.jsonl", [prose(n) for n in range(30)])
    corpus = prepare(settings(tmp_path, source, shard_bytes=1 << 16), words, DIGEST, silent)
    assert len(corpus.shards) > 1
    urls = [str(tmp_path / "shards" / name) for name in corpus.shard_names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == corpus.document_ids
    assert [s["txt"] for s in samples] == [corpus.read(n).text for n in range(30)]
    assert [s["json"] for s in samples] == [corpus.read(n).metadata for n in range(30)]


def test_languages_filters_and_masks(tmp_path: Path) -> None:
    pytest.importorskip("spacy", reason="extra `filters`")
    german = "Der schnelle braune Fuchs springt über den faulen Hund, und das Wetter ist gut. " * 6
    first, second, third = real_pages(3)
    source = write_rows(
        tmp_path / "a.jsonl",
        [
            first,
            german,
            second + "\nWrite to jane.doe@corp.test or to 8.8.8.8 about all of it.",
            "\n".join(["the same line of this page and of the others again."] * 40),
            third + "\nThis sentence has a <think> and a <|im_end|> in the middle of it.",
            "lorem ipsum dolor sit amet and the of " * 30,
        ],
    )
    config = settings(
        tmp_path,
        source,
        languages=["en"],
        filters=["gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality"],
        mask_pii=True,
    )
    corpus = prepare(config, words, DIGEST, silent)
    reasons = ledger(tmp_path)
    assert reasons["https://e.org/a/1"] == "language/de"
    assert reasons["https://e.org/a/3"].startswith("gopher_repetition/")
    assert reasons["https://e.org/a/5"].startswith(("c4_quality/lorem", "gopher_repetition/"))
    assert corpus.num_docs == 3
    assert corpus.funnel["pages"] == 6 == corpus.num_docs + len(reasons)
    assert corpus.funnel["neutralised_markers"] == 2
    assert corpus.funnel["pages_with_masked_addresses"] == 1
    texts = [corpus.read(n).text for n in range(3)]
    assert "email@example.com or to 192.0.2.1" in texts[1]
    assert not any("jane.doe" in text or "8.8.8.8" in text for text in texts)
    assert corpus.read(0).metadata["language"] == "en"


@pytest.mark.slow
def test_urls_are_filtered_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("ahocorasick", reason="extra `filters`")
    urls = ["https://en.wikipedia.org/wiki/Tree", "https://playboy.com/x", ""]
    rows = [{"url": url, "text": prose(n)} for n, url in enumerate(urls)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = prepare(settings(tmp_path, source, filters=["url"]), words, DIGEST, silent)
    assert ledger(tmp_path) == {"https://playboy.com/x": "url/domain"}
    assert [corpus.read(n).metadata["url"] for n in range(2)] == [urls[0], "a.jsonl#3"]
    assert "Public Suffix List" not in caplog.text


def test_near_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("spacy", reason="extra `filters`")
    base = [prose(n, sentences=30) for n in range(12)]
    near = [text.replace(".", ".", 1) + " One more word." for text in base[:4]]
    sources = [
        write_rows(tmp_path / "a.jsonl", base),
        write_rows(tmp_path / "b.jsonl", [*near, base[5], prose(99, sentences=30)]),
    ]
    exact = prepare(settings(tmp_path, *sources), words, DIGEST, silent)
    assert (exact.num_docs, exact.funnel["rejected/duplicate"]) == (17, 1)
    (tmp_path / "m").mkdir()
    corpus = prepare(settings(tmp_path / "m", *sources, dedup="minhash"), words, DIGEST, silent)
    assert corpus.num_docs == 13
    dropped = [corpus.funnel.get(f"rejected/{name}", 0) for name in ("near_duplicate", "duplicate")]
    assert sum(dropped) == 5
    assert dropped[0] >= 4
    kept = {corpus.read(n).text for n in range(13)}
    assert sum(text in kept for text in base[4:]) == 8
    for a, b in zip(base[:4], near, strict=True):
        assert (a in kept) != (b in kept)


def test_evaluation_texts_are_dropped_where_their_answer_is(tmp_path: Path) -> None:
    question = "Natalia sold clips to forty eight of her friends in April and then she sold half"
    answer = "so in May she sold twenty four clips and in all she sold seventy two of them"
    plain = "once upon a midnight dreary while I pondered weak and weary over many a quaint volume"
    (tmp_path / "maths.jsonl").write_text(
        json.dumps({"question": question, "answer": answer})
        + "\n"
        + json.dumps({"question": "short", "answer": "one"})
        + "\n"
    )
    (tmp_path / "poems.jsonl").write_text(json.dumps({"text": plain}) + "\n")
    source = write_rows(
        tmp_path / "a.jsonl",
        [
            prose(1),
            prose(2) + "\n" + question,  # the question alone rewards nothing
            prose(3) + f"\n{question.upper()}, {answer}!",
            prose(4) + "\n" + " ".join(answer.split()[3:]),
            prose(5) + "\n" + plain,
            prose(6) + "\n" + " ".join(plain.split()[:11]),
        ],
    )
    benchmarks = {name: tmp_path / f"{name}.jsonl" for name in ("maths", "poems")}
    corpus = prepare(settings(tmp_path, source, decontaminate=benchmarks), words, DIGEST, silent)
    assert ledger(tmp_path) == {
        "https://e.org/a/2": "contaminated/maths",
        "https://e.org/a/3": "contaminated/maths",
        "https://e.org/a/4": "contaminated/poems",
    }
    assert corpus.num_docs == 3
    report = json.loads((tmp_path / "shards" / "decontamination.json").read_text())
    counts = {
        name: [facts[key] for key in ("items", "too_short", "items_found", "documents_dropped")]
        for name, facts in report.items()
    }
    assert counts == {"maths": [2, 1, 1, 2], "poems": [1, 0, 1, 1]}
    for text, message in (("{", "line 1"), ('{"text": "few words"}', "no item of maths")):
        (tmp_path / "maths.jsonl").write_text(text)
        (tmp_path / "other").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            prepare(
                settings(tmp_path / "other", source, decontaminate=benchmarks),
                words,
                DIGEST,
                silent,
            )


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    sources = [write_rows(tmp_path / f"{n}.jsonl", [prose(n)]) for n in range(3)]
    calls: list[str] = []

    def dying(text: str) -> list[str]:
        calls.append(text)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return text.split()

    with pytest.raises(KeyboardInterrupt):
        prepare(settings(tmp_path, *sources), dying, DIGEST, silent)
    parts = sorted((tmp_path / ".shards.work" / "parts").glob("*/kept.jsonl"))
    assert len(parts) == 3
    parts[0].write_text(parts[0].read_text().replace("river", "teh"))
    calls.clear()

    def counting(text: str) -> list[str]:
        calls.append(text)
        return text.split()

    said: list[str] = []
    corpus = prepare(settings(tmp_path, *sources), counting, DIGEST, said.append)
    assert len(calls) == 2  # the damaged one and the one that was cut
    assert "1 of 3 sources are prepared already" in said
    assert "teh" not in corpus.read(0).text
    assert not (tmp_path / ".shards.work").exists()


def test_tasks_that_run_elsewhere_are_waited_for_by_the_same_command(tmp_path: Path) -> None:
    sources = [write_rows(tmp_path / f"{n}.jsonl", [prose(n)]) for n in range(3)]
    submitted = []

    def submit(steps: list, tasks: int, logs: Path) -> None:
        submitted.append((steps, tasks))

    with pytest.raises(DataError, match="3 of 3 sources are not prepared yet; when their tasks"):
        prepare(settings(tmp_path, *sources), words, DIGEST, silent, submit)
    [(steps, tasks)] = submitted
    for rank in range(tasks):
        data = None
        for step in steps:
            data = step(data, rank, tasks)
        assert len(list(data)) == 1  # type: ignore[arg-type]
        steps[0].books.__init__(Path())
    assert prepare(settings(tmp_path, *sources), words, DIGEST, silent, submit).num_docs == 3
    assert len(submitted) == 1


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_gives_the_same_corpus(
    tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    sources = [
        write_rows(tmp_path / f"{n}.jsonl", [prose(100 * n + m, 40) for m in range(60)])
        for n in range(6)
    ]
    facts = {
        "sources": [str(s) for s in sources],
        "tokenizer": str(model_folders["llama"]),
        "workers": 2,
    }
    digests = []
    for name in ("undisturbed", "killed"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**facts, "output": str(tmp_path / name / "shards")}))
        command = [sys.executable, "-m", "rntp.cli", "data", "prep", str(path)]
        kills = 0
        while name == "killed" and kills < 3:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
            parts = tmp_path / name / ".shards.work" / "parts"
            for _ in range(4000):  # a slow machine takes its time
                if process.poll() is not None or len(list(parts.glob("*/record.json"))) > kills:
                    break
                time.sleep(0.02)
            assert process.poll() is None, "it ended before it could be killed"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert (name == "killed") == ("are prepared already" in done.stderr)
        digests.append(Manifest.load(tmp_path / name / "shards").digest)
        assert sorted(os.listdir(tmp_path / name)) == ["shards"]
    assert digests[0] == digests[1]
