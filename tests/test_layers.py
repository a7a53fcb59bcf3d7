"""Imports run one way, so that every part can be read, tested and replaced without those above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"rntp.types", "rntp.errors", "rntp.registry"}


def imports(path: Path) -> set[str]:
    """Modules of this repository that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = {s for s in submodules if (ROOT / (s.replace(".", "/") + ".py")).is_file()}
            found |= inside or {node.module}
    return {name for name in found if name.startswith("rntp")}


def files(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    assert found
    return found


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        (["kernels/rntp_kernels/**/*.py"], {"rntp_kernels"}),
        (
            ["data_prep/rntp_data_prep/*.py"],
            {"rntp_data_prep", "rntp.data.manifest", "rntp.config_file", *CORE},
        ),
        (["rntp/rewards/*.py"], {"rntp.rewards", *CORE}),
        (["rntp/placement/*.py"], {"rntp.placement", *CORE}),
        (["rntp/advantages.py", "rntp/losses.py", "rntp/types.py", "rntp/errors.py"], CORE),
        (["rntp/baselines.py", "rntp/labels.py", "rntp/learnability.py", "rntp/selector.py"], CORE),
        (["rntp/chance.py", "rntp/files.py", "rntp/config_file.py"], CORE),
        (["rntp/config.py"], {"rntp.config_file", "rntp.config_rules", *CORE}),
        (["rntp/config_rules.py"], {"rntp.config", *CORE}),
        (["rntp/weighting.py", "rntp/group_spread.py"], CORE),
        (["rntp/rounding.py"], {"rntp.chance", *CORE}),
        (["rntp/credit.py"], {"rntp.advantages", "rntp.baselines", "rntp.config", *CORE}),
        (
            ["rntp/data/manifest.py", "rntp/data/order.py"],
            {"rntp.files", "rntp.data.damage", "rntp.data.seen", "rntp.data.storage", *CORE},
        ),
        (
            [f"rntp/data/{name}.py" for name in ("damage", "retry", "seen", "windows")],
            CORE,
        ),
        (["rntp/data/live.py"], {"rntp.data.order", "rntp_data_prep", *CORE}),
        (
            ["rntp/data/live_stream.py"],
            {"rntp.data.damage", "rntp.data.live", "rntp.data.order", "rntp.data.stream"}
            | {"rntp.data.windows", *CORE},
        ),
        (["rntp/data/storage.py"], {"rntp.data.retry", *CORE}),
        (["rntp/data/state.py"], {"rntp.data.damage", *CORE}),
        (["rntp/model/attention.py", "rntp/model/head.py"], {"rntp_kernels", *CORE}),
        (
            ["rntp/model/check.py"],
            {"rntp_kernels", "rntp.model.attention", "rntp.model.head", "rntp.model.unshared"}
            | CORE,
        ),
        (["rntp/model/routing.py"], CORE),
        (
            ["rntp/model/unshared.py"],
            {"rntp_kernels", "rntp.model.routing", "rntp.sharding", *CORE},
        ),
        (["rntp/model/plain_check.py"], {"rntp.model.check", "rntp.model.unshared", *CORE}),
        (["rntp/model/markers.py"], {"rntp.model.head", "rntp.tokenizer", *CORE}),
        (["rntp/tree.py"], {"rntp_kernels", "rntp.model", *CORE}),
        (["rntp/moe.py"], {"rntp.model", *CORE}),
        (
            ["rntp/rollout/unshared.py", "rntp/rollout/finish.py"],
            {"rntp.chance", "rntp.model", "rntp.rollout", "rntp.tree", *CORE},
        ),
        (["rntp/reference.py"], {"rntp.config", "rntp.model", "rntp.sharding", "rntp.tree", *CORE}),
        (["rntp/ranks.py"], {"rntp.config", *CORE}),
        (["rntp/sharding.py", "rntp/signals.py", "rntp/alarm_maths.py"], CORE),
        (["rntp/faults.py"], {"rntp.signals", *CORE}),
        (["rntp/alarms.py"], {"rntp.alarm_maths", *CORE}),
        (["rntp/watchdog_process.py"], set()),
        (["rntp/shards.py"], {"rntp.ranks", *CORE}),
        (
            ["rntp/checkpoint.py"],
            {"rntp.faults", "rntp.files", "rntp.ranks", "rntp.sharding", "rntp.shards", *CORE},
        ),
        (
            ["rntp/step.py"],
            {"rntp.losses", "rntp.rewards", "rntp.credit", "rntp.baselines", "rntp.evidence"}
            | {"rntp.rounding", "rntp.config", "rntp.model", "rntp.moe", "rntp.tree", *CORE},
        ),
        (["rntp/evidence.py"], {"rntp.chance", "rntp.config", *CORE}),
        (
            ["rntp/judging.py"],
            {"rntp.config", "rntp.model", "rntp.rewards", "rntp.tokenizer", "rntp.tree", *CORE},
        ),
        (
            ["rntp/objective.py"],
            {"rntp.losses", "rntp.weighting", "rntp.step", "rntp.tree", "rntp.config", "rntp.moe"}
            | CORE,
        ),
    ],
)
def test_a_layer_imports_only_what_lies_below(patterns: list[str], allowed: set[str]) -> None:
    for path in files(*patterns):
        above = {
            name
            for name in imports(path)
            if name not in allowed and not any(name.startswith(a + ".") for a in allowed - CORE)
        }
        assert above == set(), path


def test_only_the_command_line_knows_the_trainer() -> None:
    for path in files("rntp/**/*.py"):
        if path.name not in {"cli.py", "__init__.py", "__main__.py"}:
            assert "rntp.trainer" not in imports(path), path
            assert "rntp.cli" not in imports(path), path
