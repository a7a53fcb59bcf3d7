"""Runs whose weights travel as what has changed: the runs in which they travel whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import same_shards, tiny_run

from rntp.config import Config
from rntp.rollout.store import engine as store_engine
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.sampler import Sampler
from rntp.run.log import read_metrics
from rntp.runtime.faults import InjectedFault
from rntp.trainer import Trainer

OF_PUBLISHING = ("rollout/weights_", "rollout/publish_s", "time/", "memory/")
Between = Callable[[Callable[[], object]], None]


def comparable(run_dir: Path, *, sampled_here: bool = False) -> list[dict]:
    """Metrics without what depends on the machine, or on how weights were written. sampled_here:
    without all that only a run with samplers has."""
    machine = (*OF_PUBLISHING, "rollout/") if sampled_here else OF_PUBLISHING
    return [
        {k: v for k, v in row.items() if not k.startswith(machine)} for row in read_metrics(run_dir)
    ]


def fit(raw: dict, folder: Path, *overrides: str) -> Path:
    Trainer(Config.parse(raw, [*overrides, f"run.dir={folder}"])).fit()
    return folder


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    """Five steps at a rate at which most bfloat16 weights stay as they are."""
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"] |= {"timeouts_s": {"hang": 0}, "steps": 5}
    raw["optim"] = {"lr": 1e-6, "warmup_steps": 0}
    raw["evaluation"] = {"docs": 0}
    return raw


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> Between:
    """Sets what happens while the trainer waits, in place of sleeping."""

    def put(work: Callable[[], object]) -> None:
        monkeypatch.setattr(store_engine, "sleep", lambda seconds: work())

    return put


def sampler(store: Path, name: str = "s1") -> Sampler:
    return Sampler(FolderFiles(store), name, say=print)


def options(store: Path, whole_every: int, *more: str) -> list[str]:
    names = [f"store={store}", f"whole_every={whole_every}", *more]
    return [f"rollout.samplers.{name}" for name in names]


@pytest.mark.parametrize("age", [0, 2])
def test_what_has_changed_is_as_good_as_the_whole(
    raw: dict, tmp_path: Path, between_looks: Between, age: int
) -> None:
    """Down to the digest of the rollouts' files, which name the weights that drew them."""
    folders = []
    for every in (1, 3):
        store = tmp_path / f"store{every}"
        one = sampler(store)
        between_looks(lambda one=one: [one.once() for _ in range(1 + age)])  # type: ignore[misc]
        given = options(store, every, f"max_age={age}")
        folders.append(fit(raw, tmp_path / f"run{every}", *given))
        one.close()
    whole, changes = folders
    assert comparable(whole) == comparable(changes)
    assert all("rollout/digest" in row for row in comparable(whole))
    last = "checkpoints/step_00000005"
    same_shards(whole / last, changes / last)
    rows, others = read_metrics(changes), read_metrics(whole)
    assert [row["rollout/weights_delta"] for row in rows] == [0, 1, 1, 0, 1]
    assert [row["rollout/weights_delta"] for row in others] == [0] * 5
    assert "rollout/weights_changed" not in rows[0]
    for row, other in zip(rows, others, strict=True):
        assert row["rollout/publish_s"] > 0
        if row["rollout/weights_delta"]:
            assert 0 < row["rollout/weights_changed"] < 0.2
            assert row["rollout/weights_bytes"] < other["rollout/weights_bytes"] / 4
        else:
            assert row["rollout/weights_bytes"] == other["rollout/weights_bytes"]
    if age == 0:
        plain = fit(raw, tmp_path / "plain")
        assert comparable(plain) == comparable(changes, sampled_here=True)
        same_shards(plain / last, changes / last)


