"""The config is strict, and says what to do."""

import itertools
import json
import pickle
import re
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from rntp_data_prep.config import PrepConfig

from rntp import rewards
from rntp.config import Config, Section
from rntp.config.files import method_fields
from rntp.config.renamed import RENAMED
from rntp.config.rules import RULES
from rntp.errors import ConfigError
from rntp.training.preflight import check_names

ROOT = Path(__file__).parents[2]
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
        (minimal(thought={"top_p": 0.9}), r"thought.top_p: sampling .* is never truncated"),
        (minimal(objective={"epochs_per_rollout": 2}), r"objective.algorithm to clipped_ratio"),
        *[
            (
                minimal(objective={"advantage": {kind: {"divide_by_std": True}}}),
                f"divide_by_std belongs to group_mean, not to {kind}; take it away",
            )
            for kind in ("leave_one_out", "none", "step")
        ],
        (minimal(objective={"importance_cap": 0.5}), r"set it to 0 \(off\), or to 1 or more"),
        (
            minimal(objective={"importance_cap": 2, "algorithm": "gspo"}),
            r"set importance_of to thought, or set objective.algorithm to another",
        ),
        (
            minimal(objective={"kl_weight": 0.1}, baseline={"weights": "ema"}),
            r"baseline.weights: ema and the other reference of objective.kl would",
        ),
        (
            minimal(objective={"advantage": "none"}, baseline={"use": "group_member"}),
            r"set baseline.use to subtract, or objective.advantage to another",
        ),
        (
            minimal(
                objective={"drop_groups_below": 0, "advantage": "none"},
                thought={"thoughts_per_position": 1},
            ),
            r"always dead; set objective.drop_groups_below to null",
        ),
        *[
            (
                minimal(
                    objective={"pg_weight": 0, "continuation_weight": 0, f"{term}_weight": 0.1},
                    thought={"thoughts_per_position": 0},
                ),
                r"entropy_weight and kl_weight to 0",
            )
            for term in ("kl", "entropy")
        ],
        (minimal(model={"markers": ["<think>", "<think>"]}), r"must differ"),
        *[
            (minimal(baseline={"use": use, "weights": "none"}), r"set baseline.weights to current")
            for use in ("clip", "group_member", "position_weight", "gate")
        ],
        (minimal(baseline={"weights": {"ema": {"decay": 1}}}), r"weights: decay: .*less than 1"),
        (
            minimal(baseline={"weights": {"frozen": {"decay": 0.5}}}),
            r"decay belongs to ema, not to",
        ),
        (minimal(baseline={"weights": "emma"}), r"there is no 'emma' here; did you mean ema\?"),
        (minimal(objective={"algorithm": {"cispo": {"clip": 1}}}), r"did you mean clip_low\?"),
        (
            minimal(objective={"kl": {"k2": {"in": "text"}}}),
            r"objective.kl: in: .*'loss' or 'reward'",
        ),
        (minimal(objective={"kl": {"k1": {}, "k2": {}}}), r"give one name, or \{name: "),
        (
            minimal(optim={"schedule": {"cosine": {"min_lr_fraction": 2}}}),
            r"less than or equal to 1",
        ),
        (
            minimal(reward={"scheme": {"net_gain": {"token_price": 1}}}),
            r"did you mean token_cost\?",
        ),
        (minimal(reward={"shadows": {"logprob": {"x": 1}}}), r"logprob has no parameter 'x'"),
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


