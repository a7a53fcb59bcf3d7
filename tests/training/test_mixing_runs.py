"""Runs that mix predictions with a thought and without one: learnt, resumed, measured, exported and
used."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import same_shards, tiny_run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.target import evaluate_target
from rntp.evaluation.tasks.tasks import _open as open_for_tasks
from rntp.model import load_model, own_attention
from rntp.model.mixing import FILE, NAME, Mixing
from rntp.model.tokenizer import encode
from rntp.reader import Reader
from rntp.reader.when import parse_when
from rntp.rollout.store.weights import policy_weights
from rntp.run import checkpoint
from rntp.run.export import export
from rntp.run.log import read_metrics
from rntp.run.settings import Settings
from rntp.trainer import Trainer
from rntp.types import Thought

TEXT = "The river rose in the night and the people of the town went up the hill to wait. " * 4
TIMED = ("time/", "memory/", "data/damaged")


@pytest.fixture(scope="module")
def raw(
    model_folders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict:
    folder = tmp_path_factory.mktemp("mixing")
    raw = tiny_run(model_folders["llama"], corpus, folder / "run")
    raw["reading"] = {"mixing": True}
    raw["model"]["dtype"] = "float32"
    raw["optim"]["lr"] = 0.02
    raw["checkpoint"] = {"every_steps": 2, "keep": 9}
    return raw


@pytest.fixture(scope="module")
def ran(raw: dict) -> Path:
    Trainer(Config.parse(raw)).fit()
    return Path(raw["run"]["dir"])


@pytest.fixture(scope="module")
def exported(ran: Path) -> Path:
    return export(ran, ran.parent / "model", say=lambda text: None)


def test_the_weight_begins_low_and_is_learnt(raw: dict, ran: Path) -> None:
    rows = read_metrics(ran)
    assert rows[0]["mixing/weight"] == pytest.approx(1 / (1 + math.exp(2)), abs=1e-6)
    assert abs(rows[-1]["mixing/weight"] - rows[0]["mixing/weight"]) > 1e-3
    for row in rows:
        assert row["gain/mean"] == pytest.approx(row["nll/no_think"] - row["nll/think"], abs=1e-6)
        # With a weight w nothing can be worse than without a thought by more than −log(1 − w).
        assert row["nll/think"] - row["nll/no_think"] < 0.5
        assert row["nll/alone"] != row["nll/think"]
    path = checkpoint.committed(ran / "checkpoints")[-1][1]
    weights = checkpoint.load(path, "weights")
    kept = {name for name in weights if name.startswith(NAME)}
    assert kept == {f"{NAME}.{part}" for part in ("empty", "think", "shift", "out")}
    fresh = Mixing(32, raw["run"]["seed"])
    assert float(weights[f"{NAME}.out"].abs().max()) > 0.01
    assert not torch.equal(weights[f"{NAME}.think"], fresh.think)


def test_it_stops_and_goes_on_to_the_bit(raw: dict, ran: Path, tmp_path: Path) -> None:
    for steps in (2, 4):
        Trainer(Config.parse(raw, [f"run.dir={tmp_path / 'two'}", f"run.steps={steps}"])).fit()
    for one, other in zip(read_metrics(ran), read_metrics(tmp_path / "two"), strict=True):
        assert {k: v for k, v in one.items() if not k.startswith(TIMED)} == {
            k: v for k, v in other.items() if not k.startswith(TIMED)
        }
    last = [sorted((f / "checkpoints").iterdir())[-1] for f in (ran, tmp_path / "two")]
    same_shards(*last)
    with pytest.raises(ConfigError, match="mixing"):  # another head is another run
        Trainer(Config.parse(raw, ["reading.mixing=false"])).fit()


def test_an_evaluation_says_what_mixing_is_worth(ran: Path) -> None:
    ends = [json.loads((ran / f"eval/step_0000000{n}.json").read_text()) for n in (0, 4)]
    for result in ends:
        found = result["mixing"]
        gain = result["nll/no_think"] - result["nll/think"]
        assert found["alone"] + found["over_alone"] == pytest.approx(gain, abs=1e-9)
        thoughts = [t for p in result["pages"] for at in p["positions"] for t in at["thoughts"]]
        weights = [w for t in thoughts for w in t["weight"]]
        assert found["weight"] == pytest.approx(sum(weights) / len(weights))
        assert result["gain/mean"] > -0.6
    assert ends[0]["mixing"]["weight"] == pytest.approx(0.1192, abs=1e-4)
    assert ends[1]["mixing"]["weight"] != ends[0]["mixing"]["weight"]
    again = evaluate_target(ran, say=lambda text: None)
    assert again["nll/think"] == pytest.approx(ends[1]["nll/think"], abs=1e-6)
    assert again["mixing"]["weight"] == pytest.approx(ends[1]["mixing"]["weight"], abs=1e-6)


def test_the_export_is_a_plain_model_with_the_head_beside_it(ran: Path, exported: Path) -> None:
    weights = checkpoint.load(checkpoint.committed(ran / "checkpoints")[-1][1], "weights")
    beside = load_file(exported / FILE)
    assert float(beside.pop("start")) == -2
    for name, tensor in beside.items():
        assert torch.equal(tensor, weights[f"{NAME}.{name}"])
    assert not any(NAME in name for name in load_file(exported / "model.safetensors"))
    _, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert Settings.beside(str(exported)).mixing
    # A run that goes on from it goes on with its head.
    spec = Config.parse(
        {**tiny_run(exported, ran, ran.parent / "next"), "reading": {"mixing": True}}
    )
    from rntp.model.opening import open_model

    model = open_model(spec)
    assert model.mixing is not None
    assert torch.equal(model.mixing.out, beside["out"])
    # Samplers only think; what they are sent is without it.
    assert not any(NAME in name for name in policy_weights(model))
    assert len(policy_weights(model)) == len(list(model.hf.parameters())) - 4


def logits_after(model: object, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the next token [V], and the last hidden state [D]."""
    with torch.no_grad():
        found = model.hf(ids[None], output_hidden_states=True)  # type: ignore[attr-defined]
    return found.logits[0, -1].float().log_softmax(-1), found.hidden_states[-1][0, -1]


