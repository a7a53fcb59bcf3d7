"""A run whose thoughts samplers bring: the same run as without them, to the bit."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import same_shards, tiny_run
from scripted_server import MODEL, honest, serving

from rntp.config import Config
from rntp.data.manifest import Manifest
from rntp.errors import ConfigError, SamplersLost
from rntp.model import LanguageModel
from rntp.rollout.store import engine as store_engine
from rntp.rollout.store import sampler as store_sampler
from rntp.rollout.store.files import FolderFiles
from rntp.rollout.store.sampler import Sampler
from rntp.rollout.store.sealed import KEY_IN, pack, seal, unpack, unseal
from rntp.rollout.store.weights import take_exactly
from rntp.run.checkpoint import committed
from rntp.run.log import read_metrics, read_rollouts
from rntp.runtime.faults import damage
from rntp.trainer import Trainer


def comparable(run_dir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/", "rollout/"))}
        for row in read_metrics(run_dir)
    ]


def fit(raw: dict, folder: Path, *overrides: str) -> Path:
    Trainer(Config.parse(raw, [*overrides, f"run.dir={folder}"])).fit()
    return folder


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["timeouts_s"] = {"hang": 0}
    raw["evaluation"] = {"docs": 0}
    return raw


Between = Callable[[Callable[[], None]], None]


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> Between:
    """Sets what happens while the trainer waits, in place of sleeping."""

    def put(work: Callable[[], None]) -> None:
        monkeypatch.setattr(store_engine, "sleep", lambda seconds: work())

    return put


def sampler(store: Path, name: str = "s1", **more) -> Sampler:
    return Sampler(FolderFiles(store), name, say=print, **more)


def test_age_0_is_the_in_process_run(raw: dict, tmp_path: Path, between_looks: Between) -> None:
    plain = fit(raw, tmp_path / "plain")
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: one.once() and None)
    stored = fit(raw, tmp_path / "stored", f"rollout.samplers.store={store}")
    assert comparable(stored) == comparable(plain)
    last = "checkpoints/step_00000004"
    same_shards(plain / last, stored / last)
    for step in range(1, 5):
        name = f"rollouts/step_{step:08d}.jsonl"
        assert (stored / name).read_bytes() == (plain / name).read_bytes()
    assert one.once() == "done"


OPTIONS = [
    ["placement.interleaved=true", "placement.policy=learnability", "model.dtype=float32"],
    ["thought.answer_tokens=2", "placement.policy=selector", "rollout.samplers.contexts=1"],
    ["data.replay_docs=1", "placement.policy=entropy", "model.dtype=float64"],
    ["reading.window=6", "placement.policy=surprise"],
    ["placement.policy={entropy: {repeats: 0.5}}", "rollout.samplers.contexts=1"],
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options[0])
def test_age_0_is_the_in_process_run_whatever_is_sampled(
    raw: dict, tmp_path: Path, between_looks: Between, options: list[str]
) -> None:
    plain = fit(raw, tmp_path / "plain", *options)
    store = tmp_path / "store"
    team = [sampler(store, f"s{n}") for n in range(2)]
    between_looks(lambda: [one.once() for one in team] and None)
    stored = fit(raw, tmp_path / "stored", *options, f"rollout.samplers.store={store}")
    assert comparable(stored) == comparable(plain)
    same_shards(plain / "checkpoints/step_00000004", stored / "checkpoints/step_00000004")


def test_ages_are_at_most_what_is_allowed_and_steps_come_in_order(
    raw: dict, tmp_path: Path, between_looks: Between
) -> None:
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: [one.once() for _ in range(3)] and None)
    folder = fit(
        raw, tmp_path / "run", f"rollout.samplers.store={store}", "rollout.samplers.max_age=2"
    )
    rows = read_metrics(folder)
    # The sampler works while the trainer waits: at its first step, and then when nothing is left.
    assert [row["rollout/age_max"] for row in rows] == [0, 1, 2, 0]
    assert [row["data/ordinal_first"] for row in rows] == [0, 3, 6, 9]
    for row in rows:
        assert row[f"rollout/age/{row['rollout/age_max']:.0f}"] == 1
        assert 0 < row["policy/ess_frac"] <= 1
        assert 0 <= row["policy/masked_frac"] <= 1
    assert rows[0]["policy/ess_frac"] == pytest.approx(1, abs=1e-3)
    assert rows[2]["kl/sampler"] > 20 * rows[0]["kl/sampler"]
    assert all(row["rollout/refused"] == row["rollout/canary"] == 0 for row in rows)
    thoughts = read_rollouts(folder, 3)
    assert {row["policy_version"] for row in thoughts} == {0}


def test_a_resume_replays_what_was_sampled(
    raw: dict, tmp_path: Path, between_looks: Between
) -> None:
    """Killed in step 4 after the save of step 2, and sampled by nobody on the second start."""
    store, options = tmp_path / "store", ["rollout.samplers.max_age=1", "checkpoint.keep=9"]
    one = sampler(store)
    between_looks(lambda: one.once() and None)
    straight = fit(raw, tmp_path / "run", f"rollout.samplers.store={store}", *options)
    resumed = shutil.copytree(straight, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "step_00000004")
    between_looks(lambda: pytest.fail("the stored rollouts were enough"))
    fit(raw, resumed, f"rollout.samplers.store={store}", *options)
    assert read_metrics(resumed)[3]["rollout/digest"] == read_metrics(straight)[3]["rollout/digest"]
    assert comparable(resumed) == comparable(straight)
    same_shards(straight / "checkpoints/step_00000004", resumed / "checkpoints/step_00000004")

    # The negative case: without the files it is sampled again, and said so.
    again = shutil.copytree(straight, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "step_00000004")
    for path in (store / "rollouts").glob("step_00000003*/*"):
        path.write_bytes(path.read_bytes() + b"x")
    two = sampler(store, "s2")
    between_looks(lambda: two.once() and None)
    fit(raw, again, f"rollout.samplers.store={store}", *options)
    assert "stored rollouts of step 3 have changed" in (again / "log.txt").read_text()
    assert [row["data/ordinal_first"] for row in read_metrics(again)] == [0, 3, 6, 9]


def test_a_checkpoint_and_the_ledger_name_the_files(
    raw: dict, tmp_path: Path, between_looks: Between
) -> None:
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: one.once() and None)
    folder = fit(
        raw, tmp_path / "run", f"rollout.samplers.store={store}", "rollout.samplers.contexts=2"
    )
    state = json.loads((folder / "checkpoints/step_00000004/state.json").read_text())
    assert state["sampled"]["step"] == 4
    entry = json.loads((folder / "sampled/step_00000004.json").read_text())
    assert state["sampled"]["files"] == entry["files"]
    assert len(entry["files"]) == 2  # of three contexts
    for name, digest in entry["files"]:
        assert hashlib.sha256((store / name).read_bytes()).hexdigest() == digest
    # What no start needs any more is gone: the oldest checkpoint is of step 2.
    steps = {p.name[:13] for p in (store / "rollouts").iterdir()}
    assert steps == {"step_00000003", "step_00000004"}
    assert len(list((store / "weights").iterdir())) <= 3


Tamper = Callable[[Path, dict], None]


def _flip(path: Path, facts: dict) -> None:
    damage(path, "flip")


def _truncate(path: Path, facts: dict) -> None:
    damage(path, "truncate")


def _copy_of_another(path: Path, facts: dict) -> None:
    path.write_bytes(seal("rollouts/elsewhere", b"payload", b""))


def _rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Forge: other contents, with a seal that fits."""
    name = "/".join(path.parts[-3:])
    tensors, facts = unpack(unseal(name, path.read_bytes(), b""))
    change(tensors, facts)
    path.write_bytes(seal(name, pack(tensors, facts), b""))