ONE = "placement.positions_per_doc=1"
VLLM = "rollout.engine=vllm"
CHAIN = ["reading.window=8", "reading.piece=8"]
# A config that breaks each rule of the table, and no other, in the table's order.
BREAKS = [
    ["placement.positions_per_doc=99"],
    ["data.replay_docs=2"],
    ["data.replay_docs=1", "thought.thoughts_per_position=1", "objective.advantage=none"],
    ["thought.thoughts_per_position=1"],
    ["thought.thoughts_per_position=0"],
    ["placement.interleaved=true", "thought.answer_tokens=1"],
    [
        "placement.interleaved=true",
        "thought.thoughts_per_position=0",
        "objective.pg_weight=0",
        "objective.continuation_weight=0",
    ],
    ["placement.policy={random: {repeats: 0.5}}", "objective.advantage=step"],
    ["thought.source=pause"],
    ["objective.epochs_per_rollout=2"],
    [
        "objective.drop_groups_below=0",
        "thought.thoughts_per_position=1",
        "objective.advantage=none",
    ],
    ["objective.algorithm={policy_gradient: {importance_cap: 0.5}}"],
    ["objective.algorithm={gspo: {importance_cap: 2}}"],
    ["objective.algorithm={policy_gradient: {importance_mask: [1.5, 5]}}"],
    ["rollout.samplers={max_age: 1}"],
    ["rollout.samplers={max_age: 1, start: 1}", "data.replay_docs=1"],
    [*CHAIN, "rollout.samplers=1"],
    [
        "rollout.samplers=1",
        "thought.thoughts_per_position=0",
        "objective.pg_weight=0",
        "objective.continuation_weight=0",
    ],
    [
        "thought.source=policy_or_none",
        "thought.thoughts_per_position=1",
        "objective.advantage=none",
    ],
    [*CHAIN, "thought.source=policy_or_none"],
    [VLLM, "thought.source=pause", "objective.pg_weight=0"],
    [
        VLLM,
        "thought.thoughts_per_position=0",
        "objective.pg_weight=0",
        "objective.continuation_weight=0",
    ],
    [VLLM, "model.dtype=float64"],
    [VLLM, "thought.temperature=0.009"],
    ["objective.kl={k3: {weight: 0.1}}", "baseline.weights=ema"],
    ["reward.judges={itself: frozen}", "baseline.weights=ema"],
    ["baseline.use=clip", "baseline.weights=none"],
    ["placement.band={entropy: [2, 1]}"],
    ["placement.band={surprise: [2, 2]}"],
    ["baseline.use=group_member", "objective.advantage=none"],
    ["thought.tools={use: {python: null}, markers: [a, b, c, <think>]}"],
    ["thought.tools={use: {python: null}, opening: search}"],
    ["thought.tools={use: {recall: null}}"],
    ["evaluation.controls=[no_results]"],
    ["evaluation.controls=[last_words]"],
    ["evaluation.controls=[expression]"],
    [
        "thought.tools={use: {python: null}}",
        "thought.source=pause",
        "objective.pg_weight=0",
    ],
    ["model.markers=[x, x]"],
    ["model.markers=['', x]"],
    ["reading.window=8", "thought.answer_tokens=1"],
    ["reading.window=9", "reading.piece=8"],
    [*CHAIN, "thought.thoughts_per_position=1", "objective.pg_weight=0"],
    [*CHAIN, "placement.policy=entropy"],
    [*CHAIN, "thought.tools={use: {python: null}}"],
    ["reading.mixing=true", "objective.continuation_weight=0"],
    ["reading.mixing=true", "thought.answer_tokens=1"],
    ["evaluation.controls=[bm25_piece]"],
    ["data.source=task:t"],
    ["data.source=task:t", ONE, "reading.window=8"],
    ["data.source=task:t", ONE, "placement.policy=entropy"],
    ["data.source=task:t", ONE, "rollout.samplers.start=1"],
    ["data.tasks={rule: math}"],
    ["data.source=task:t", ONE, "data.tasks={gym: {chain_sum: {}}}"],
    ["data.source={task:t: 1, shards: 1}", ONE, "reward.scheme=correct"],
    ["data.source=task:t", ONE, "reward.scheme={log_ratio: {on_tasks: 0}}"],
]


@pytest.mark.parametrize("number", range(len(RULES)))
def test_every_rule_is_broken_alone(number: int) -> None:
    assert len(BREAKS) == len(RULES)
    rule, fields = RULES[number], {f"{s}.{f}" for s, f in _all_fields()}
    assert set(rule.fields) <= fields
    with pytest.raises(ConfigError) as stopped:
        Config.parse(minimal(), BREAKS[number])
    start, *_ = re.split(r"\{", rule.message)
    told = str(stopped.value).splitlines()
    assert len(told) == 2, told  # the headline and the one rule
    assert start in told[1]
    assert "{" not in told[1]