def mixture(model: object, empty: torch.Tensor, think: torch.Tensor) -> torch.Tensor:
    (p0, h0), (p1, h1) = logits_after(model, empty), logits_after(model, think)
    with torch.no_grad():
        w = model.mixing(h0, h1).sigmoid()  # type: ignore[attr-defined]
    return ((1 - w) * p0.exp() + w * p1.exp()).log()


def test_a_reader_reads_and_writes_with_it(exported: Path) -> None:
    reader = Reader(str(exported))
    model, every = reader.model, parse_when("every:9")
    page = reader.read(TEXT, every)
    ids = encode(model.tokenizer, TEXT)
    model.hf.set_attn_implementation(own_attention(model.hf))
    thought = page.thoughts[3]
    before = ids[thought.position // 48 * 48 : thought.position]
    branch = torch.tensor([model.think_open_id, *thought.token_ids, model.think_close_id])
    for k, gain in enumerate(thought.gain_per_token):
        behind, token = ids[thought.position :][:k], int(ids[thought.position + k])
        empty = torch.cat([before, behind])
        wanted = mixture(model, empty, torch.cat([before, branch, behind]))[token]
        wanted = wanted - logits_after(model, empty)[0][token]
        assert gain == pytest.approx(float(wanted), abs=2e-4)

    # Writing, as good as greedily: each token is the arg-max of the mixture.
    drawn = Reader(str(exported), seed=5)
    pieces = list(drawn.generate("The river", every, tokens=14, temperature=1e-4))
    thoughts = [piece.text for piece in pieces if piece.kind == "thought"]
    assert thoughts
    written = "".join(piece.text for piece in pieces if piece.kind == "text")
    markers = [model.think_open_id, model.think_close_id]
    text = seen = encode(model.tokenizer, "The river")
    pondered = iter(record_thoughts(exported, every))
    since, expected = len(text), list[int]()
    for _ in range(14):
        if since >= 9:
            own = torch.tensor([markers[0], *next(pondered), markers[1]])
            seen, since = torch.cat([seen, own]), 0
        scores = mixture(model, text, seen)
        scores[markers] = -torch.inf
        token = scores.argmax()[None]
        text, seen, since = torch.cat([text, token]), torch.cat([seen, token]), since + 1
        expected.append(int(token))
    assert model.tokenizer.decode(expected).startswith(written)
    assert len(written) > 8


def record_thoughts(folder: Path, every: object) -> list[list[int]]:
    """Ids of the thoughts of the same text."""
    from rntp.reader import writing

    found: list[list[int]] = []
    reader = Reader(str(folder), seed=5)
    ponder = writing._Writer.ponder

    def noted(self: writing._Writer, page: torch.Tensor, most: int) -> Thought:
        thought = ponder(self, page, most)
        found.append(thought.content.tolist())
        return thought

    writing._Writer.ponder = noted  # type: ignore[method-assign]
    try:
        list(reader.generate("The river", every, tokens=14, temperature=1e-4))  # type: ignore[arg-type]
    finally:
        writing._Writer.ponder = ponder  # type: ignore[method-assign]
    return found


def test_where_it_cannot_be_it_is_refused_with_the_remedy(
    raw: dict, exported: Path, tmp_path: Path
) -> None:
    for override, said in {
        "objective.continuation_weight=0": "objective.continuation_weight above 0",
        "thought.answer_tokens=4": "thought.answer_tokens to 0",
    }.items():
        with pytest.raises(ConfigError, match=said):
            Config.parse(raw, [override])
    with pytest.raises(ConfigError, match=r"reading\.piece to null"):
        Config.parse(raw, ["reading.window=4", "reading.piece=8"])
    with pytest.raises(ConfigError, match="take a run without it"):
        open_for_tasks(Path(raw["run"]["dir"]), None, lambda text: None)
    lost = tmp_path / "lost"
    lost.mkdir()
    for path in exported.iterdir():
        if path.name != FILE:
            (lost / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="set mixing to false"):
        Reader(str(lost))
    settings = json.loads((lost / "rntp.json").read_text())
    (lost / "rntp.json").write_text(json.dumps({**settings, "mixing": False}))
    assert Reader(str(lost)).model.mixing is None
    assert load_model(str(exported)).mixing is None  # nobody has asked


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [["model.dtype=bfloat16"], ["reading.window=6"], ["placement.interleaved=true"]],
    ids=lambda more: more[0],
)
def test_it_goes_with_what_else_there_is(raw: dict, tmp_path: Path, more: list[str]) -> None:
    folder = tmp_path / "run"
    controls = "evaluation.controls=[shuffled, pause]"
    Trainer(Config.parse(raw, [f"run.dir={folder}", *more, controls])).fit()
    rows = read_metrics(folder)
    assert all(0 < row["mixing/weight"] < 1 for row in rows)
    result = json.loads((folder / "eval/step_00000004.json").read_text())
    assert set(result["controls"]) == {"shuffled", "pause"}
    assert all(row["gain"] > -1 for row in result["controls"].values())