FORGED: dict[str, Callable[[dict, dict], None]] = {
    "foreign": lambda t, f: f.update(run="another"),
    "weights: no weights of this run": lambda t, f: f.update(weights="0" * 16),
    "weights: the sampler's canary lies": lambda t, f: t.update(canary=t["canary"] - 1),
    "malformed: policy version": lambda t, f: f.update(version=9),
    "malformed: a token that there is not": lambda t, f: t["ids"].fill_(5000),
    "malformed: log-probs that are none": lambda t, f: t["logprobs"].fill_(float("nan")),
    "malformed: a position": lambda t, f: t["positions"].copy_(t["positions"] + 900),
    "malformed: its parts do not fit": lambda t, f: t.update(length=t["length"] + 1),
    "malformed: a thought that does not end": lambda t, f: t.update(closed=~t["closed"]),
}


@pytest.mark.parametrize("kind", ["torn, flipped", "torn, cut", "torn, copied", *FORGED])
def test_what_is_not_right_is_refused_counted_and_sampled_again(
    raw: dict, tmp_path: Path, between_looks: Between, kind: str
) -> None:
    store = tmp_path / "store"
    one, tampered = sampler(store), []
    tampers = {"torn, flipped": _flip, "torn, cut": _truncate, "torn, copied": _copy_of_another}

    def work() -> None:
        before = set((store / "rollouts").rglob("*.s1"))
        one.once()
        for path in set((store / "rollouts").rglob("*.s1")) - before:
            if not tampered and "step_00000002" in str(path):
                tampered.append(path)
                if kind in FORGED:
                    _rewrite(path, FORGED[kind])
                else:
                    tampers[kind](path, {})

    between_looks(work)
    folder = fit(raw, tmp_path / "run", f"rollout.samplers.store={store}", "run.steps=2")
    assert len(tampered) == 1
    rows = read_metrics(folder)
    assert [row["rollout/refused"] for row in rows] == [0, 1]
    assert [row["rollout/again"] for row in rows] == [0, 1]
    said = (folder / "log.txt").read_text()
    assert "refused rollouts/step_00000002" in said
    assert kind.partition(",")[0] in said
    entry = json.loads((folder / "sampled/step_00000002.json").read_text())
    assert [".a002." in name for name, _ in entry["files"]] == [True]


