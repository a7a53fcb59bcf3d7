"""How long a dry run says that a step takes, beside steps that were made."""

import statistics
from pathlib import Path

import pytest
from conftest import tiny_run

from rntp.bench import duration
from rntp.bench.duration import measure_step
from rntp.config import Config
from rntp.model import load_model
from rntp.run.log import read_metrics
from rntp.trainer import Trainer
from rntp.training.estimate import Shape, full_flop


@pytest.mark.slow
def test_a_measured_step_takes_about_what_a_step_takes(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    """Within a factor of eight, on cores that others use, too; it is much closer on quiet ones."""
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 6
    raw["thought"] |= {"thought_tokens": 16, "thoughts_per_position": 8}
    raw["evaluation"] = {"docs": 0}
    config = Config.parse(raw)
    measured = measure_step(config)
    Trainer(config).fit()
    made = statistics.median(row["time/step_s"] for row in read_metrics(config.run.dir)[1:])
    assert 1 / 8 < measured.seconds / made < 8
    assert measured.layers == (1, 2)  # the tiny model has no more
    assert measured.runs >= 2


def test_what_a_layer_adds_counts_for_each(
    model_folders: dict[str, Path], corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A step of 0.5 s and 0.1 s a layer, of which two are there: 0.5 + 2 · 0.1 s."""

    class Step:
        def __init__(self, config: Config, layers: int, docs: int) -> None:
            assert docs == 3  # those of a step, up to what decodes together
            self._layers, self._runs = layers, 0
            self.shape, self.flop = None, 3.0

        def seconds(self) -> float:
            self._runs += 1
            return 0.5 + 0.1 * self._layers + (5.0 if self._runs == 1 else 0.0)

    monkeypatch.setattr(duration, "_OneStep", Step)
    monkeypatch.setattr(duration, "full_flop", lambda config, shape: 6.0)
    config = Config.parse(tiny_run(model_folders["llama"], corpus, tmp_path / "run"))
    found = measure_step(config)
    # Twice: the config's step has twice the products of the plain one that ran.
    assert found.seconds == pytest.approx(2 * 0.7)
    assert found.spread == pytest.approx(0)


def test_training_without_thoughts_has_an_estimate_too(
    model_folders: dict[str, Path], corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["thought"]["thoughts_per_position"] = 0
    raw["objective"] = {"pg_weight": 0, "continuation_weight": 0, "ntp_weight": 1}
    plain = Config.parse(raw)
    thinking = Config.parse(tiny_run(model_folders["llama"], corpus, tmp_path / "other"))
    shape = Shape.of(load_model(plain.model.spec).hf)  # of two layers, as the deeper of what runs

    class Counted(duration._OneStep):
        def seconds(self) -> float:
            """A second for each floating-point operation, of a step that is made all the same."""
            assert super().seconds() > 0
            return self.flop

    monkeypatch.setattr(duration, "_OneStep", Counted)
    for config in (plain, thinking):
        assert measure_step(config).seconds == pytest.approx(full_flop(config, shape))
    assert full_flop(plain, shape) < 0.5 * full_flop(thinking, shape)
