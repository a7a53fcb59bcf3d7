"""The table of metrics is complete: it has every key that runs write, and no other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_run, write_corpus
from plain_models import save_plain
from scripted_server import MODEL, honest, serving
from vllm_scripted import Scripted, starting

from rntp.config import Config
from rntp.gate import along
from rntp.rollout.store import engine
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.sampler import Sampler
from rntp.rollout.vllm import environment
from rntp.rollout.vllm.engine import VllmEngine
from rntp.run.log import read_metrics
from rntp.run.metric_keys import METRICS, Metric, find
from rntp.trainer import Trainer


@pytest.fixture(scope="module")
def written(
    model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[set[str]]:
    """All keys of nine runs that between them have every option that makes one."""
    here = tmp_path_factory.mktemp("metrics")
    labelled = write_corpus(here / "shards", labelled=True)
    llama = model_folders["llama"]
    tasks = here / "tasks.jsonl"
    tasks.write_text("".join(f'{{"prompt": "{n} =", "answer": {n % 7}}}\n' for n in range(30)))
    options: list[tuple[Path, dict]] = [
        (
            llama,
            {
                "thought": {"answer_tokens": 3, "tools": {"use": {"python": None}}},
                "objective": {
                    "algorithm": {"clipped_ratio": {"importance_cap": 2.0}},
                    "epochs_per_rollout": 2,
                    "kl": {"k3": {"weight": 0.1}},
                    "entropy_weight": 0.1,
                    "drop_groups_below": 0,
                },
            },
        ),
        (
            llama,
            {
                "thought": {"thoughts_per_position": 0},
                "objective": {"pg_weight": 0, "continuation_weight": 0},
            },
        ),
        (llama, {"reading": {"window": 6, "mixing": True}}),
        (llama, {"run": {"steps": 3}}),  # the gate has learnt something by then
        (llama, {"placement": {"policy": {"random": {"repeats": 0.5}}}}),
        (llama, {"thought": {"source": "policy_or_none"}}),
        (
            llama,
            {
                "data": {"source": f"task:{tasks}", "context_tokens": 48, "docs_per_step": 3},
                "placement": {"positions_per_doc": 1},
                "thought": {"answer_tokens": 3},
            },
        ),
        (Path(save_plain("mixtral", here / "moe")), {"objective": {"router_weight": 0.01}}),
    ]
    store = here / "store"
    stored = {"samplers": {"store": str(store), "max_age": 1}}
    options.append((llama, {"run": {"steps": 2}, "rollout": stored}))
    sampler = Sampler(FolderFiles(store), "one", say=print)
    patch = pytest.MonkeyPatch()
    patch.setattr(along, "LEAST", 4)
    scripted = Scripted()
    patch.setattr(VllmEngine, "_start_vllm", lambda self, log: starting(scripted)(log))
    patch.setattr(environment, "_version", lambda python: "0.32.0")
    patch.setenv(environment.NAMED_BY, "/bin/sh")
    options.append((llama, {"rollout": {"engine": "vllm"}, "model": {"dtype": "float32"}}))
    patch.setattr(engine, "sleep", lambda seconds: sampler.once())
    found: set[str] = set()
    with serving(honest) as server:
        judges = {"use": {"a": {"url": server.url, "model": MODEL}}, "audit": "warn"}
        judged = {"scheme": "judge", "judges": judges}
        options.append((llama, {"reward": judged, "thought": {"answer_tokens": 3}}))
        for n, (model, changes) in enumerate(options):
            raw = tiny_run(model, labelled, here / f"run{n}")
            raw["run"]["steps"] = 1
            raw["evaluation"] = {"docs": 0}
            for section, fields in changes.items():
                raw[section] = {**raw.get(section, {}), **fields}
            Trainer(Config.parse(raw)).fit()
            found |= {key for row in read_metrics(here / f"run{n}") for key in row}
    yield found
    patch.undo()


def test_every_key_of_a_run_is_explained(written: set[str]) -> None:
    assert {key for key in written if find(key) is None} == set()
    assert {"group/dead_frac", "moe/load_max", "loss/kl", "answer/ended_frac"} <= written


def test_every_explained_key_is_written(written: set[str]) -> None:
    unused = [m.key for m in METRICS if not any(find(key) == m for key in written)]
    assert unused == []


def test_an_unknown_key_is_not_explained() -> None:
    for key in ("group/dead", "reward", "reward/a/b", "class/easy", "moe/load_max/1", ""):
        assert find(key) is None


def test_patterns_stand_behind_exact_keys() -> None:
    mean, scheme = find("reward/mean"), find("reward/worst_token")
    assert mean is not None
    assert scheme is not None
    assert (mean.key, scheme.key) == ("reward/mean", "reward/<scheme>")
    assert find("class/left_to_think/gain") == find("class/<class>/gain")


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.key)
def test_an_entry_says_unit_and_meaning(metric: Metric) -> None:
    assert metric.unit
    assert metric.meaning.endswith(".")
    for text in (metric.reading, metric.bad):
        assert not text or text.endswith((".", "?"))
