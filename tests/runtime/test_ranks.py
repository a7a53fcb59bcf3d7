"""Many ranks: the same run as on one, agreed stops and failures, and no wait without an end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tiny_model, tiny_run, tiny_tokenizer
from many_ranks import Outcome, run_ranks, values

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "models"))

from tiny_models import tiny_model as tiny_model_of

from rntp import cli
from rntp.config import Config
from rntp.errors import ConfigError, DataError, RanksLost
from rntp.model import load_model
from rntp.model.reading import LossReads
from rntp.model.sharding import checkpoint_activations, layers
from rntp.objective.forward import build_tree, forward
from rntp.objective.quantities import Counts
from rntp.run import checkpoint
from rntp.run.log import read_metrics, read_rollouts
from rntp.runtime.ranks import SINGLE_RANK, SLOW_DISK, check_size, on_device, open_ranks
from rntp.trainer import Trainer
from rntp.training.phases import Phases
from rntp.training.sampling import Sampling
from rntp.types import Context, Rollout, Thought

pytestmark = pytest.mark.slow

SIZES = ["data.docs_per_step=5", "evaluation.docs=0"]
# Everything that looks beyond one microbatch, or runs along with training.
OPTIONS = [
    "model.dtype=float64",
    "objective.algorithm=clipped_ratio",
    "objective.epochs_per_rollout=2",
    "objective.min_group_std=0.1",
    "objective.continuation_weight=0",
    "objective.drop_dead_groups=true",
    "baseline.weights=ema",
    "baseline.decay=0.9",
    "placement.policy=learnability",
    "placement.interleaved=true",
    "data.replay_docs=1",
]


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 3
    return raw


def fit(raw: dict, run_dir: Path, overrides: list[str], size: int = 1) -> list[Outcome]:
    """The run on so many ranks."""
    sets = [*SIZES, *overrides, f"run.dir={run_dir}"]
    if size == 1:
        Trainer(Config.parse(raw, sets)).fit()
        return []
    return run_ranks(size, run_dir.with_name(f"{run_dir.name}.ranks"), train, raw, sets)


def train(raw: dict, sets: list[str]) -> None:
    config = Config.parse(raw, sets)
    with open_ranks(config) as ranks:
        Trainer(config, ranks=ranks).fit()


def command(raw: dict, sets: list[str], patch: str = "") -> None:
    """`rntp train` on this rank; patch: of this module, what goes wrong there."""
    if patch:
        globals()[patch](int(os.environ["RANK"]))
    path = Path(raw["run"]["dir"]).with_name(f"config.{os.environ['RANK']}.yaml")
    path.write_text(yaml.safe_dump(raw))
    cli.main(["train", str(path), *(f"--set={text}" for text in sets)])


def same_metrics(one: Path, other: Path, tolerance: float) -> None:
    rows, others = read_metrics(one), read_metrics(other)
    assert [row["data/digest"] for row in rows] == [row["data/digest"] for row in others]
    assert [list(row) for row in rows] == [list(row) for row in others]
    for row, same in zip(rows, others, strict=True):
        for key, value in row.items():
            if not key.startswith(("time/", "memory/", "data/digest")):
                assert same[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key


def same_thoughts(one: Path, other: Path, steps: range) -> None:
    for step in steps:
        rows, others = read_rollouts(one, step), read_rollouts(other, step)
        assert len(rows) == 5 * 2 * 3
        for key in ("ordinal", "position", "thought_index", "thought_ids", "policy_version"):
            assert [row[key] for row in rows] == [row[key] for row in others], key


def same_tensors(one: Path, other: Path, tolerance: float) -> None:
    """Of the newest checkpoints."""
    paths = [checkpoint.committed(folder / "checkpoints")[-1][1] for folder in (one, other)]
    stems = {path.name for path in paths[0].iterdir() if path.is_dir()}
    assert {"weights", "moments"} <= stems == {p.name for p in paths[1].iterdir() if p.is_dir()}
    for stem in stems:
        found, wanted = (checkpoint.load(path, stem) for path in paths)
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(wanted[name], tensor, rtol=tolerance, atol=tolerance)


# --- the same run ---------------------------------------------------------------------------------


def test_one_two_and_four_ranks_train_the_same_run(
    raw: dict, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """In float64, so that nothing but a mistake is left to differ: 5 documents on 4 ranks."""
    raw["model"]["spec"] = str(model_folders["llama-untied"])
    fit(raw, tmp_path / "one", OPTIONS)
    for size in (2, 4):
        there = tmp_path / f"on {size}"
        outcomes = fit(raw, there, [*OPTIONS, "parallel.activation_checkpointing=true"], size)
        values(outcomes)
        assert "step 3/3" in outcomes[0].output
        for outcome in outcomes[1:]:  # rank 0 speaks for all
            assert "step" not in outcome.output
            assert "saved" not in outcome.output
        same_metrics(tmp_path / "one", there, 1e-9)
        same_thoughts(tmp_path / "one", there, range(1, 4))
        same_tensors(tmp_path / "one", there, 1e-9)
        manifest = json.loads((there / "manifest.json").read_text())
        assert manifest["world_size"] == len(manifest["devices"]) == size
        weights = checkpoint.committed(there / "checkpoints")[-1][1] / "weights"
        assert len(list(weights.iterdir())) == size
    moved = [read_metrics(tmp_path / "one")[n]["grad_norm"] for n in range(3)]
    assert all(1e-3 < norm < 1e3 for norm in moved)


def test_a_rate_keeps_the_same_thoughts_and_each_rank_writes_its_own(
    raw: dict, tmp_path: Path
) -> None:
    """Four groups of ten, of three thoughts each."""
    rate = ["model.dtype=float64", "log.rollouts_per_step=13"]
    fit(raw, tmp_path / "all", ["model.dtype=float64"])
    fit(raw, tmp_path / "one", rate)
    values(fit(raw, tmp_path / "two", rate, size=2))
    same_metrics(tmp_path / "all", tmp_path / "two", 1e-9)
    some_ranks = set()
    for step in range(1, 4):
        every, one, two = (read_rollouts(tmp_path / name, step) for name in ("all", "one", "two"))
        assert len(one) == len(two) == 4 * 3
        assert [row for row in every if row in one] == one
        for row, other in zip(one, two, strict=True):
            for key in ("ordinal", "position", "thought_index", "thought_ids", "thought"):
                assert row[key] == other[key], key
        files = sorted(
            p.name for p in (tmp_path / "two" / "rollouts").glob(f"step_0000000{step}.*")
        )
        assert files == [f"step_0000000{step}.rank_{rank}.jsonl" for rank in (0, 1)]
        some_ranks |= {row["ordinal"] % 5 >= 2 for row in two}  # rank 0 has the first two of five
    assert some_ranks == {False, True}


@pytest.mark.parametrize(
    "reading", [["reading.window=6"], ["reading.window=4", "reading.piece=8"]], ids=str
)
def test_one_two_and_four_ranks_read_behind_the_same_window(
    raw: dict, tmp_path: Path, reading: list[str]
) -> None:
    window = ["model.dtype=float64", *reading, "objective.advantage=step"]
    window += ["run.steps=2", "evaluation.docs=5"]
    fit(raw, tmp_path / "one", window)
    for size in (2, 4):
        there = tmp_path / f"on {size}"
        values(fit(raw, there, window, size))
        same_metrics(tmp_path / "one", there, 1e-9)
        same_thoughts(tmp_path / "one", there, range(1, 3))
        same_tensors(tmp_path / "one", there, 1e-9)
        ends = [
            json.loads((tmp_path / n / EVALUATION).read_text())["memory"]
            for n in ("one", there.name)
        ]
        assert ends[0]["gain"] == pytest.approx(ends[1]["gain"], abs=1e-9)
        assert ends[0]["longer"] == pytest.approx(ends[1]["longer"], abs=1e-9)
        assert ends[0]["by_entropy"][0]["whole"] == pytest.approx(
            ends[1]["by_entropy"][0]["whole"], abs=1e-9
        )


def test_two_ranks_learn_the_same_mixing_head(raw: dict, tmp_path: Path) -> None:
    mixing = ["model.dtype=float64", "reading.mixing=true", "optim.lr=0.01", "evaluation.docs=5"]
    fit(raw, tmp_path / "one", mixing)
    values(fit(raw, tmp_path / "two", mixing, 2))
    same_metrics(tmp_path / "one", tmp_path / "two", 1e-9)
    same_tensors(tmp_path / "one", tmp_path / "two", 1e-9)
    rows = read_metrics(tmp_path / "two")
    assert abs(rows[-1]["mixing/weight"] - rows[0]["mixing/weight"]) > 1e-4
    one, two = (
        json.loads((tmp_path / d / "eval/step_00000003.json").read_text()) for d in ("one", "two")
    )
    assert two["mixing"]["weight"] == pytest.approx(one["mixing"]["weight"], abs=1e-9)


EVALUATION = "eval/step_00000002.json"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt_oss", {"sliding_window": 24, "layer_types": ["sliding_attention"] * 2}),
        ("phi", {}),
        ("modernbert-decoder", {}),
        ("deepseek_v3", {"vocab_size": 384}),
    ],
)
def test_sinks_biases_and_heads_of_parts_on_two_ranks(
    raw: dict, name: str, fields: dict, tmp_path: Path
) -> None:
    """What lies outside of layers' matrices, and what only the head reads."""
    model = tiny_model_of(name, **fields)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    raw["model"]["spec"] = str(tmp_path / "model")
    fit(raw, tmp_path / "one", ["model.dtype=float64"])
    values(fit(raw, tmp_path / "two", ["model.dtype=float64"], 2))
    same_metrics(tmp_path / "one", tmp_path / "two", 1e-6)
    same_tensors(tmp_path / "one", tmp_path / "two", 1e-6)


