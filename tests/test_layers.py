"""Imports run downwards, package by package, so that every room can be read, tested and replaced
without those above it."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"rntp": ROOT, "rntp_kernels": ROOT / "kernels", "rntp_data_prep": ROOT / "data_prep"}

# From the ground up: a package imports those before it, and itself.
FLOORS = (
    ("errors", "registry", "rng", "show", "types"),
    ("config",),
    ("runtime",),
    ("model",),
    ("data",),
    ("gate",),
    ("judges", "placement", "rewards", "tools"),
    ("rollout",),
    ("objective",),
    ("run",),
    ("training",),
    ("evaluation",),
    ("trainer",),
    ("bench", "grow", "plan", "reader", "report", "traces"),
    ("ablate",),
    ("commands",),
    ("cli",),
)
# What reads little: nothing else of rntp than this.
PURE = {
    "rewards": {"registry", "types", "errors"},
    "errors": set[str](),
    "rng": set[str](),
    "show": set[str](),
    "registry": {"errors"},
    "types": {"errors"},
    "config": {"errors"},
}
MOST_BESIDE_PACKAGES = 12


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in SOURCES.items():
        for path in (folder / package).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of this repository that a file imports, wherever in it but for the type checker."""
    tree = ast.parse(path.read_text())
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    named = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for name in named:
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found |= {name} - {""}
    return frozenset(found)


def room(module: str) -> str:
    """The package of rntp that a module belongs to, or its own name at the top."""
    return module.removeprefix("rntp").removeprefix(".").partition(".")[0]


def crossings() -> list[tuple[str, str]]:
    """(module, module of another room that it imports), within rntp."""
    return [
        (module, other)
        for module, path in MODULES.items()
        if module.startswith("rntp.") and room(module) != "__main__"
        for other in imports(path)
        if other.startswith("rntp.") and room(other) != room(module)
    ]


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in MODULES if module.startswith("rntp.")}
    assert rooms - {"__main__"} <= {name for floor in FLOORS for name in floor}


def test_imports_run_downwards() -> None:
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    above = [(a, b) for a, b in crossings() if floor[room(b)] >= floor[room(a)]]
    assert [pair for pair in above if room(pair[0]) not in FLOORS[0]] == []


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_know_little_else(name: str) -> None:
    known = {(a, b) for a, b in crossings() if room(a) == name}
    assert {pair for pair in known if room(pair[1]) not in PURE[name]} == set()


def test_policies_of_placement_are_pure() -> None:
    policies = [
        path
        for module, path in MODULES.items()
        if module.startswith("rntp.placement.") and "@register(" in path.read_text()
    ]
    assert len(policies) > 5
    for path in policies:
        assert {room(name) for name in imports(path)} <= {
            "placement",
            "types",
            "registry",
            "errors",
        }, path


def test_kernels_know_nothing_of_rntp_and_preparation_only_corpora_and_config_files() -> None:
    known = defaultdict(set)
    for module, path in MODULES.items():
        known[module.partition(".")[0]] |= imports(path)
    assert {name for name in known["rntp_kernels"] if not name.startswith("rntp_kernels")} == set()
    others = {name for name in known["rntp_data_prep"] if not name.startswith("rntp_data_prep")}
    assert others == {
        "rntp.config.files",
        "rntp.data.manifest",
        "rntp.data.manifest_writer",
        "rntp.data.shard_format",
        "rntp.errors",
    }


def test_no_module_imports_itself_by_a_detour() -> None:
    """Circles between modules, leaving out what a package's own `__init__` gathers of it."""
    below = {
        module: {o for o in imports(path) if o != module and not module.startswith(o + ".")}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module not in done and not module.startswith("rntp_kernels"):
            for other in sorted(below[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(below):
        visit(module, ())


def test_few_files_stand_beside_the_packages() -> None:
    assert len(list((ROOT / "rntp").glob("*.py"))) <= MOST_BESIDE_PACKAGES
