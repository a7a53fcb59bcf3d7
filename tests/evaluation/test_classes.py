"""Controls, gain by class and fresh-against-reused gain: by hand, and through a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_run, tiny_tokenizer, write_corpus

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation import controls, evaluate
from rntp.evaluation.classes import class_table, controls_table
from rntp.evaluation.during import evaluation_path
from rntp.model.tokenizer import decode, encode
from rntp.run.log import read_metrics
from rntp.show import evaluation_table
from rntp.trainer import Trainer
from rntp.types import Context, Labels, Oracle, Rollout, Thought


def thought(*ids: int) -> Thought:
    return Thought(torch.tensor(ids), torch.zeros(len(ids)), closed=False)


def rollout(classes: str, first: int) -> Rollout:
    """Positions 1, 2, …, one for each class; thoughts of three tokens that name it."""
    positions = tuple(range(1, len(classes) + 1))
    labels = Labels(" " + classes, {"a": "a", "b": "b"}, {1: Oracle(" fox", 2.0)})
    return Rollout(
        context=Context(0, "x", torch.arange(9), labels=labels),
        positions=positions,
        thoughts=tuple((thought(first + p, 7, 8),) for p in positions),
        entropy=torch.zeros(len(classes)),
        nll=torch.zeros(len(classes)),
    )


def ids(rollouts: list[Rollout]) -> list[list[list[int]]]:
    return [[group[0].sampled_ids.tolist() for group in r.thoughts] for r in rollouts]


def test_shuffled_takes_another_documents_thought_of_the_same_class() -> None:
    found = controls.shuffled([rollout("ab", 10), rollout("ba", 20)], tiny_tokenizer())
    assert ids(found) == [[[22, 7, 8], [21, 7, 8]], [[12, 7, 8], [11, 7, 8]]]
    plain = [
        replace(r, context=replace(r.context, labels=None))
        for r in (rollout("ab", 10), rollout("ba", 20))
    ]
    assert ids(controls.shuffled(plain, tiny_tokenizer()))[0] == [[21, 7, 8], [22, 7, 8]]
    with pytest.raises(ConfigError, match=r"raise evaluation\.docs"):
        controls.shuffled(plain[:1], tiny_tokenizer())


def test_the_other_controls() -> None:
    tokenizer = tiny_tokenizer()
    given = [rollout("ab", 10)]
    dot = encode(tokenizer, ".").tolist()
    assert len(dot) == 1
    assert ids(controls.pause(given, tokenizer)) == [[dot * 3, dot * 3]]
    assert ids(controls.truncated(given, tokenizer)) == [[[11], [12]]]
    assert ids(controls.empty(given, tokenizer)) == [[[], []]]
    (best,) = controls.oracle(given, tokenizer)
    assert best.positions == (1,)  # the only one whose answer is known
    assert decode(tokenizer, best.thoughts[0][0].sampled_ids) == " fox"
    with pytest.raises(ConfigError, match="leave it out"):
        controls.oracle([replace(given[0], positions=(2,), thoughts=given[0].thoughts[1:])], None)  # type: ignore[arg-type]


def page(*positions: tuple[str, float, float, float | None, float]) -> dict:
    return {
        "positions": [
            {
                "class": name,
                "logp_empty": [-no_think, -9.0],
                "thoughts": [{"logp_think": [-think - 0.5, -9.0]}, {"logp_think": [-think + 0.5]}],
                "oracle_gain": gain,
                "controls": {"pause": [-pause]},
            }
            for name, no_think, think, gain, pause in positions
        ]
    }


def test_class_table_by_hand() -> None:
    pages = [
        page(("hard, 2 hops", 2.0, 1.0, 2.0, 2.0), ("easy", 0.5, 0.5, None, 0.75)),
        page(("hard, 3 hops", 3.0, 0.5, 2.0, 3.5)),
    ]
    table = class_table(pages, seed=0)
    assert list(table) == ["easy", "hard", "hard, 2 hops", "hard, 3 hops"]
    hard = table["hard"]
    assert hard["num_tokens"] == 2
    assert hard["nll/no_think"] == 2.5
    assert hard["nll/think"] == 0.75
    assert hard["gain"] == 1.75
    assert hard["oracle_fraction"] == 0.875
    # A no-think loss beyond the oracle's entropy raises the gain, and not this.
    assert hard["solved"] == 0.625
    assert hard["controls"]["pause"]["gain"] == -0.25
    assert table["easy"]["oracle_gain"] is None
    assert table["hard, 2 hops"]["gain_ci95"] == [1.0, 1.0]
    assert controls_table(pages, 0)["pause"]["num_tokens"] == 3


@pytest.fixture
def raw(model_folders: dict[str, Path], tmp_path: Path) -> dict:
    corpus = write_corpus(tmp_path / "shards", labelled=True)
    return tiny_run(model_folders["llama"], corpus, tmp_path / "run")


def test_evaluation_by_class_with_controls(raw: dict) -> None:
    sets = [
        "evaluation.placement={by_class: {positions_per_doc: 4}}",
        "evaluation.controls=[shuffled,pause,truncated,empty,oracle]",
        "model.dtype=float32",
    ]
    trainer = Trainer(Config.parse(raw, sets))
    contexts = trainer.corpus.heldout_contexts(4)
    result = evaluate(trainer.model, contexts, trainer.config)
    table = result["classes"]
    assert table["easy"]["num_tokens"] == table["left to think"]["num_tokens"] == 8
    assert set(table["easy"]["controls"]) == {"shuffled", "pause", "truncated", "empty"}
    assert table["left to think"]["controls"]["oracle"]["num_tokens"] == 8
    assert table["left to think"]["oracle_gain"] == 1.5
    # Loss on whole pages is the plain model's.
    hf = trainer.model.hf
    hf.set_attn_implementation("sdpa")
    nll = []
    for context in contexts:
        with torch.no_grad():
            logp = hf(context.token_ids[None]).logits[0].log_softmax(-1)
        nll += (-logp[:-1].gather(1, context.token_ids[1:, None])[:, 0]).tolist()
    assert result["reading"]["num_tokens"] == len(nll)
    assert result["reading"]["nll"] == pytest.approx(sum(nll) / len(nll), abs=1e-4)


def test_the_table_of_classes_is_printed_with_controls_and_changes(raw: dict) -> None:
    sets = ["evaluation.placement=by_class", "evaluation.controls=[pause]"]
    trainer = Trainer(Config.parse(raw, sets))
    contexts = trainer.corpus.heldout_contexts(3)
    first = evaluate(trainer.model, contexts, trainer.config)
    again = evaluate(trainer.model, contexts, trainer.config, reference=first)
    assert set(again["reading"]["class_changes"].values()) == {0.0}
    lines = evaluation_table(again).splitlines()
    header = next(line for line in lines if line.startswith("class "))
    assert header.split()[-4:] == ["pause", "whole", "pages", "change"]
    easy = next(line for line in lines if line.startswith("easy"))
    assert easy.split()[-2:] == [f"{again['reading']['classes']['easy']:.3f}", "+0.000"]
    helped = next(line for line in lines if line.startswith("left to think "))
    assert f"{again['classes']['left to think']['oracle_fraction']:.1%}" in helped
    plain = next(line for line in evaluation_table(first).splitlines() if "whole pages" in line)
    assert "change" not in plain


def test_training_without_thoughts_is_plain_next_token_training(raw: dict) -> None:
    """Its first loss is the contexts' own, and its FLOPs are those of the contexts."""
    sets = [
        "thought.thoughts_per_position=0",
        "objective.pg_weight=0",
        "objective.continuation_weight=0",
        "objective.ntp_weight=1",
        "model.dtype=float32",
        "run.steps=2",
    ]
    config = Config.parse(raw, sets)
    trainer = Trainer(config)
    contexts = trainer.corpus.train.take(range(config.data.docs_per_step))
    trainer.model.hf.set_attn_implementation("sdpa")
    nll = []
    for context in contexts:
        with torch.no_grad():
            logp = trainer.model.hf(context.token_ids[None]).logits[0].log_softmax(-1)
        nll += (-logp[:-1].gather(1, context.token_ids[1:, None])[:, 0]).tolist()
    trainer.model.hf.set_attn_implementation("rntp")
    trainer.fit()
    first, second = read_metrics(config.run.dir)
    assert first["loss/total"] == pytest.approx(sum(nll) / len(nll), abs=1e-4)
    assert second["loss/ntp"] != first["loss/ntp"]
    assert "gain/mean" not in first
    assert first["tokens/tree"] == first["tokens/unshared"] == sum(len(c) - 1 for c in contexts)
    with pytest.raises(ConfigError, match="only the next-token loss is"):
        Config.parse(raw, ["thought.thoughts_per_position=0"])


