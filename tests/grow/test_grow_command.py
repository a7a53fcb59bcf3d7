"""The command on a real run: it grows, the run goes on over that, and a resume is exact."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("datatrove", reason="extra `prep`")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path[:0] = [str(EXPERIMENTS / "grow"), str(EXPERIMENTS / "planted")]

import make_base  # noqa: E402
import web  # noqa: E402

from rntp.cli import main  # noqa: E402
from rntp.data import Manifest  # noqa: E402
from rntp.runtime.files import read_json_lines  # noqa: E402

pytestmark = pytest.mark.slow

SITE = "https://planted.example/"


def crawl(folder: Path) -> None:
    """Some of the planted web as files."""
    paths = ["/index.html"]
    for region in ("desks", "draws", "talk"):
        paths += [f"/{region}/index.html", *(web.path_of(region, n) for n in range(12))]
    for path in paths:
        page = web.site_page(path)
        assert page is not None
        (folder / path.strip("/")).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.strip("/")).write_text(page)


def train(run: Path, base: Path, steps: int, *more: str) -> None:
    facts = {
        "run.steps": steps,
        "checkpoint.every_steps": 1,
        "data.source": base,
        "data.docs_per_step": 4,
        "placement.positions_per_doc": 2,
        "thought.thoughts_per_position": 3,
        "evaluation.docs": 0,
        "evaluation.source": "null",
    }
    sets = [part for key, value in facts.items() for part in ("--set", f"{key}={value}")]
    main(["train", str(EXPERIMENTS / "grow/config.yaml"), "--run-dir", str(run), *sets, *more])


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Metrics less the times."""
    rows = read_json_lines(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if "time/" not in k} for row in rows]


KEYS = ("step", "data/digest", "data/ordinal_first", "reward/mean", "loss/total", "gain/mean")


def test_a_run_grows_goes_on_and_resumes_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXPERIMENTS.parent)
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "grown"
    make_base.write_base(base, 30)
    crawl(tmp_path / "crawl")
    train(run, base, 2)
    frontier = tmp_path / "frontier.yaml"
    facts = {"output": str(out), "sites": {SITE: str(tmp_path / "crawl")}, "pages": 30}
    facts |= {"pages_a_look": 6, "positions": 3, "thoughts": 3}
    facts |= {"prep": {"min_tokens": 40, "min_chars": 100, "workers": 1}}
    frontier.write_text(yaml.safe_dump(facts))
    capsys.readouterr()
    main(["data", "grow", str(run), "--frontier", str(frontier), "--json"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["growth"], found["step"], found["earlier"]) == (1, 2, 1)
    assert found["requests"] == 30
    segment = Manifest.load(out / "segments" / "0001")
    assert segment.num_docs == found["segment"]["documents"] >= 6
    assert "--accept-data-change --set 'data.source=" in captured.err
    shares = json.loads((out / "source.json").read_text())
    assert list(shares) == [str(base), str(out / "segments" / "0001")]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    rows = [row for row in read_json_lines(out / "grow.jsonl") if row["row"] == "worth"]
    worths = [w for row in rows for w in row["pages"]]
    gains = [w["gain"] for w in worths if w["gain"] is not None]
    assert len({round(g, 6) for g in gains}) > 3  # measured, each for itself
    # The same command again is a second growth of what is left.
    main(["data", "grow", str(run), "--frontier", str(frontier)])
    assert "growth 2: " in capsys.readouterr().out

    # The run goes on, straight and with a stop in between; and only where that is asked for.
    other = tmp_path / "other"
    shutil.copytree(run, other)
    more = ["--accept-data-change", "--set", f"data.source={json.dumps(shares)}"]
    with pytest.raises(SystemExit) as stopped:
        train(run, base, 5, *more[1:])
    assert stopped.value.code == 4
    train(run, base, 5, *more)
    train(other, base, 4, *more)
    train(other, base, 5, *more[1:])
    straight, resumed = steps_of(run), steps_of(other)
    assert [row["step"] for row in straight] == [1, 2, 3, 4, 5]
    for one, two in zip(straight, resumed, strict=True):
        assert {k: one[k] for k in KEYS} == {k: two[k] for k in KEYS}
    manifest = json.loads((run / "manifest.json").read_text())
    assert [part["step"] for part in manifest["segments"] if "corpus" in part] == [0, 2]
