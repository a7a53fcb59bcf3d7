"""Runs that a judge behind an endpoint drives: exact, resumed, and ended where judges fail."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tiny_run
from scripted_server import MODEL, Said, Script, Server, completion, honest, part, serving

from rntp import Trainer, cli
from rntp.config import Config
from rntp.errors import ConfigError, Diverged, JudgesAway
from rntp.judges import endpoint as endpoint_module
from rntp.objective.credit import credit
from rntp.rollout import judged
from rntp.runtime.files import read_json_lines

MISSING = Said(b"{}", status=500)


def half(request: dict[str, Any], number: int) -> str | Said:
    """Grades by the letters of the answer, so that groups differ; knows the truth; no attack."""
    text = request["messages"][1]["content"]
    if honest(request, number) == "yes":
        return "yes"
    answer = part(text, "ANSWER")
    likely = 0.05 + 0.4 * (sum(map(ord, answer)) % 7) / 7
    return Said(completion("no", logprobs={"yes": math.log(likely), "no": math.log(1 - likely)}))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(endpoint_module, "_LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(judged, "_PAUSE_S", 0.2)


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict[str, Any]:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["thought"]["answer_tokens"] = 4
    raw["evaluation"] = {"docs": 0}
    raw["reward"] |= {"scheme": "judge", "shadows": ["log_ratio"]}
    return raw


def judges(raw: dict[str, Any], server: Server, **more: Any) -> Config:
    use = {"a": {"url": server.url, "model": MODEL}}
    settings = {"use": use, "tries": 1, "patience_s": 0.4, "seconds": 60, **more}
    return Config.parse({**raw, "reward": {**raw["reward"], "judges": settings}})


def metrics(config: Config) -> list[dict[str, Any]]:
    timed = ("time/", "memory/")
    rows = read_json_lines(config.run.dir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]


def thoughts(config: Config) -> Iterator[dict[str, Any]]:
    for path in sorted((config.run.dir / "rollouts").glob("step_*.jsonl*")):
        yield from read_json_lines(path)


def test_a_judge_drives_and_is_asked_once(raw: dict[str, Any], tmp_path: Path) -> None:
    with serving(half) as server:
        config = judges(raw, server)
        Trainer(config).fit()
        rows = metrics(config)
        asked = len(server.asked)
        texts = server.texts()
        assert asked == len(set(texts)) > 20
        assert all(row["judge/missing_frac"] == 0 for row in rows)
        assert rows[0]["judge/fooled"] == 0.0
        assert rows[0]["judge/gold"] == 1.0
        assert "judge/fooled" not in rows[1]
        assert sum(row["judge/tokens"] for row in rows) > 0
        for row in rows:
            said = [t for t in thoughts(config) if t["policy_version"] == row["step"] - 1]
            assert row["reward/judge"] == pytest.approx(sum(t["reward"] for t in said) / len(said))
            assert all(t["verdicts"]["a"]["yes"] == pytest.approx(t["reward"]) for t in said)
        # The same run, killed after two steps and with a judge that has changed its mind: what
        # was asked is not asked again, so it is the same run.
        other = judges(
            raw | {"run": {**raw["run"], "dir": str(tmp_path / "other"), "steps": 2}}, server
        )
        Trainer(other).fit()
        before = len(server.asked)
        again = judges(raw | {"run": {**raw["run"], "dir": str(tmp_path / "other")}}, server)
        Trainer(again).fit()
        assert metrics(again) == rows
        server.script = lambda request, number: MISSING
        before = len(server.asked)
        (again.run.dir / "metrics.jsonl").unlink()
        for folder in ("checkpoints", "rollouts"):
            for path in sorted((again.run.dir / folder).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        Trainer(again).fit()
        assert len(server.asked) == before
        assert metrics(again) == rows


def test_a_missing_verdict_is_no_zero(raw: dict[str, Any]) -> None:
    def script(request: dict[str, Any], number: int) -> str | Said:
        answer = part(request["messages"][1]["content"], "ANSWER")
        fails = sum(map(ord, answer)) % 4 == 0 and honest(request, number) == "no"
        return MISSING if fails else half(request, number)

    with serving(script) as server:
        config = judges(raw, server, missing=0.9, audit="off")
        Trainer(config).fit()
    rows, said = metrics(config), list(thoughts(config))
    missing = [t for t in said if t["verdicts"]["a"]["yes"] is None]
    assert 0 < len(missing) < len(said)
    assert all(t["reward"] is None and t["advantage"] == 0 for t in missing)
    assert {t["verdicts"]["a"]["failure"] for t in missing} == {"server"}
    for row in rows:
        assert row["skipped"] == 0
        mine = [t for t in said if t["policy_version"] == row["step"] - 1]
        there = [t["reward"] for t in mine if t["reward"] is not None]
        assert row["judge/missing_frac"] == pytest.approx(1 - len(there) / len(mine))
        assert row["reward/judge"] == pytest.approx(sum(there) / len(there))
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for t in said:
        groups.setdefault((t["ordinal"], t["position"]), []).append(t)
    for group in groups.values():
        there = [t for t in group if t["reward"] is not None]
        for t in there:
            others = [u["reward"] for u in there if u is not t]
            expected = t["reward"] - sum(others) / len(others) if others else 0
            assert t["advantage"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_away_judges_end_the_run_saved_and_it_goes_on(raw: dict[str, Any], tmp_path: Path) -> None:
    with serving(half) as server:
        whole = judges(
            raw | {"run": {**raw["run"], "dir": str(tmp_path / "whole")}}, server, audit="off"
        )
        Trainer(whole).fit()

    calls = 0

    def script(request: dict[str, Any], number: int) -> str | Said:
        nonlocal calls
        calls += 1
        return half(request, number) if calls <= 40 else MISSING

    with serving(script) as server:
        config = judges(raw, server, audit="off")
        with pytest.raises(
            JudgesAway, match=r"verdicts are missing \(server\) after 0 s of waiting"
        ):
            Trainer(config).fit()
        done = len(metrics(config))
        assert 0 < done < 4
        assert (config.run.dir / f"checkpoints/step_{done:08d}/COMMIT.json").exists()
        calls = -10_000
        Trainer(config).fit()
    assert metrics(config) == metrics(whole)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param(
            lambda request, number: "yes",
            "can be fooled: .* wrong answers 100%",
            marks=pytest.mark.slow,
        ),
        (
            lambda request, number: "yes"
            if part(request["messages"][1]["content"], "ANSWER") == ":"
            else honest(request, number),
            "can be fooled: .* most often “colon” .100%.",
        ),
        pytest.param(
            lambda request, number: "no", "cannot tell right from wrong", marks=pytest.mark.slow
        ),
    ],
)
def test_a_judge_that_can_be_fooled_stops_the_run(
    raw: dict[str, Any], script: Script, message: str
) -> None:
    with serving(script) as server:
        with pytest.raises(Diverged, match=message):
            Trainer(judges(raw, server)).fit()
        Trainer(judges(raw, server, audit={"warn": {"docs": 2}})).fit()
    log = (Path(raw["run"]["dir"]) / "log.txt").read_text()
    assert "audit of judge a" in log
    assert "Take a stronger model" in log


def test_the_command_tries_attacks(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(half) as server:
        use = {"good": {"url": server.url, "model": MODEL}}
        raw["reward"]["judges"] = {"use": use, "tries": 1}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(raw))
        cli.main(["judge", str(path)])
        table = capsys.readouterr().out
        assert "true continuation" in table
        assert "100%" in table
        server.script = lambda request, number: "yes"
        with pytest.raises(SystemExit) as caught:
            cli.main(["judge", str(path)])
        assert caught.value.code == 6
        assert "can be fooled" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["judge", str(path)])
    assert caught.value.code == 5  # nobody answers


def test_what_a_config_lacks_is_said(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"reward.judges.use names none; name one"):
        Trainer(Config.parse(raw))
    with serving(half) as server:
        config = judges(raw | {"objective": {"advantage": "step"}}, server)
        with pytest.raises(ConfigError, match="set it to leave_one_out or group_mean"):
            Trainer(config)


def test_who_is_there_is_compared_with_who_is_there(raw: dict[str, Any]) -> None:
    config = Config.parse({**raw, "reward": {**raw["reward"], "scheme": "log_ratio"}})
    nan = math.nan
    reward = torch.tensor([[1.0, 2.0, 6.0], [4.0, nan, 8.0], [nan, 5.0, nan], [nan, nan, nan]])
    found, counted = credit(reward, torch.zeros(4, 2), config, missing_PG=reward.isnan())
    expected = [[-3.0, -1.5, 4.5], [-4.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert found.tolist() == expected
    assert counted.all()