def test_a_key_keeps_strangers_out(
    raw: dict, tmp_path: Path, between_looks: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    stranger = sampler(store, "stranger")
    monkeypatch.setenv(KEY_IN, "a shared secret")
    one, turns = sampler(store), iter([stranger.once, stranger.once])
    between_looks(lambda: next(turns, one.once)() and None)
    options = [f"rollout.samplers.store={store}", "run.steps=1", "rollout.samplers.lease_s=0.2"]
    folder = fit(raw, tmp_path / "run", *options)
    assert read_metrics(folder)[0]["rollout/age_max"] == 0
    entry = json.loads((folder / "sampled/step_00000001.json").read_text())
    assert all(name.endswith(".s1") for name, _ in entry["files"])
    monkeypatch.setenv(KEY_IN, "another secret")
    with pytest.raises(ConfigError, match=r"set \$RNTP_STORE_KEY"):
        fit(raw, tmp_path / "other", f"rollout.samplers.store={store}", "run.steps=1")


def test_another_run_is_told_that_the_store_is_taken(
    raw: dict, tmp_path: Path, between_looks: Between
) -> None:
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: one.once() and None)
    fit(raw, tmp_path / "run", f"rollout.samplers.store={store}", "run.steps=1")
    with pytest.raises(ConfigError, match="is of another run"):
        fit(raw, tmp_path / "other", f"rollout.samplers.store={store}", "optim.lr=0.5")
    with pytest.raises(ConfigError, match="is of another run"):  # of the same config, even
        fit(raw, tmp_path / "twin", f"rollout.samplers.store={store}", "run.steps=1")
    fit(raw, tmp_path / "run", f"rollout.samplers.store={store}", "run.steps=2")