def test_in_bfloat16_with_an_evaluation(raw: dict, tmp_path: Path) -> None:
    """Masters in float32, a gathered copy in bfloat16; tied embeddings; held-out pages shared."""
    on = ["evaluation.docs={heldout: 4, reused: 3}"]
    on += ["evaluation.controls=[shuffled, empty]", "model.dtype=bfloat16"]
    fit(raw, tmp_path / "one", on)
    values(fit(raw, tmp_path / "two", [*on, "checkpoint.asynchronous=true"], size=2))
    same_thoughts(tmp_path / "one", tmp_path / "two", range(1, 4))
    same_metrics(tmp_path / "one", tmp_path / "two", 2e-2)
    same_tensors(tmp_path / "one", tmp_path / "two", 2e-3)
    for step in (0, 3):
        name = f"eval/step_{step:08d}.json"
        one, two = (json.loads((tmp_path / d / name).read_text()) for d in ("one", "two"))
        assert [p["ordinal"] for p in one["pages"]] == [p["ordinal"] for p in two["pages"]]
        assert one["num_tokens"] == two["num_tokens"] > 20
        for key in ("nll/no_think", "nll/think", "gain/mean"):
            assert two[key] == pytest.approx(one[key], abs=2e-2), key
            assert two["reused"][key] == pytest.approx(one["reused"][key], abs=2e-2), key
        assert two["reading"]["nll"] == pytest.approx(one["reading"]["nll"], abs=2e-2)
        assert set(two["controls"]) == {"shuffled", "empty"}


