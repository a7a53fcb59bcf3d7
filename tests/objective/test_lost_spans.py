"""Lost spans read again behind a memory: where they lie, what they say, and who may ask."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.errors import ConfigError
from rntp.evaluation.pieces import written
from rntp.model import LanguageModel, load_model
from rntp.objective.lost_spans import open_lost_spans, span_start
from rntp.rng import uniform
from rntp.run.log import read_metrics, read_rollouts
from rntp.trainer import Trainer
from rntp.training.estimate import Tokens
from rntp.training.preflight import check_names
from rntp.types import Rollout

WINDOW, HORIZON = 6, 4


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    sets = [f"reading.window={WINDOW}", f"reward.horizon={HORIZON}", "model.dtype=float32"]
    return Config.parse(raw, [*sets, "reward.shadows=[lost_span]"])


def test_spans_lie_in_what_is_lost_each_place_as_likely() -> None:
    assert span_start(30, 6, 4, 0.0) == 1
    assert span_start(30, 6, 4, 0.9999) == 20  # and ends where the window begins
    counts = torch.bincount(
        torch.tensor([span_start(15, 6, 4, n / 1000) for n in range(1000)]), minlength=6
    )
    assert counts.tolist() == [0, 200, 200, 200, 200, 200]
    assert span_start(11, 6, 4, 0.5) == 1
    assert span_start(10, 6, 4, 0.5) is None


def logp(model: LanguageModel, ids: list[int]) -> float:
    """log p of the last H tokens of a sequence, by the plain model."""
    tokens = torch.tensor(ids)
    with torch.no_grad():
        found = torch.log_softmax(model.hf(tokens[None]).logits[0, :-1], -1)
    return float(found.gather(1, tokens[1:, None])[-HORIZON:].sum())


def test_a_lost_span_is_what_plain_forwards_say(config: Config) -> None:
    model, plain = load_model(config.model.spec), load_model(config.model.spec)
    plain.hf.set_attn_implementation("sdpa")
    pages = open_corpus(config, open_data(config), model.tokenizer).train
    nothing = torch.zeros(0)
    rollouts = []
    for context, positions in ((pages[0], (9, 40)), (pages[1], (30,))):
        groups = tuple(
            (written(context.token_ids[2:5]), replace(written(context.token_ids[7:8])))
            for _ in positions
        )
        rollouts.append(Rollout(context, positions, groups, nothing, nothing))
    spans = open_lost_spans(model, config)
    found = spans(rollouts)["lost_span"]
    assert found.shape == (3, 2)
    assert found[0].tolist() == [0, 0]  # at 9 nothing as long as a span is lost
    opened, closed, tokens = model.think_open_id, model.think_close_id, 0
    for row, (context, position) in zip(found[1:], ((pages[0], 40), (pages[1], 30)), strict=True):
        ids = context.token_ids.tolist()
        draw = uniform(config.run.seed, "lost_span", context.ordinal, position).item()
        a = span_start(position, WINDOW, HORIZON, draw)
        assert a is not None
        behind = ids[max(a - WINDOW, 0) : a + HORIZON]
        bare = [model.start_id, *behind]
        for g, memory in enumerate((ids[2:5], ids[7:8])):
            read = [model.start_id, opened, *memory, closed, *behind]
            tokens += len(read) - 1
            assert float(row[g]) == pytest.approx(logp(plain, read) - logp(plain, bare), abs=1e-4)
        tokens += len(bare) - 1
    assert spans.num_tokens(rollouts) == tokens
    silent = Config.parse(config.model_dump(mode="json"), ["reward.shadows=[log_ratio]"])
    assert open_lost_spans(model, silent)(rollouts) == {}
    assert open_lost_spans(model, silent).num_tokens(rollouts) == 0


def test_equal_memories_are_worth_the_same(config: Config) -> None:
    model = load_model(config.model.spec)
    context = open_corpus(config, open_data(config), model.tokenizer).train[0]
    groups = ((written(context.token_ids[:8]), written(context.token_ids[:8])),)
    nothing = torch.zeros(0)
    same = open_lost_spans(model, config)([Rollout(context, (40,), groups, nothing, nothing)])
    assert same["lost_span"][0, 0] == same["lost_span"][0, 1] != 0


def test_a_run_learns_from_it_and_logs_it(config: Config) -> None:
    driven = Config.parse(
        config.model_dump(mode="json"), ["reward.scheme={log_ratio: 1, lost_span: 0.5}"]
    )
    Trainer(driven).fit()
    rows = list(read_rollouts(driven.run.dir, 1))
    for row in rows:
        said = row["rewards"]
        assert row["reward"] == pytest.approx(said["log_ratio"] + 0.5 * said["lost_span"], abs=1e-5)
    assert len({row["rewards"]["lost_span"] for row in rows}) > 1
    with_spans = read_metrics(driven.run.dir)[0]["compute/tflop"]
    plain = Config.parse(
        config.model_dump(mode="json"),
        ["reward.shadows=[log_ratio]", f"run.dir={driven.run.dir.with_name('plain')}"],
    )
    Trainer(plain).fit()
    assert with_spans > read_metrics(plain.run.dir)[0]["compute/tflop"]
    assert Tokens.of(driven).asked > Tokens.of(plain).asked == 0


@pytest.mark.parametrize("setting", ["reading.window=null", "placement.interleaved=true"])
def test_without_anything_lost_it_is_refused(config: Config, setting: str) -> None:
    with pytest.raises(ConfigError, match="lost_span reads again what a reading window has lost"):
        check_names(Config.parse(config.model_dump(mode="json"), [setting]))