def test_weights_that_do_not_load_are_caught_before_anything_is_sampled(
    raw: dict, tmp_path: Path, between_looks: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that keeps the weights it began with, as engines that cache them do."""
    store, said = tmp_path / "store", []
    one = Sampler(FolderFiles(store), "stale", say=said.append)
    good = sampler(store, "good")
    began = []

    def keep_the_first(model: LanguageModel, weights: dict) -> None:
        if not began:
            take_exactly(model, weights)
            began.append(model)

    def work() -> None:
        if len(said) < 3:
            monkeypatch.setattr(store_sampler, "take_exactly", keep_the_first)
            with contextlib.suppress(ConfigError):
                one.once()
            monkeypatch.setattr(store_sampler, "take_exactly", take_exactly)
        if began and read_metrics(tmp_path / "run"):
            good.once()

    between_looks(work)
    options = [
        f"rollout.samplers.store={store}",
        "run.steps=2",
        "optim.lr=0.05",
        "model.dtype=float32",
    ]
    folder = fit(raw, tmp_path / "run", *options)
    assert any("the canary of version 1 lies" in line for line in said), said
    assert all(row["rollout/refused"] == 0 for row in read_metrics(folder))
    names = json.loads((folder / "sampled/step_00000002.json").read_text())["files"]
    assert all(name.endswith(".good") for name, _ in names)


class Ticking:
    """A clock on which a look takes ten seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.slow
def test_without_samplers_the_run_saves_and_ends_and_goes_on_later(
    raw: dict, tmp_path: Path, between_looks: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = tmp_path / "store", Ticking()
    one = sampler(store, clock=clock)
    monkeypatch.setattr(store_engine, "monotonic", clock)
    folder = tmp_path / "run"

    def dies_in_step_2() -> None:
        clock.now += 10
        if len(read_metrics(folder)) < 1:
            one.once()

    between_looks(dies_in_step_2)
    options = [
        f"rollout.samplers.store={store}",
        "rollout.samplers.lease_s=30",
        "rollout.samplers.wait_s=100",
    ]
    with pytest.raises(SamplersLost, match=r"step 2 lacks 1 of 1 parts.*the same command resumes"):
        fit(raw, folder, *options)
    said = " ".join((folder / "log.txt").read_text().split())
    assert "waiting for samplers: step 2 lacks 1 of 1 parts (nobody has taken part 1)" in said
    assert [step for step, _ in committed(folder / "checkpoints")] == [1]
    between_looks(lambda: one.once() and None)
    fit(raw, folder, *options)
    between_looks(lambda: pytest.fail("nothing waits"))
    plain = fit(raw, tmp_path / "plain")
    assert comparable(folder) == comparable(plain)


@pytest.mark.slow
@pytest.mark.parametrize("age", [0, 2])
def test_a_run_that_goes_back_samples_what_is_left_anew(
    raw: dict,
    tmp_path: Path,
    between_looks: Between,
    monkeypatch: pytest.MonkeyPatch,
    age: int,
) -> None:
    """Two steps without a finite loss: back to the checkpoint, without their contexts."""
    monkeypatch.setenv("RNTP_FAULT", "forward#7-12=nan")
    options = ["run.on_trouble={roll_back: {skipped_steps: 2}}", "run.steps=6"]
    options += ["parallel.tokens_per_microbatch=16"]
    plain = fit(raw, tmp_path / "plain", *options)
    assert "going back to step 2" in (plain / "log.txt").read_text()
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: [one.once() for _ in range(3)] and None)
    stored = fit(
        raw,
        tmp_path / "run",
        *options,
        f"rollout.samplers.store={store}",
        f"rollout.samplers.max_age={age}",
    )
    assert [r["data/digest"] for r in read_metrics(stored) if not age] == [
        r["data/digest"] for r in read_metrics(plain) if not age
    ]
    assert [r["data/ordinal_first"] for r in read_metrics(stored)] == [0, 3, 12, 15, 18, 21]
    assert all(r["rollout/age_max"] <= age for r in read_metrics(stored))
    if age == 0:
        assert comparable(stored) == comparable(plain)


@pytest.mark.slow
def test_pages_that_are_read_as_they_come_are_sampled_ahead(
    raw: dict, corpus: Path, tmp_path: Path, between_looks: Between
) -> None:
    manifest = Manifest.load(corpus)
    pages = [manifest.read(n) for n in range(manifest.num_docs)]
    lines = [json.dumps({"text": page.text * 4, "url": page.id}) for page in pages]
    (tmp_path / "pages.jsonl").write_text("\n".join(lines) + "\n")
    live = f"data.source={tmp_path / 'pages.jsonl'}"
    plain = fit(raw, tmp_path / "plain", live)
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: [one.once() for _ in range(3)] and None)
    stored = fit(
        raw, tmp_path / "run", live, f"rollout.samplers.store={store}", "rollout.samplers.max_age=2"
    )
    ordinals = [row["data/ordinal_first"] for row in read_metrics(stored)]
    assert ordinals == [row["data/ordinal_first"] for row in read_metrics(plain)]
    assert max(row["rollout/age_max"] for row in read_metrics(stored)) == 2
    ids = [{r["document_id"] for r in read_rollouts(f, 3)} for f in (plain, stored)]
    assert ids[0] == ids[1]


@pytest.mark.slow
def test_judges_grade_what_samplers_bring(
    raw: dict, tmp_path: Path, between_looks: Between
) -> None:
    store = tmp_path / "store"
    one = sampler(store)
    between_looks(lambda: one.once() and None)
    with serving(honest) as server:
        judges = {"use": {"a": {"url": server.url, "model": MODEL}}, "audit": "warn"}
        raw["reward"] = {**raw["reward"], "scheme": "judge", "judges": judges}
        raw["thought"]["answer_tokens"] = 3
        plain = fit(raw, tmp_path / "plain")
        stored = fit(
            raw, tmp_path / "stored", f"rollout.samplers.store={store}", "rollout.docs_per_batch=2"
        )
    judged = ("judge/", "time/", "memory/", "rollout/")  # what was asked twice was known
    rows = [
        [{k: v for k, v in row.items() if not k.startswith(judged)} for row in read_metrics(folder)]
        for folder in (plain, stored)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4