def test_a_run_goes_on_with_another_number_of_ranks(raw: dict, tmp_path: Path) -> None:
    raw["run"]["steps"] = 4
    raw["model"]["dtype"] = "float64"
    raw["objective"] = {
        "continuation_weight": 0
    }  # two passes over a tree, the second without graph
    one, moved, two, again = (tmp_path / name for name in ("one", "moved", "two", "again"))
    fit(raw, one, [])
    for size, steps in ((4, 1), (2, 2), (1, 3), (2, 4)):
        fit(raw, moved, [f"run.steps={steps}"], size)
    same_metrics(one, moved, 1e-9)
    same_thoughts(one, moved, range(1, 5))
    same_tensors(one, moved, 1e-9)
    trained = [row["ordinal"] for n in range(1, 5) for row in read_rollouts(moved, n)]
    assert sorted(set(trained)) == list(range(20))  # every ordinal …
    assert len(trained) == 20 * 2 * 3  # … once
    starts = json.loads((moved / "manifest.json").read_text())["starts"]
    assert [start["world_size"] for start in starts] == [4, 2, 1, 2]

    # On as many ranks as before, to the bit.
    raw["model"]["dtype"] = "bfloat16"
    fit(raw, two, [], size=2)
    for steps in (2, 4):
        fit(raw, again, [f"run.steps={steps}"], size=2)
    same_metrics(two, again, 0)
    same_tensors(two, again, 0)


def test_shards_are_put_together_again(tmp_path: Path) -> None:
    """Five rows on four ranks, and on two; one rank has none of them."""
    values(run_ranks(4, tmp_path / "save", save_shards, tmp_path / "there"))
    path = checkpoint.committed(tmp_path / "there")[-1][1]
    assert checkpoint.problems(path) == []
    found = checkpoint.load(path, "weights")
    assert torch.equal(found["rows"], torch.arange(15.0).view(5, 3))
    assert torch.equal(found["few"], torch.tensor([[7.0], [8.0]]))
    assert found["count"].shape == ()
    assert int(found["count"]) == 3
    assert checkpoint.load_state(path)["world_size"] == 4
    values(run_ranks(2, tmp_path / "load", load_shards, path))