def test_few_documents_come_again_and_their_gain_is_compared(raw: dict) -> None:
    config = Config.parse(raw, ["data.max_documents=3", "evaluation.docs={heldout: 16, reused: 8}"])
    trainer = Trainer(config)
    names = [trainer.corpus.train[n].document_id for n in range(9)]
    assert len(set(names)) == 3
    assert sorted(names[:3]) == sorted(names[3:6])
    assert trainer.corpus.train[7].visit == 2
    heldout = {c.document_id for c in trainer.corpus.heldout_contexts(99)}
    assert heldout
    assert not heldout & set(names)
    trainer.fit()
    step = config.run.steps
    result = evaluate_file(config, step)
    reused = result["reused"]
    assert reused["num_docs"] == 3
    assert reused["gain_over_fresh"] == pytest.approx(
        reused["gain/mean"] - result["gain/mean"], abs=1e-9
    )
    start = evaluate_file(config, 0)
    assert start["reused"]["memorised"] == 0
    fallen = [
        then["reading"]["nll"] - now["reading"]["nll"]
        for then, now in ((start["reused"], reused), (start, result))
    ]
    assert reused["memorised"] == pytest.approx(fallen[0] - fallen[1], abs=1e-9)
    assert "memorisation" not in (config.run.dir / "log.txt").read_text()


def test_pages_known_by_heart_are_reported(raw: dict) -> None:
    options = [
        "data.max_documents=2",
        "evaluation.docs={heldout: 16, reused: 2}",
        "run.steps=12",
        "optim.lr=0.03",
    ]
    options += [
        "thought.thoughts_per_position=0",
        "objective.pg_weight=0",
        "objective.ntp_weight=1",
    ]
    config = Config.parse(raw, [*options, "objective.continuation_weight=0"])
    Trainer(config).fit()
    assert evaluate_file(config, 12)["reused"]["memorised"] > 0.1
    assert "memorisation: without a thought" in (config.run.dir / "log.txt").read_text()


def evaluate_file(config: Config, step: int) -> dict:
    found = json.loads(evaluation_path(config, step).read_text())
    assert isinstance(found, dict)
    return found