def test_all_that_is_wrong_is_told_at_once() -> None:
    algorithm = "objective.algorithm={policy_gradient: {importance_cap: 0.5}}"
    band = "placement.band={entropy: [2, 1]}"
    with pytest.raises(ConfigError) as stopped:
        Config.parse(minimal(), ["objective.epochs_per_rollout=2", algorithm, band])
    told = str(stopped.value)
    assert all(
        text in told for text in ("epochs_per_rollout", "entropy [2.0, 1.0]", "importance_cap")
    )


def _all_fields() -> list[tuple[str, str]]:
    sections = Config.model_fields.items()
    return [(name, field) for name, part in sections for field in part.annotation.model_fields]


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


def test_files_made_to_hurt_end_in_words(tmp_path: Path) -> None:
    """Aliases of aliases that would fill any memory, nesting without end, an alias of itself."""
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for old, new in itertools.pairwise("abcdefghij"):
        bomb.append(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]")
    for name, text, said in (
        ("bomb", "\n".join([*bomb, "run: *j"]), "take the aliases away"),
        ("deep", "run: " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("flat", "run: " + "[" * 80 + "]" * 80, "nested more than 50"),
        ("self", "run: &a [*a]", "alias of what it is part of"),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        for load in (Config.load, PrepConfig.load):
            with pytest.raises(ConfigError, match=said):
                load(path)
        if len(text) < 1000:
            with pytest.raises(ConfigError, match=said):
                Config.parse(minimal(), [f"run.name={text.removeprefix('run: ')}"])
    shared = tmp_path / "shared.yaml"
    shared.write_text(yaml.safe_dump(minimal()) + "\n")
    text = shared.read_text().replace("thoughts_per_position: 4", "thoughts_per_position: &g 4")
    shared.write_text(text + "evaluation: {docs: *g}\n")
    assert Config.load(shared).evaluation.docs == 4  # honest aliases are welcome


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
    def warned(*overrides: str) -> bool:
        said = list(Config.parse(minimal(), overrides).warnings())
        return any("keeps a copy" in w for w in said)

    assert not warned()  # a default does not warn
    assert not warned("baseline.weights=none")
    for weights in ("frozen", "ema"):
        assert warned(f"baseline.weights={weights}")
        shared = [f"objective.kl={{k3: {{weight: 0.1, reference: {weights}}}}}"]
        assert not warned(f"baseline.weights={weights}", *shared)
        for use in ("clip", "group_member", "position_weight", "gate"):
            assert not warned(f"baseline.weights={weights}", f"baseline.use={use}")
    # These need the baseline for more than a difference, so there it does not cancel.
    for name in [name for name, use in rewards.BASELINES.items() if use == "needs"]:
        assert not warned(f"reward.scheme={name}", "baseline.weights=ema")
        mixed = f"reward.scheme={{{name}: 0.5, format_only: 0.5}}"
        assert not warned(mixed, "baseline.weights=ema")
    assert warned("reward.scheme={log_ratio: 1, format_only: 0.1}", "baseline.weights=ema")
    # Nor where rewards are not compared within their group, or weigh the continuation.
    for option in ("advantage=none", "advantage=step", "continuation_use=reward"):
        assert not warned(f"objective.{option}", "baseline.weights=ema")


def test_what_cannot_matter_is_warned_about() -> None:
    def said(*overrides: str) -> str:
        return "\n".join(Config.parse(minimal(), overrides).warnings())

    plain = "has the gradient of policy_gradient"
    for algorithm in ("clipped_ratio", "cispo", "gspo"):
        several = "objective.epochs_per_rollout=2"
        assert f"{algorithm} {plain}" in said(f"objective.algorithm={algorithm}")
        assert plain not in said(f"objective.algorithm={algorithm}", several)
    assert plain not in said()
    cap = "objective.algorithm={cispo: {importance_cap: 2}}"
    assert "every ratio is 1" in said(cap)
    assert "every ratio is 1" not in said(cap, VLLM)
    assert plain not in said("objective.algorithm=cispo", VLLM)
    assert "expected gradient of 0" in said("objective.kl={k1: {weight: 0.1}}")
    assert "expected gradient of 0" not in said("objective.kl={k1: {weight: 0.1, in: reward}}")
    assert "expected gradient of 0" not in said("objective.kl={k2: {weight: 0.1}}")


def test_another_engine_is_another_run_whose_tokens_are_weighted() -> None:
    """Which engine samples is a part of what is trained; where it is installed is not."""
    here, other = Config.parse(minimal()), Config.parse(minimal(), [VLLM])
    elsewhere = Config.parse(minimal(), ["rollout.engine={vllm: {python: /x, cache_gib: 1}}"])
    assert here.digest() != other.digest() == elsewhere.digest()
    assert other.identity()["rollout"] == {"engine": "vllm"}
    assert (here.correction.cap, here.correction.weighs) == (0, False)
    assert (other.correction.cap, other.correction.mask) == (2, (0.5, 5))
    clipped = Config.parse(minimal(), [VLLM, "objective.algorithm=cispo"])
    assert clipped.correction.start == "sampler"
    with pytest.raises(ConfigError, match="belongs to vllm"):
        Config.parse(minimal(), ["rollout.engine={inprocess: {cache_gib: 1}}"])


def test_one_thought_learns_where_it_is_not_compared_with_its_group() -> None:
    for advantage in ("none", "step"):
        raw = minimal(thought={"thoughts_per_position": 1}, objective={"advantage": advantage})
        assert Config.parse(raw).objective.needs_whole_step == (advantage == "step")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.scheme=logprob", "baseline.use=clip"], "set reward.scheme to one that subtracts"),
        (
            ["reward.scheme=exact_token", "baseline.use=group_member"],
            "log_ratio, lost_span, mean_prob, net_",
        ),
        (
            ["reward.scheme=exact_token", "baseline.use=gate"],
            "log_ratio, lost_span, mean_prob, net_",
        ),
        (["reward.scheme=weighted_log_ratio", "baseline.weights=none"], "weights to current"),
        (["reward.shadows=[weighted_log_ratio]", "baseline.weights=none"], "weights to current"),
        (["reward.scheme=positive_gain", "baseline.weights=none"], "weights to current"),
        (["reward.scheme=answer_exact"], "set thought.answer_tokens to 1 or more"),
        (["reward.shadows=[judge_gold]"], "judge_gold grades an answer"),
        (["reward.scheme={log_ratio: 1, nothing: 1}"], "no reward scheme 'nothing'"),
        (
            ["reward.scheme={logprob: 1, format_only: 1}", "baseline.use=clip"],
            "that of scheme logprob is not 0",
        ),
        (
            ["reward.scheme={mean_prob: 1, format_only: 1}", "baseline.use=group_member"],
            "that of scheme format_only is not 0",
        ),
        (["evaluation.placement=learnability"], "set it to random or entropy"),
        (["reward.judges.itself=frozen"], "no scheme asks a judge; set it to policy"),
        (
            ["reward.judges.itself=frozen", "reward.scheme=judge_gold", "baseline.weights=ema"],
            "would be two more copies of the weights; set both to frozen",
        ),
    ],
)
def test_what_a_scheme_cannot_do_is_explained(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_names(Config.parse(minimal(), overrides))
    check_names(Config.parse(minimal(), ["reward.scheme=logprob", "baseline.use=position_weight"]))
    check_names(Config.parse(minimal(), ["reward.scheme=judge_gold", "thought.answer_tokens=1"]))
    frozen = ["reward.scheme=judge_gold", "thought.answer_tokens=1", "reward.judges.itself=frozen"]
    for more, copy in (([], "frozen"), (["baseline.weights=frozen"], "frozen")):
        config = Config.parse(minimal(), [*frozen, *more])
        check_names(config)
        assert config.reference_weights == copy
    assert Config.parse(minimal(), frozen[:2]).reference_weights is None
    rlpr = "reward.scheme={mean_prob: 0.9, format_only: 0.1}"
    check_names(Config.parse(minimal(), [rlpr, "baseline.use=clip"]))


def test_a_missing_package_is_said_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bleu", "chrf"):
        config = Config.parse(minimal(), [f"reward.shadows=[{name}]", "thought.answer_tokens=4"])
        check_names(config)
        with monkeypatch.context() as without:
            without.setattr("importlib.util.find_spec", lambda package: None)
            with pytest.raises(ConfigError, match=r"needs the package sacrebleu.*rntp\[text\]"):
                check_names(config)


def test_a_weighted_sum_of_schemes() -> None:
    config = Config.parse(
        minimal(),
        ["reward.scheme={mean_prob: 0.9, format_only: 0.1}", "reward.shadows=[mean_prob]"],
    )
    assert config.reward.weights == {"mean_prob": 0.9, "format_only": 0.1}
    assert config.reward.names == ("mean_prob", "format_only")
    assert config.reward.label == "0.9 mean_prob + 0.1 format_only"
    assert Config.parse(yaml.safe_load(config.to_yaml())) == config
    single = Config.parse(minimal(), ["reward.scheme=random", "reward.shadows=[logprob, random]"])
    assert single.reward.weights == {"random": 1.0}
    assert single.reward.names == ("random", "logprob")
    assert single.reward.label == "random"
    for wrong in ("{}", "{random: .nan}", "{random: much}", "3"):
        with pytest.raises(ConfigError, match=r"reward\.scheme"):
            Config.parse(minimal(), [f"reward.scheme={wrong}"])


def test_answers_lengthen_branches_and_spans() -> None:
    plain = Config.parse(minimal())
    short, long = (Config.parse(minimal(), [f"thought.answer_tokens={n}"]) for n in (3, 9))
    assert plain.branch_tokens == 8 + 2 + 3
    assert (short.branch_tokens, long.branch_tokens) == (15, 21)
    # Where the continuation has room, four tokens of an answer have, too.
    assert (plain.span_tokens, short.span_tokens, long.span_tokens) == (138, 138, 143)


def test_a_reading_window_moves_positions_and_doubles_thoughts() -> None:
    plain, near, far = (Config.parse(minimal(), s) for s in ([], *WINDOWS))
    # As drawn, without its last marker; as read: start, thought, window, continuation.
    assert plain.branch_tokens == 8 + 2 + 3
    assert near.branch_tokens == 8 + 1 + (8 + 2) + 5 + 3
    assert near.learning_branch_tokens == 8
    assert (plain.bare_tokens, near.bare_tokens, far.bare_tokens) == (0, 1 + 5 + 3, 1 + 40 + 3)
    assert (plain.earliest_position, near.earliest_position, far.earliest_position) == (32, 32, 41)
    assert far.min_document_tokens == plain.min_document_tokens + 9
    # A tool that asks elsewhere has something to tell where nothing of the page is lost.
    tools = ("{use: {recall: null}}", "{use: {recall: null, python: null}}")
    recalls, asks = (Config.parse(minimal(), [*WINDOWS[1], f"thought.tools={t}"]) for t in tools)
    assert (recalls.earliest_position, asks.earliest_position) == (41, 32)
    assert near.span_tokens == plain.span_tokens  # a reading is shorter than its page
    with pytest.raises(ConfigError, match=r"123 tokens before and 4 after.* reading\.window"):
        Config.parse(minimal(), ["reading.window=122"])


WINDOWS = ["reading.window=5"], ["reading.window=40"]


def test_a_run_without_a_window_is_the_run_it_was_before_there_were_any() -> None:
    """Runs of older versions go on, and their evaluations are compared."""
    plain, near, far = (Config.parse(minimal(), s) for s in ([], *WINDOWS))
    assert "reading" not in plain.identity()
    mixing = Config.parse(minimal(), ["reading.mixing=true"])
    assert mixing.identity()["reading"] == {"mixing": True}
    half = Config.parse(minimal(), ["reading.mixing=0.5"])
    assert half.identity()["reading"] == {"mixing": 0.5}
    with pytest.raises(ConfigError, match=r"reading\.mixing"):
        Config.parse(minimal(), ["reading.mixing=1.5"])
    assert mixing.evaluation_digest() != plain.evaluation_digest()
    assert "window" not in plain.measured()["evaluation"]
    assert len({c.digest() for c in (plain, near, far)}) == 3
    assert len({c.evaluation_digest() for c in (plain, near, far)}) == 3


def test_every_config_of_the_repository_is_valid() -> None:
    configs = [p for p in (ROOT / "experiments").rglob("*.yaml") if "reward:" in p.read_text()]
    assert configs
    for path in configs:
        Config.load(path)


def test_every_field_is_read_by_some_code() -> None:
    own = ROOT / "rntp" / "config"
    code = "".join(p.read_text() for p in (ROOT / "rntp").rglob("*.py") if p.parent != own)
    config_code = (own / "schema.py").read_text()
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
    assert len(fields) <= 76


def test_a_config_lies_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    ground, middle, top = tmp_path / "a.yaml", tmp_path / "deep" / "b.yaml", tmp_path / "c.yaml"
    ground.write_text(yaml.safe_dump(minimal()))
    middle.write_text("base: ../a.yaml\nreward: {discount: 0.5}\noptim: {lr: 0.5}\n")
    top.write_text("base: deep/b.yaml\noptim: {lr: 0.25}\n")
    config = Config.load(top, ["run.steps=77"])
    assert (config.optim.lr, config.reward.discount, config.run.steps) == (0.25, 0.5, 77)
    assert config.reward.horizon == minimal()["reward"]["horizon"]
    assert method_fields(middle) == {"reward.discount": 0.5, "optim.lr": 0.5}
    assert method_fields(top) == {"reward.discount": 0.5, "optim.lr": 0.25}  # not the ground's
    assert method_fields(ground)["reward.horizon"] == minimal()["reward"]["horizon"]
    ground.write_text("base: c.yaml\n")
    with pytest.raises(ConfigError, match="is a base of itself"):
        Config.load(top)
    ground.unlink()
    with pytest.raises(ConfigError, match=r"there is no config file .*a\.yaml"):
        Config.load(top)
    top.write_text("base: deep/b.yaml\noptim: 3\n")
    ground.write_text(yaml.safe_dump(minimal()))
    with pytest.raises(ConfigError, match="optim"):
        Config.load(top)


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p"])
def test_truncated_sampling_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=r"never truncated.* use\s+thought\.temperature"):
        Config.parse(minimal(), [f"thought.{name}=0.9"])


