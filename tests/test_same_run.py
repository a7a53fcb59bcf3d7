"""A run is the same run however it is started: in one go, made longer, or resumed after a kill.

Where it would not be, it is refused. What may change between two starts changes no update.
"""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import same_shards, tiny_run, write_corpus
from safetensors.torch import load_file

from rntp import placement, rewards
from rntp.config import Config
from rntp.data.manifest import Manifest
from rntp.errors import ConfigError
from rntp.placement import REGISTRY as POLICIES
from rntp.run.log import read_manifest, read_metrics, starts_of
from rntp.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS = 3
LAST = f"step_{STEPS:08d}"
EVALUATED = ["evaluation.docs=3"]
ANSWERS = "thought.answer_tokens=2"
TWICE = "objective.epochs_per_rollout=2"
ANOTHER = "objective.advantage=step"
SOLVING = ["placement.positions_per_doc=1", "thought.answer_tokens=4"]
# Judges outside of the run, and tasks, have tests of their own (tests/judges, tests/training).
HERE = sorted(
    name
    for name, needs in rewards.NEEDS.items()
    if not needs.outside and not needs.tasks and not needs.lost_span
)
ALL_SCHEMES = f"reward.shadows=[{', '.join(HERE)}]"

PLACEMENTS = [
    [f"placement.policy={name}"] + (["placement.ramp_steps=4"] if name == "tiers" else [])
    for name in sorted(POLICIES)
]
OPTIONS = [
    *PLACEMENTS,
    ["placement.policy={random: {repeats: 0.5}}"],
    ["placement.entropy_band=[0.5, 9]", "placement.surprise_band=[0.1, 100]"],
    ["placement.interleaved=true", "placement.policy=learnability", "model.dtype=float32"],
    ["reading.window=6", *EVALUATED, "evaluation.controls=[shuffled]"],
    ["reading.mixing=true", "reading.window=6", *EVALUATED],
    ["reading.window=6", "reward.scheme={log_ratio: 1, lost_span: 0.5}"],
    ["reading.window=0", "placement.interleaved=true", "objective.continuation_weight=0", ANOTHER],
    ["reading.window=4", "reading.piece=8", *EVALUATED, "evaluation.controls=[shuffled]"],
    ["reading.window=9", "baseline.weights=ema", "baseline.decay=0.9", "baseline.use=clip"],
    # Rewards, and what changes in them as a run goes on.
    ["reward.scheme=exact_prefix", "reward.shadows=[]"],
    ["reward.scheme=random", ALL_SCHEMES, "thought.answer_tokens=3", "reward.length_half_life=1"],
    ["reward.scheme=net_gain", "reward.token_cost_after=2", "reward.token_cost=0.3"],
    ["reward.scheme=length_triangle", "reward.length_half_life=1"],
    ["reward.scheme={judge_gold: 1, log_ratio: 0.1}", ANSWERS],
    ["reward.judges.itself=frozen", "reward.scheme=judge_gold", ANSWERS],
    ["reward.scheme={mean_prob: 0.9, format_only: 0.1}", "baseline.use=clip"],
    ["baseline.weights=ema", "baseline.decay=0.9", "baseline.use=clip"],
    ["baseline.weights=frozen", "baseline.use=group_member", "model.dtype=float32"],
    ["baseline.weights=none", "reward.scheme=logprob"],
    ["baseline.use=position_weight", "reward.scheme=mean_prob"],
    ["baseline.use=gate"],
    # Objectives.
    ["objective.advantage=group_mean", "objective.advantage_std=true"],
    ["objective.advantage=step"],
    ["objective.advantage=none"],
    ["objective.normalize=thoughts"],
    ["objective.normalize=budget"],
    ["objective.algorithm=clipped_ratio", TWICE],
    [
        "objective.continuation_weight=0",
        "objective.algorithm=cispo",
        TWICE,
        "objective.drop_dead_groups=true",
        "reward.scheme=exact_prefix",
    ],
    ["objective.algorithm=gspo", TWICE],
    ["objective.min_group_std=0.5", "objective.continuation_weight=0"],
    ["objective.continuation_use=posterior"],
    ["objective.continuation_use=reward"],
    ["objective.kl_weight=0.1", "objective.kl_reference=ema", "baseline.decay=0.9"],
    ["objective.kl_weight=0.1", "objective.kl_in=reward", "objective.kl_estimator=k1"],
    ["objective.entropy_weight=0.01", "objective.importance_cap=2"],
    ["thought.temperature=0.7", "objective.ntp_weight=0"],
    ["thought.source=pause", "objective.pg_weight=0"],
    [
        "thought.thoughts_per_position=0",
        "objective.pg_weight=0",
        "objective.continuation_weight=0",
    ],
    # Data.
    ["data.replay_docs=1", "optim.lr=0.01"],
    ["data.windows=all"],
    ["data.max_documents=5"],
    ["data.workers=2"],
    ["data.source=LIVE"],
    ["data.source=LIVE", "data.windows=all", "data.max_documents=6"],
    ["data.source={CORPUS: 3, OTHER: 1}"],
    ["data.source=task:TASKS", *SOLVING, "reward.scheme=correct", *EVALUATED],
    [
        "data.source={CORPUS: 1, task:TASKS: 1}",
        *SOLVING,
        "reward.scheme={log_ratio: 1, correct: 2}",
    ],
    ["data.source=task:gym:chain_sum", *SOLVING, "data.context_tokens=96", "data.workers=2"],
    ["optim.adamw.weight_decay=0.1", "optim.warmup_steps=2", "optim.max_grad_norm=0.1"],
    ["optim.schedule=cosine"],
    ["rollout.docs_per_batch=1", "parallel.tokens_per_microbatch=16"],
    ["model.dtype=float64"],
    [*EVALUATED, "evaluation.every_steps=1", "evaluation.thoughts_per_position=2"],
]
# The rate depends on how long the run is meant to be.
REFUSED_TO_GO_ON = {"optim.schedule=cosine"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels and ends of sentences, so that every placement policy has what it looks for."""
    folder = tmp_path_factory.mktemp("labelled") / "shards"
    return write_corpus(folder, labelled=True, stops=True)


@pytest.fixture(scope="module")
def sources(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for LIVE (pages in a file, unprepared), CORPUS and OTHER in the options."""
    here = tmp_path_factory.mktemp("sources")
    manifest = Manifest.load(labelled)
    pages = [manifest.read(n) for n in range(manifest.num_docs)]
    lines = [json.dumps({"text": page.text * 4, "url": page.id}) for page in pages]
    (here / "pages.jsonl").write_text("\n".join(lines) + "\n")
    other = write_corpus(here / "other", documents=12, sentences=9)
    tasks = [json.dumps({"prompt": f"What is {n}?", "answer": n % 10}) for n in range(30)]
    (here / "tasks.jsonl").write_text("\n".join(tasks) + "\n")
    return {
        "LIVE": str(here / "pages.jsonl"),
        "CORPUS": str(labelled),
        "OTHER": str(other),
        "TASKS": str(here / "tasks.jsonl"),
    }


@pytest.fixture
def raw(model_folders: dict[str, Path], labelled: Path, tmp_path: Path) -> dict:
    raw = tiny_run(model_folders["llama"], labelled, tmp_path / "run")
    raw["run"]["steps"] = STEPS
    raw["data"]["docs_per_step"] = 2
    raw["checkpoint"] = {"every_steps": 1, "keep": 9}
    raw["evaluation"] = {"docs": 0}
    return raw


def fit(raw: dict, folder: Path, *overrides: str) -> Path:
    Trainer(Config.parse(raw, [*overrides, f"run.dir={folder}"])).fit()
    return folder


def comparable(run_dir: Path) -> list[dict]:
    """The metrics without what depends on the machine's mood."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in read_metrics(run_dir)
    ]


def test_every_placement_is_tried() -> None:
    assert len(PLACEMENTS) == len(placement.REGISTRY) > 8


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options[0])
def test_straight_is_continued_is_resumed(
    raw: dict, sources: dict[str, str], tmp_path: Path, options: list[str]
) -> None:
    """To the bit: metrics, weights, moments, and all that a checkpoint keeps beside them."""
    for name, path in sources.items():
        options = [option.replace(name, path) for option in options]
    straight = fit(raw, tmp_path / "straight", *options)
    metrics = comparable(straight)
    assert len(metrics) == STEPS
    assert all(math.isfinite(v) for row in metrics for v in row.values() if isinstance(v, float))
    whole = straight / "checkpoints" / LAST

    # As a kill after the second step leaves the folder.
    resumed = shutil.copytree(straight, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / LAST)
    fit(raw, resumed, *options)
    assert comparable(resumed) == metrics
    stems = same_shards(whole, resumed / "checkpoints" / LAST)
    copies = ("=ema", "=frozen", "kl_weight=")
    assert ("reference" in stems) == any(copy in o for o in options for copy in copies)
    assert ("replay" in stems) == ("data.replay_docs=1" in options)
    assert ("placement" in stems) == any(
        o.endswith(("learnability", "selector")) or "repeats" in o for o in options
    )

    continued = fit(raw, tmp_path / "continued", *options, "run.steps=1")
    if REFUSED_TO_GO_ON & set(options):
        with pytest.raises(ConfigError, match=r"optim\.steps: 1 there, 3 here"):
            fit(raw, continued, *options)
        return
    fit(raw, continued, *options)
    assert comparable(continued) == metrics
    assert same_shards(whole, continued / "checkpoints" / LAST) == stems
    if any(sources["LIVE"] in option for option in options):
        told = re.findall(r"pages read so far: (.*)", (straight / "log.txt").read_text())
        counts = [dict(part.rsplit(" ", 1) for part in line.split(", ")) for line in told]
        assert len(counts) == 1
        assert 24 >= int(counts[0]["pages"]) == int(counts[0]["kept"]) > 8
    if EVALUATED[0] in options:
        for other in (resumed, continued):
            for file in sorted((straight / "eval").iterdir()):
                assert (other / "eval" / file.name).read_bytes() == file.read_bytes()


# What may be set otherwise at the next start, and a value other than the tests' own.
# docs/resume.md lists the same fields.
FREE = {
    "run.name": "other",
    "run.timeouts_s": {"hang": 60, "ranks": 60},
    "run.on_trouble": {"stop": {"rollbacks": 9, "damaged": 0.1}},
    "model.device": "auto",
    "model.sharing": "none",
    "data.workers": {"process": 1},
    "reward.shadows": ["logprob"],
    "rollout.docs_per_batch": 1,
    "rollout.samplers": {
        "start": 1,
        "whole_every": 2,
        "contexts": 1,
        "lease_s": 30,
        "wait_s": 120,
    },
    "checkpoint.every_steps": 2,
    "checkpoint.keep": 1,
    "checkpoint.asynchronous": True,
    "evaluation.every_steps": 1,
    "evaluation.docs": 2,
    "evaluation.thoughts_per_position": 2,
    "evaluation.placement": {"even": {"positions_per_doc": 1}},
    "evaluation.controls": ["shuffled"],
    "log.rollouts_per_step": 2,
    "parallel.tokens_per_microbatch": 4096,
    "parallel.activation_checkpointing": True,
}
# Set by the command, or of another test.
ELSEWHERE = {
    "run.dir",
    "run.steps",
    "data.source",
    "evaluation.source",
}
ELSEWHERE |= {"evaluation.decile_model", "log.mirrors"}
# These cut the work otherwise, so that sums are rounded otherwise.
ROUNDED = {"parallel.tokens_per_microbatch", "model.sharing"}


def fields() -> set[str]:
    sections = Config.model_fields.items()
    return {f"{name}.{field}" for name, part in sections for field in part.annotation.model_fields}


def test_every_field_is_free_or_part_of_what_is_trained() -> None:
    """Each has one of the two places, and a free one is in the table above and in the docs."""
    config = Config.parse(
        {
            "run": {"steps": 1, "dir": "x"},
            "model": {"spec": "m"},
            "data": {"source": "c", "context_tokens": 64, "docs_per_step": 1},
            "placement": {"positions_per_doc": 1},
            "thought": {
                "thoughts_per_position": 2,
                "thought_tokens": 4,
                "tools": {"use": {"recall": None}},
            },
            "reading": {"window": 8, "piece": 16},
            # Of everything that only some settings read, each.
            "reward": {"horizon": 2, "scheme": {"net_gain": 1, "length_triangle": 1, "judge": 1}},
            "baseline": {"weights": "ema"},
            "objective": {
                "algorithm": "gspo",
                "kl": {"k3": {"weight": 1, "reference": "ema"}},
                "router_weight": 1,
            },
            "optim": {"schedule": "cosine"},
        }
    )
    # Chains do not go with samplers, nor does their tool with anything else.
    others = ["reading.piece=null", "rollout.samplers.start=1", "rollout.samplers.max_age=1"]
    others += ["reading.mixing=true"]
    stale = Config.parse(config.model_dump(), others)
    tasks = ["data.source=task:t", "reading.window=null", "reading.piece=null", "thought.tools={}"]
    asked = Config.parse(config.model_dump(), tasks)
    others = ["reading.piece=null", "thought.tools={}", "rollout.engine=vllm"]
    foreign = Config.parse(config.model_dump(), others)
    parts = [part for c in (config, stale, asked, foreign) for part in c.identity().items()]
    trained = {f"{section}.{field}" for section, part in parts for field in part}
    # Names that a run of before knows, and fields that are free but for one of their parts.
    stood = {"model.think_open", "model.think_close", "optim.betas", "optim.weight_decay"}
    stood |= {"reward.judge", "rollout.max_age"}
    assert stood < trained
    now = {"model.markers", "optim.adamw"}
    made = {"data.min_document_tokens", "optim.steps"}
    assert (trained - stood - made) | now == fields() - set(FREE) - ELSEWHERE
    page = (Path(__file__).parents[1] / "docs/resume.md").read_text(encoding="utf-8")
    missing = [field for field in FREE if f"`{field}`" not in page]
    assert missing == []


@pytest.fixture(scope="module")
def two_runs(
    model_folders: dict[str, Path], labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, Path, Path]:
    """The config, a run of two steps, and one of three."""
    here = tmp_path_factory.mktemp("free")
    raw = tiny_run(model_folders["llama"], labelled, here / "run")
    raw["run"]["steps"] = STEPS
    raw["data"]["docs_per_step"] = 2
    raw["checkpoint"] = {"every_steps": 1, "keep": 9}
    raw["evaluation"] = {"docs": 0}
    raw["model"]["dtype"] = "float32"  # where work is cut otherwise, rounding stays small
    return raw, fit(raw, here / "two", "run.steps=2"), fit(raw, here / "three")


@pytest.mark.parametrize("field", FREE)
def test_what_may_change_changes_no_update(
    two_runs: tuple[dict, Path, Path], tmp_path: Path, field: str
) -> None:
    raw, two, three = two_runs
    folder = shutil.copytree(two, tmp_path / "run")
    section, name = field.split(".")
    changed = {**raw, section: {**raw.get(section, {}), name: FREE[field]}}
    fit(changed, folder)
    for stem in ("weights", "moments"):
        files = sorted((three / "checkpoints" / LAST / stem).iterdir())
        for file in files:
            expected = load_file(file)
            found = load_file(folder / "checkpoints" / LAST / stem / file.name)
            for key, tensor in expected.items():
                tolerance = 1e-2 if field in ROUNDED else 0.0
                torch.testing.assert_close(found[key], tensor, rtol=tolerance, atol=tolerance / 10)
    first, second = starts_of(read_manifest(folder))
    assert "changed" not in first
    assert second["from_step"] == 2
    told = second["changed"]
    assert told["run.steps"] == {"was": 2, "is": STEPS}
    was, now = (Config.parse(c).model_dump(mode="json")[section][name] for c in (raw, changed))
    if was != now:
        assert told[field] == {"was": was, "is": now}


def test_what_is_trained_may_not_change(two_runs: tuple[dict, Path, Path], tmp_path: Path) -> None:
    raw, two, _ = two_runs
    folder = shutil.copytree(two, tmp_path / "run")
    for override, said in {
        "optim.lr=0.5": r"optim\.lr: 0\.001 there, 0\.5 here",
        "reward.discount=0.5": r"reward\.discount",
        "placement.policy=even": r"placement\.policy",
        # Here it would leave shorter documents out of training.
        "evaluation.placement={random: {positions_per_doc: 9}}": (
            r"data\.min_document_tokens: 13 there, 20 here"
        ),
    }.items():
        with pytest.raises(ConfigError, match=said):
            fit(raw, folder, override)
    # Nobody reads it, so it changes nothing.
    Trainer(Config.parse(raw, ["reward.token_cost=0.5", f"run.dir={folder}"])).fit()


def test_evaluations_of_other_settings_are_not_compared(raw: dict, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(raw, folder, *EVALUATED, "run.steps=1")
    before = {p.name: p.read_bytes() for p in (folder / "eval").iterdir()}
    more = [*EVALUATED, "evaluation.docs=4", f"run.dir={folder}"]
    trainer = Trainer(Config.parse(raw, [*more, "run.steps=1"]))
    assert trainer.fit() is None  # the one before training has other pages
    names = sorted(p.name for p in (folder / "eval").iterdir())
    [kept] = [name for name in names if name.count(".") == 2]
    assert (folder / "eval" / kept).read_bytes() == before["step_00000001.json"]
    now = json.loads((folder / "eval" / "step_00000001.json").read_text())
    assert len(now["pages"]) == 4
    assert (folder / "eval" / "step_00000000.json").read_bytes() == before["step_00000000.json"]
    again = Trainer(Config.parse(raw, [*EVALUATED, "run.steps=1", f"run.dir={folder}"]))
    assert again.fit() is not None
