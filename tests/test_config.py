"""The config is strict, and says what to do."""

import re
from pathlib import Path

import pytest
import yaml

from rntp.config import Config, Section
from rntp.errors import ConfigError
from rntp.preflight import check_names

ROOT = Path(__file__).parents[1]
MINIMAL = {
    "run": {"steps": 4, "dir": "runs/x"},
    "model": {"spec": "some/model"},
    "data": {"source": "shards", "context_tokens": 128, "docs_per_step": 2},
    "placement": {"positions_per_doc": 4},
    "thought": {"thoughts_per_position": 4, "thought_tokens": 8},
    "reward": {"horizon": 4},
}


def minimal(**sections) -> dict:
    raw = {name: dict(fields) for name, fields in MINIMAL.items()}
    for section, fields in sections.items():
        raw.setdefault(section, {}).update(fields)
    return raw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (minimal(optim={"learning_rate": 1}), r"optim.learning_rate: no such field"),
        (minimal(optim={"warmup_step": 1}), r"did you mean `optim.warmup_steps`\?"),
        (minimal(run={"lr": 1}), r"`lr` belongs under `optim:`"),
        (minimal(modle={}), r"modle: no such section; did you mean `model:`\?"),
        (minimal(reward={"horizon": 0}), r"reward.horizon: .*greater than or equal to 1.*given: 0"),
        (minimal(reward={"horizon": 100}), r"raise data.context_tokens, or lower"),
        (minimal(thought={"thoughts_per_position": 1}), r"set thought.thoughts_per_position to 2"),
        (minimal(thought={"top_p": 0.9}), r"thought.top_p: no such field"),
        (minimal(objective={"epochs_per_rollout": 2}), r"objective.algorithm to clipped_ratio"),
        (minimal(objective={"advantage_std": True}), r"leave_one_out set it to false"),
        (minimal(model={"think_close": "<think>"}), r"must differ"),
        *[
            (minimal(baseline={"use": use, "weights": "none"}), r"set baseline.weights to current")
            for use in ("clip", "group_member", "position_weight")
        ],
        (minimal(baseline={"decay": 1}), r"baseline.decay: .*less than 1"),
        ({"run": {}}, r"run.steps: required and not given"),
        ([], r"expected sections"),
    ],
)
def test_mistakes_are_explained(raw: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(raw)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(minimal(optim={"lrr": 1}, run={"stepz": 1}))
    assert "optim.lrr" in str(caught.value)
    assert "run.stepz" in str(caught.value)


def test_overrides() -> None:
    config = Config.parse(minimal(), ["optim.lr=3e-5", "run.seed=7", "reward.shadows=[logprob]"])
    assert config.optim.lr == 3e-5
    assert config.run.seed == 7
    assert config.reward.shadows == ("logprob",)
    for wrong in ("optim.lr", "lr=1", "optim.=1", ".lr=1"):
        with pytest.raises(ConfigError, match=r"section\.field=value"):
            Config.parse(minimal(), [wrong])


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file"):
        Config.load(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: [")
    with pytest.raises(ConfigError, match="not YAML"):
        Config.load(broken)


def test_resolved_config_reads_back_equal() -> None:
    config = Config.parse(minimal(optim={"lr": 2e-6}))
    assert Config.parse(yaml.safe_load(config.to_yaml())) == config


def test_digest_is_of_what_is_computed() -> None:
    base = Config.parse(minimal()).digest()
    for harmless in ("run.steps=9", "run.dir=other", "parallel.tokens_per_microbatch=64"):
        assert Config.parse(minimal(), [harmless]).digest() == base
    for harmful in ("run.seed=1", "reward.discount=0.9", "optim.lr=1e-3", "model.dtype=float32"):
        assert Config.parse(minimal(), [harmful]).digest() != base
    cosine = minimal(optim={"schedule": "cosine"})
    assert Config.parse(cosine).digest() != Config.parse(cosine, ["run.steps=9"]).digest()


def test_inert_baseline_is_warned_about() -> None:
    def warned(*overrides: str) -> list[bool]:
        said = list(Config.parse(minimal(), overrides).warnings())
        return [any(word in w for w in said) for word in ("cancels", "keeps a copy")]

    assert warned() == [True, False]
    assert warned("baseline.weights=none") == [False, False]
    for weights in ("frozen", "ema"):
        assert warned(f"baseline.weights={weights}") == [True, True]
        for use in ("clip", "group_member", "position_weight"):
            assert warned(f"baseline.weights={weights}", f"baseline.use={use}") == [False, False]
    # Its weights come from the baseline, so it does not cancel.
    assert warned("reward.scheme=weighted_log_ratio", "baseline.weights=ema") == [False, False]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.scheme=logprob", "baseline.use=clip"], "set reward.scheme to one that subtracts"),
        (["reward.scheme=exact_token", "baseline.use=group_member"], "log_ratio, mean_prob, weigh"),
        (["reward.scheme=weighted_log_ratio", "baseline.weights=none"], "weights to current"),
        (["reward.shadows=[weighted_log_ratio]", "baseline.weights=none"], "weights to current"),
        (["evaluation.placement=learnability"], "set it to random or entropy"),
    ],
)
def test_what_a_scheme_cannot_do_is_explained(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_names(Config.parse(minimal(), overrides))
    check_names(Config.parse(minimal(), ["reward.scheme=logprob", "baseline.use=position_weight"]))


def test_every_config_of_the_repository_is_valid() -> None:
    configs = [p for p in (ROOT / "experiments").rglob("*.yaml") if "reward:" in p.read_text()]
    assert configs
    for path in configs:
        Config.load(path)


def test_every_field_is_read_by_some_code() -> None:
    code = "".join(p.read_text() for p in (ROOT / "rntp").rglob("*.py") if p.name != "config.py")
    config_code = (ROOT / "rntp" / "config.py").read_text()
    properties = config_code[config_code.index("def branch_tokens") :]
    unread = []
    for name, info in Config.model_fields.items():
        assert issubclass(info.annotation, Section)
        for field in info.annotation.model_fields:
            # As config.section.field, or as field of an argument that is named for the section,
            # or of the section that a class keeps as its config.
            pattern = rf"(?:\.{name}|\b{name}|\bsection|\bconfig|\bobjective)\.{field}\b"
            if not re.search(pattern, code + properties):
                unread.append(f"{name}.{field}")
    assert unread == []


def test_every_field_is_documented_and_few_they_are() -> None:
    fields = [
        (f"{name}.{field}", facts.description)
        for name, info in Config.model_fields.items()
        for field, facts in info.annotation.model_fields.items()
    ]
    assert [name for name, text in fields if not text] == []
    assert len(fields) <= 66