def save_shards(folder: Path) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    with open_ranks(Config.parse(config_of(folder))) as ranks:
        tensors = {
            name: distribute_tensor(tensor, ranks.mesh, [Shard(0)])
            for name, tensor in (
                ("rows", torch.arange(15.0).view(5, 3)),
                ("few", torch.tensor([[7.0], [8.0]])),
            )
        }
        more = {"count": torch.tensor(3)}
        checkpoint.save(folder, 1, {"weights": {**tensors, **more}}, {}, 1, ranks)


def load_shards(path: Path) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    with open_ranks(Config.parse(config_of(path))) as ranks:
        empty = distribute_tensor(torch.zeros(5, 3), ranks.mesh, [Shard(0)])
        few = distribute_tensor(torch.zeros(2, 1), ranks.mesh, [Shard(0)])
        checkpoint.load_into(path, "weights", {"rows": empty, "few": few})
        assert torch.equal(empty.full_tensor(), torch.arange(15.0).view(5, 3))
        assert torch.equal(few.full_tensor(), torch.tensor([[7.0], [8.0]]))
        assert len(empty.to_local()) == 3 - ranks.rank


def config_of(folder: Path) -> dict:
    raw = tiny_run(folder, folder, folder)
    raw["data"]["docs_per_step"] = 8
    return raw


def test_ranks_share_the_hashing_of_a_checkpoint(tmp_path: Path) -> None:
    values(run_ranks(4, tmp_path / "save", save_shards, tmp_path / "there"))
    path = checkpoint.committed(tmp_path / "there")[-1][1]
    found = values(run_ranks(2, tmp_path / "hash", hashed_files, tmp_path / "there"))
    assert all(newest == path for newest, _ in found)
    hashed = [name for _, names in found for name in names]
    assert sorted(hashed) == sorted(str(p) for p in path.rglob("*.*") if p.name != "COMMIT.json")
    assert all(names for _, names in found)