def test_a_choice_carries_its_parameters() -> None:
    config = Config.parse(
        minimal(),
        [
            "objective.algorithm={cispo: {clip_high: 3}}",
            "objective.epochs_per_rollout=2",
            "baseline.weights={ema: {decay: 0.9}}",
            "reward.scheme={log_ratio: 1, net_gain: {weight: 0.5, token_cost: 0.2}}",
            "reward.shadows={length_triangle: {length_budget: 6}, logprob: {}}",
            "data.workers={process: 2}",
        ],
    )
    algorithm = config.objective.algorithm
    assert (algorithm, algorithm.get("clip_low"), algorithm.get("clip_high")) == ("cispo", 0.2, 3)
    assert (config.reference_weights, config.ema_decay) == ("ema", 0.9)
    assert config.reward.weights == {"log_ratio": 1.0, "net_gain": 0.5}
    assert config.reward.parameters("net_gain") == {
        "token_cost": 0.2,
        "token_cost_after": 0,
        "call_cost": 0.0,
        "call_cost_after": 0,
    }
    assert config.reward.parameters("length_triangle")["length_budget"] == 6
    assert config.reward.names == ("log_ratio", "net_gain", "length_triangle", "logprob")
    assert (config.data.num_workers, config.data.worker_kind) == (2, "process")
    again = Config.parse(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.digest() == config.digest()
    assert pickle.loads(pickle.dumps(config)) == config
    assert deepcopy(config).objective.algorithm.get("clip_high") == 3


def test_a_default_that_is_written_out_is_the_same_run() -> None:
    plain = Config.parse(minimal(), ["objective.algorithm=cispo", "reward.scheme=net_gain"])
    for same in (
        ["objective.algorithm={cispo: {clip_low: 0.2}}"],
        ["reward.scheme={net_gain: {token_cost: 0.01}}"],
        ["objective.kl={k1: {weight: 0}}"],  # which keeps no reference
        ["run.on_trouble={stop: {rollbacks: 9}}"],
    ):
        overrides = ["objective.algorithm=cispo", "reward.scheme=net_gain", *same]
        assert Config.parse(minimal(), overrides).digest() == plain.digest(), same
    for other in ("objective.algorithm={cispo: {clip_low: 0.3}}", "objective.kl={k1: {weight: 1}}"):
        assert Config.parse(minimal(), ["reward.scheme=net_gain", other]).digest() != plain.digest()


# (fields as they were, fields as they are)
MOVED = [
    (
        {"objective.algorithm": "clipped_ratio", "objective.clip_low": 0.1},
        {"objective.algorithm": {"clipped_ratio": {"clip_low": 0.1}}},
    ),
    ({"objective.clip_high": 0.1}, {}),  # policy_gradient has never read it
    (
        {"objective.importance_cap": 2.0},
        {"objective.algorithm": {"policy_gradient": {"importance_cap": 2.0}}},
    ),
    (
        {
            "objective.advantage": "group_mean",
            "objective.advantage_std": True,
            "objective.advantage_std_floor": 0.1,
        },
        {"objective.advantage": {"group_mean": {"divide_by_std": True, "std_floor": 0.1}}},
    ),
    ({"objective.advantage_std": False}, {}),
    ({"objective.drop_dead_groups": True}, {"objective.drop_groups_below": 0}),
    ({"objective.drop_dead_groups": False, "objective.min_group_std": 0}, {}),
    ({"objective.min_group_std": 0.5}, {"objective.drop_groups_below": 0.5}),
    (
        {"objective.kl_weight": 0.1, "objective.kl_estimator": "k1", "objective.kl_in": "reward"},
        {"objective.kl": {"k1": {"weight": 0.1, "in": "reward"}}},
    ),
    (
        {
            "objective.kl_weight": 0.1,
            "objective.kl_reference": "ema",
            "baseline.decay": 0.9,
        },
        {"objective.kl": {"k3": {"weight": 0.1, "reference": "ema", "decay": 0.9}}},
    ),
    (
        {"baseline.weights": "ema", "baseline.decay": 0.9},
        {"baseline.weights": {"ema": {"decay": 0.9}}},
    ),
    ({"baseline.decay": 0.9}, {}),
    (
        {"placement.entropy_band": [1, 2], "placement.surprise_band": [0, 3]},
        {"placement.band": {"entropy": [1, 2], "surprise": [0, 3]}},
    ),
    (
        {"placement.policy": "tiers", "placement.ramp_steps": 7},
        {"placement.policy": {"tiers": {"ramp_steps": 7}}},
    ),
    ({"placement.ramp_steps": 7}, {}),
    (
        {"reward.scheme": {"net_gain": 0.5, "logprob": 1}, "reward.token_cost": 0.1},
        {"reward.scheme": {"net_gain": {"weight": 0.5, "token_cost": 0.1}, "logprob": 1}},
    ),
    (
        {"reward.shadows": ["net_gain", "logprob"], "reward.token_cost_after": 3},
        {"reward.shadows": {"net_gain": {"token_cost_after": 3}, "logprob": {}}},
    ),
    (
        {
            "reward.scheme": "length_triangle",
            "reward.length_budget": 4,
            "reward.length_half_life": 5,
        },
        {
            "reward.scheme": {
                "length_triangle": {"weight": 1, "length_budget": 4, "length_half_life": 5}
            }
        },
    ),
    ({"reward.token_cost": 3}, {}),
    (
        {"optim.beta1": 0.8, "optim.beta2": 0.99, "optim.eps": 1e-8},
        {"optim.adamw": {"betas": [0.8, 0.99]}},
    ),
    (
        {"optim.betas": [0.8, 0.9], "optim.weight_decay": 0.1},
        {"optim.adamw": {"betas": [0.8, 0.9], "weight_decay": 0.1}},
    ),
    (
        {"model.think_open": "<a>", "model.think_close": "</a>"},
        {"model.markers": ["<a>", "</a>"]},
    ),
    ({"model.think_close": "</a>"}, {"model.markers": ["<think>", "</a>"]}),
    (
        {"run.hang_timeout_s": 9, "parallel.timeout_s": 8},
        {"run.timeouts_s": {"hang": 9, "ranks": 8}},
    ),
    ({"reward.judge": "frozen"}, {"reward.judges": {"itself": "frozen"}}),
    ({"evaluation.enabled": False}, {"evaluation.docs": 0}),
    (
        {"evaluation.docs": 8, "evaluation.reused_docs": 3},
        {"evaluation.docs": {"heldout": 8, "reused": 3}},
    ),
    ({"evaluation.docs": 8, "evaluation.reused_docs": 0}, {"evaluation.docs": 8}),
    ({"evaluation.enabled": True, "evaluation.docs": 3}, {"evaluation.docs": 3}),
    (
        {"evaluation.placement": "even", "evaluation.positions_per_doc": 3},
        {"evaluation.placement": {"even": {"positions_per_doc": 3}}},
    ),
    (
        {
            "rollout.samplers": 2,
            "rollout.store": "there",
            "rollout.max_age": 1,
            "rollout.leases": {"contexts": 3, "seconds": 4, "wait_s": 5},
        },
        {
            "rollout.samplers": {
                "start": 2,
                "store": "there",
                "max_age": 1,
                "contexts": 3,
                "lease_s": 4,
                "wait_s": 5,
            }
        },
    ),
    (
        {"optim.schedule": "cosine", "optim.min_lr_fraction": 0.5},
        {"optim.schedule": {"cosine": {"min_lr_fraction": 0.5}}},
    ),
    (
        {"run.max_rollbacks": 1, "optim.max_skipped_steps": 3, "run.stop_on_alarm": True},
        {"run.on_trouble": {"stop": {"rollbacks": 1, "skipped_steps": 3}}},
    ),
    ({"run.stop_on_alarm": False}, {}),
    ({"data.max_damaged": 0.1}, {"run.on_trouble": {"roll_back": {"damaged": 0.1}}}),
    ({"data.workers": 2, "data.worker_kind": "process"}, {"data.workers": {"process": 2}}),
    ({"data.worker_kind": "thread", "data.deadline_s": 9.0}, {}),
    ({"evaluation.bits_per_thought_token": 0.01}, {}),
    (
        {"log.wandb": "offline", "log.wandb_project": "p"},
        {"log.mirrors": {"wandb": {"mode": "offline", "project": "p"}}},
    ),
    ({"log.wandb": "off", "log.wandb_project": "p"}, {}),
    ({"log.wandb": False}, {}),
]


@pytest.mark.parametrize(("old", "new"), MOVED)
def test_old_names_are_accepted_and_told(old: dict, new: dict) -> None:
    before, after = (
        Config.parse(minimal(), [f"{name}={json.dumps(value)}" for name, value in fields.items()])
        for fields in (old, new)
    )
    assert before.model_dump() == after.model_dump()
    assert before.identity() == after.identity()
    gone = [name for name in old if name in RENAMED]
    assert gone
    told = list(before.warnings())
    for name in gone:
        assert any(line.startswith(f"{name} is now ") for line in told), name
    assert not any(" is now " in line for line in after.warnings())


def test_no_old_name_is_left_out_of_the_table_above() -> None:
    fields = {f"{section}.{field}" for section, field in _all_fields()}
    assert not set(RENAMED) & fields
    assert set(RENAMED) == {name for old, _ in MOVED for name in old if name in RENAMED}
