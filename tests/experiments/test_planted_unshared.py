"""Models that cannot share, from random weights on the planted corpus: their losses fall."""

import math
import sys
from pathlib import Path

import pytest
from plain_models import plain_model

PLANTED = Path(__file__).parents[2] / "experiments" / "planted"
sys.path.insert(0, str(PLANTED))

import make_corpus  # noqa: E402
from tokenizer import make_tokenizer  # noqa: E402

from rntp.config import Config  # noqa: E402
from rntp.run.log import read_metrics  # noqa: E402
from rntp.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.slow

STEPS = 20


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "corpus"
    make_corpus.write_corpus(folder, seed=3, num_pages=80)
    return folder


@pytest.mark.parametrize("name", ["qwen3-next", "granite-hybrid", "mamba2", "bloom"])
def test_the_losses_of_twenty_steps_are_finite_and_fall(
    planted: Path, tmp_path: Path, name: str
) -> None:
    tokenizer = make_tokenizer()
    plain_model(name, len(tokenizer), scale=0.1).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    raw = {
        "run": {"steps": STEPS, "dir": str(tmp_path / "run"), "seed": 1},
        "model": {"spec": str(tmp_path / name), "dtype": "float32", "device": "cpu"},
        "data": {"source": str(planted), "context_tokens": 96, "docs_per_step": 4},
        "placement": {"positions_per_doc": 2},
        "thought": {"thoughts_per_position": 3, "thought_tokens": 6},
        "reward": {"horizon": 4},
        "objective": {"ntp_weight": 1.0, "continuation_weight": 0.5},
        "optim": {"lr": 1e-2, "warmup_steps": 1},
        "evaluation": {"docs": 0},
    }
    Trainer(Config.parse(raw)).fit()
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == STEPS
    for row in rows:
        assert not row["skipped"]
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, int | float))
    for key in ("loss/total", "loss/ntp", "loss/continuation", "nll/no_think"):
        first, last = (sum(r[key] for r in part) / 4 for part in (rows[:4], rows[-4:]))
        assert last < first - 0.5, key
    # What was drawn is what is trained, cache or none.
    assert all(row["kl/sampler_max_abs"] < 1e-3 for row in rows)