def hashed_files(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint, and what this rank has read to find it."""
    hashed: list[str] = []
    sha256 = checkpoint._sha256

    def noted(path: Path, *rest: Any) -> str:
        hashed.append(str(path))
        return sha256(path, *rest)

    checkpoint._sha256 = noted
    with open_ranks(Config.parse(config_of(folder))) as ranks:
        return checkpoint.newest_valid(folder, print, ranks=ranks), hashed


@pytest.mark.parametrize("num_bytes", [0, int(10 * SLOW_DISK)])
def test_who_reads_much_may_take_longer(tmp_path: Path, num_bytes: int) -> None:
    """Five seconds where three are allowed, or three and those that the bytes take."""
    outcomes = run_ranks(2, tmp_path, slow_rank_1, tmp_path, num_bytes)
    if num_bytes:
        assert values(outcomes) == [[0, 1], [0, 1]]
    else:
        assert "waited in phase 'start'" in outcomes[0].value


def slow_rank_1(folder: Path, num_bytes: int) -> Any:
    try:
        with open_ranks(Config.parse(config_of(folder), ["run.timeouts_s.ranks=3"])) as ranks:

            def work() -> int:
                time.sleep(5 * ranks.rank)
                return ranks.rank

            return ranks.gather(work, "start", num_bytes)
    except RanksLost as error:
        return str(error)


# --- what goes wrong on one rank ------------------------------------------------------------------


def test_a_rank_that_is_asked_to_stop_stops_all(raw: dict, tmp_path: Path) -> None:
    fit(raw, tmp_path / "whole", [], size=2)
    there = [*SIZES, f"run.dir={tmp_path / 'stopped'}"]
    outcomes = run_ranks(2, tmp_path / "ranks", command, raw, there, "stop_rank_1_in_step_2")
    assert [o.exit_code for o in outcomes] == [5, 5], [o.output for o in outcomes]
    assert "stopped by SIGTERM" in outcomes[0].output
    saved = checkpoint.committed(tmp_path / "stopped" / "checkpoints")
    assert [step for step, _ in saved] == [1]
    values(run_ranks(2, tmp_path / "ranks", command, raw, there))
    same_metrics(tmp_path / "whole", tmp_path / "stopped", 0)
    same_tensors(tmp_path / "whole", tmp_path / "stopped", 0)


def stop_rank_1_in_step_2(rank: int) -> None:
    sample = Sampling.rollouts

    def stopped(self: Sampling, step: int, phases: Phases) -> list[Rollout]:
        if (rank, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, step, phases)

    Sampling.rollouts = stopped


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(
    raw: dict, tmp_path: Path
) -> None:
    """Step 2 of three leaves weights and moments as they were after step 1, to the bit."""
    there, short = tmp_path / "poisoned", tmp_path / "short"
    fit(raw, short, ["run.steps=1"], size=2)
    sets = [*SIZES, f"run.dir={there}", "run.steps=2"]
    values(run_ranks(2, tmp_path / "ranks", command, raw, sets, "poison_rank_1_in_step_2"))
    rows = read_metrics(there)
    assert [row["skipped"] for row in rows] == [0, 1]
    same_tensors(short, there, 0)
    sets[-1] = "run.steps=3"
    values(run_ranks(2, tmp_path / "ranks", command, raw, sets))
    assert read_metrics(there)[2]["skipped"] == 0


def poison_rank_1_in_step_2(rank: int) -> None:
    import rntp.training.optimizer

    backward, steps = rntp.training.optimizer.Optimizer.backward, []

    def poisoned(self: Any, loss: torch.Tensor, *, last: bool) -> None:
        steps.append(last)
        if rank == 1 and sum(steps) == 2 and last:
            loss = loss * float("nan")
        backward(self, loss, last=last)

    rntp.training.optimizer.Optimizer.backward = poisoned


@pytest.mark.parametrize(
    ("patch", "code", "told"),
    [
        ("break_data_of_rank_1", 3, "rntp: page 7 is gone"),
        ("break_rank_1", 1, "rank 1 failed in phase 'rollout': ZeroDivisionError"),
    ],
)
def test_what_one_rank_cannot_do_ends_all_alike(
    raw: dict, tmp_path: Path, patch: str, code: int, told: str
) -> None:
    sets = [*SIZES, f"run.dir={tmp_path / 'there'}"]
    start = time.monotonic()
    outcomes = run_ranks(3, tmp_path / "ranks", command, raw, sets, patch)
    assert [o.exit_code for o in outcomes] == [code] * 3
    assert told in outcomes[0].output
    assert time.monotonic() - start < 200  # nobody has waited for run.timeouts_s.ranks


def break_data_of_rank_1(rank: int) -> None:
    def broken(self: Sampling, step: int, phases: Phases) -> list[Rollout]:
        if rank == 1:
            raise DataError("page 7 is gone")
        return []

    Sampling.rollouts = broken


def break_rank_1(rank: int) -> None:
    def broken(self: Sampling, step: int, phases: Phases) -> list[Rollout]:
        if rank == 1:
            raise ZeroDivisionError
        return []

    Sampling.rollouts = broken


def test_a_rank_that_does_not_come_is_named(raw: dict, tmp_path: Path) -> None:
    sets = [*SIZES, f"run.dir={tmp_path / 'there'}", "run.timeouts_s.ranks=6"]
    outcomes = run_ranks(3, tmp_path / "ranks", command, raw, sets, "hang_rank_2", timeout_s=100)
    assert [o.exit_code for o in outcomes[:2]] == [1, 1]
    assert "rank 0 of 3 waited in phase 'rollout' for ranks that did not come" in outcomes[0].output
    assert "Ranks 2 failed to pass monitoredBarrier" in outcomes[0].output
    assert "raise run.timeouts_s.ranks" in outcomes[0].output


def hang_rank_2(rank: int) -> None:
    sample = Sampling.rollouts

    def hung(self: Sampling, step: int, phases: Phases) -> list[Rollout]:
        if rank == 2:
            time.sleep(16)
        return sample(self, step, phases)

    Sampling.rollouts = hung


def test_the_program_under_torchrun(raw: dict, tmp_path: Path) -> None:
    """The real thing, once: a run, and more ranks than documents."""
    path = tmp_path / "config.yaml"
    raw["run"]["steps"] = 2
    path.write_text(yaml.safe_dump(raw))

    def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        return subprocess.run(
            [*launcher, "--standalone", "-m", "rntp.cli", "train", str(path), *arguments],
            capture_output=True,
            text=True,
            timeout=600,
        )

    done = torchrun("--set=evaluation.docs=0", f"--run-dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2/2") == 1
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["world_size"] == 2
    assert (tmp_path / "run" / "report.html").is_file()
    for word in ("abort", "Abort", "terminate", "core dumped"):
        assert word not in done.stderr


# --- one process ----------------------------------------------------------------------------------


def test_more_ranks_than_documents_are_refused(raw: dict, tmp_path: Path) -> None:
    config = Config.parse(raw)
    check_size(config, 3)
    with pytest.raises(ConfigError, match=r"docs_per_step is 3, for 4 ranks.*raise it by 1"):
        check_size(config, 4)
    with pytest.raises(ConfigError, match=r"docs_per_step less data.replay_docs is 2, for 3 ranks"):
        check_size(Config.parse(raw, ["data.replay_docs=1"]), 3)
    outcomes = run_ranks(4, tmp_path / "ranks", command, raw, [])
    assert [o.exit_code for o in outcomes] == [2] * 4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "items"), [(1, 3), (3, 3), (4, 10), (4, 2), (7, 50)])
def test_shares_are_contiguous_even_and_all(size: int, items: int) -> None:
    class Some(type(SINGLE_RANK)):
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, size

    shares = [list(Some(rank).share(range(items))) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert min(map(len, shares)) >= (1 if items >= size else 0)


def test_alone_everything_is_agreed_at_once() -> None:
    tensor = torch.ones(2)
    assert SINGLE_RANK.gather(lambda: tensor, "x")[0] is tensor
    assert SINGLE_RANK.join(lambda: [1, 2], "x") == [1, 2]
    assert SINGLE_RANK.agree(lambda: 3, "x") == SINGLE_RANK.decide(lambda: 3, "x") == 3
    assert SINGLE_RANK.alone
    assert SINGLE_RANK.is_first
    with pytest.raises(DataError):
        SINGLE_RANK.agree(raise_data_error, "x")


def raise_data_error() -> None:
    raise DataError("no")


def test_everything_moves() -> None:
    context = Context(3, "d", torch.arange(4))
    thought = Thought(torch.arange(2), torch.zeros(2), True)
    rollout = Rollout(context, (2,), ((thought,),), torch.zeros(1), torch.zeros(1))
    found = on_device({"a": [rollout, (torch.ones(1), "text", None)]}, torch.device("meta"))
    moved = found["a"][0]
    assert moved.context.token_ids.device.type == "meta"
    assert moved.thoughts[0][0].sampled_ids.device.type == "meta"
    assert (moved.context.ordinal, moved.positions, moved.thoughts[0][0].closed) == (3, (2,), True)
    assert found["a"][1][1:] == ("text", None)
    assert context.token_ids.device.type == "cpu"


def test_counts_of_a_step_are_those_of_its_shares() -> None:
    one, two = Counts(1, 2, 3, 4, 5, 6, (7, 8), 9), Counts(10, 20, 30, 40, 50, 60, (70, 80), 90)
    sums = {name: part + two.sums()[name] for name, part in one.sums().items()}
    assert Counts.of_sums(sums) == Counts(11, 22, 33, 44, 55, 66, (77, 88), 99)
    assert Counts.of_sums(SINGLE_RANK.total(one.sums, "count")) == one
    none = Counts(1, 2, 3, 4, 5, 6)
    assert Counts.of_sums(SINGLE_RANK.total(none.sums, "count")) == none


@pytest.mark.parametrize("architecture", ["llama", "olmo2", "smollm3"])
def test_forgotten_activations_give_the_same_gradient(
    model_folders: dict[str, Path], architecture: str
) -> None:
    gradients, calls = [], []
    for forget in (False, True):
        model = load_model(str(model_folders[architecture]))
        assert len(layers(model.hf)) == 2
        layers(model.hf)[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        if forget:
            checkpoint_activations(model.hf)
        thought = Thought(torch.tensor([5, 6]), torch.zeros(2), False)
        context = Context(0, "d", (torch.arange(30) * 7) % 300)
        rollout = Rollout(context, (9,), ((thought,) * 2,), torch.zeros(1), torch.zeros(1))
        scores = forward(
            model, build_tree(model, [rollout], 4, LossReads(context=True)), temperature=1.0
        )
        (scores.think_logp_PGH.sum() + scores.context_logp.square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.hf.named_parameters()})
        with torch.no_grad():
            forward(
                model, build_tree(model, [rollout], 4, LossReads(context=True)), temperature=1.0
            )
    assert len(calls) == 2 + 3  # the second time a layer runs again in the backward, and only there
    for name, wanted in gradients[0].items():
        assert torch.equal(gradients[1][name], wanted), name
        assert wanted.abs().max() > 0


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ConfigError, match="train it in one process"):
        layers(model)