def test_weights_that_all_change_travel_whole(
    raw: dict, tmp_path: Path, between_looks: Between
) -> None:
    one = sampler(tmp_path / "store")
    between_looks(one.once)
    raw["model"]["dtype"] = "float32"
    rows = read_metrics(fit(raw, tmp_path / "run", *options(tmp_path / "store", 3), "run.steps=3"))
    assert [row["rollout/weights_delta"] for row in rows] == [0, 0, 0]
    assert all(row["rollout/weights_changed"] > 0.25 for row in rows[1:])


@pytest.mark.slow
def test_every_step_is_sampled_by_a_newcomer_and_what_nobody_needs_goes(
    raw: dict, tmp_path: Path, between_looks: Between
) -> None:
    """Each reads the anchor and the changes; a version goes once no later one goes back to it."""
    store, there = tmp_path / "store", []

    def work() -> None:
        done = len(read_metrics(tmp_path / "run"))
        newcomer = sampler(store, f"n{done}")
        if newcomer.once() == "sampled":
            there.append(sorted(int(p.name[1:9]) for p in (store / "weights").iterdir()))
        newcomer.close()

    between_looks(work)
    raw["checkpoint"] = {"every_steps": 1, "keep": 1}
    raw["run"]["steps"] = 8
    folder = fit(raw, tmp_path / "run", *options(store, 3))
    plain = fit(raw, tmp_path / "plain")
    assert comparable(plain) == comparable(folder, sampled_here=True)
    # Of the anchors 0, 3 and 6: the last but one version is kept, and its chain.
    wanted = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert there == [*wanted, [3, 4, 5], [3, 4, 5, 6], [3, 4, 5, 6, 7]]
    kept = sorted(int(p.name[1:9]) for p in (store / "weights").iterdir())
    assert kept == [6, 7]


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_delta_is_refused_and_the_run_is_the_same(
    raw: dict,
    tmp_path: Path,
    between_looks: Between,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    store = tmp_path / "store"
    plain = fit(raw, tmp_path / "plain")
    one = sampler(store)
    between_looks(one.once)
    monkeypatch.setenv("RNTP_FAULT", f"weights.put#3={damage}:delta*")
    folder = fit(raw, tmp_path / "run", *options(store, 4))
    assert comparable(plain) == comparable(folder, sampled_here=True)
    said = " ".join((folder / "log.txt").read_text().split())
    assert said.count("the newest weights are written again, whole: a sampler says torn:") == 1
    assert "not used: torn: weights/v00000002-" in capsys.readouterr().out
    deltas = [row["rollout/weights_delta"] for row in read_metrics(folder)]
    assert deltas == [0, 1, 1, 1, 1]  # as they were written first
    # Version 2 has become an anchor.
    assert not list(store.glob("weights/v00000002-*/refused.json"))
    assert list(store.glob("weights/v00000002-*/weights_0000.safetensors"))


def test_a_run_that_dies_between_anchor_and_delta_goes_on(
    raw: dict, tmp_path: Path, between_looks: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails once version 3 has its changes in the store, but no manifest."""
    store = tmp_path / "store"
    plain = fit(raw, tmp_path / "plain")
    one = sampler(store)
    between_looks(one.once)
    monkeypatch.setenv("RNTP_FAULT", "weights.put#4=raise")
    with pytest.raises(InjectedFault):
        fit(raw, tmp_path / "run", *options(store, 5))
    (torn,) = store.glob("weights/v00000003-*")
    assert [path.name for path in torn.iterdir()] == ["delta.safetensors"]
    monkeypatch.delenv("RNTP_FAULT")
    folder = fit(raw, tmp_path / "run", *options(store, 5))
    assert comparable(plain) == comparable(folder, sampled_here=True)
    same_shards(plain / "checkpoints/step_00000005", folder / "checkpoints/step_00000005")
    rows = read_metrics(folder)
    # The checkpoint is of step 2: version 2 was there, and 3 is a difference from it again.
    assert [row["rollout/weights_delta"] for row in rows] == [0, 1, 0, 1, 1]
    assert rows[2]["rollout/weights_bytes"] == 0
