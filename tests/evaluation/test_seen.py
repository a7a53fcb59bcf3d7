"""Pages with their thoughts left in them, against the plain model on the same tokens."""

from pathlib import Path

import pytest
import torch
from test_frontier import page, run

from rntp import cli
from rntp.config import Config
from rntp.evaluation.everywhere import PURPOSE, think_everywhere
from rntp.evaluation.frontier import gate_places, seen_row
from rntp.evaluation.seen import SeenPage, read_with_thoughts
from rntp.rollout.engine import open_engine
from rntp.rollout.interleaved import InterleavedEngine
from rntp.trainer import Trainer

_ = run  # fixture


def test_every_token_sees_all_thoughts_before_it(run: tuple[dict, Path]) -> None:
    raw, _ = run
    trainer = Trainer(Config.parse(raw, ["run.dir=unused"]))
    model, config = trainer.model, trainer.config
    contexts = trainer.corpus.heldout_contexts(3)
    places = [(9, 15, 16), (), (12,)]
    found = read_with_thoughts(model, contexts, places, config)
    rows = []
    for context, at in zip(contexts, places, strict=True):
        engine = open_engine(model, config, thoughts=1, purpose=PURPOSE, slots=90)
        rollouts = (
            InterleavedEngine(engine, model, 3).sample([context], lambda c, n, at=at: at)
            if at
            else []
        )
        ids, own = context.token_ids.tolist(), list(range(len(context)))
        thoughts = [rollout.thoughts[0][0] for rollout in rollouts]
        for position, thought in zip(at, thoughts, strict=True):
            branch = [model.think_open_id, *thought.content.tolist(), model.think_close_id]
            ids[own[position] : own[position]] = branch
            own = own[:position] + [n + len(branch) for n in own[position:]]
        rows.append((torch.tensor(ids), own, sum(t.num_tokens for t in thoughts)))
    model.hf.set_attn_implementation("sdpa")
    for context, at, (ids, own, drawn), read in zip(contexts, places, rows, found, strict=True):
        with torch.no_grad():
            logp = torch.log_softmax(model.hf(ids[None]).logits[0].float(), -1)
        nll = torch.cat([torch.zeros(1), -logp[:-1].gather(1, ids[1:, None])[:, 0]])
        assert (read.thoughts, read.drawn) == (len(at), drawn)
        assert read.inserted == len(ids) - len(context)
        torch.testing.assert_close(read.nll_L.float(), nll[own], rtol=1e-4, atol=1e-4)
    assert found[0].drawn >= 3


def test_a_page_with_thoughts_is_another_one(run: tuple[dict, Path]) -> None:
    """Before the first thought nothing changes, behind it all does; read as usual where none is."""
    raw, _ = run
    trainer = Trainer(Config.parse(raw, ["run.dir=unused"]))
    model, config = trainer.model, trainer.config
    contexts = trainer.corpus.heldout_contexts(2)
    plain = think_everywhere(model, contexts, config, stride=5, gate=None)
    places = [page.positions[[1, 3]].tolist() for page in plain]
    for before, at, own in zip(
        plain, places, read_with_thoughts(model, contexts, places, config), strict=True
    ):
        torch.testing.assert_close(own.nll_L[: at[0]], before.nll_L[: at[0]])
        behind = (own.nll_L - before.nll_L)[at[0] :].abs()
        assert float(behind.min()) > 0
        # What the first thought gains its next tokens is what it gained without the second.
        gained = before.nll_L[at[0] : at[0] + 4] - own.nll_L[at[0] : at[0] + 4]
        torch.testing.assert_close(gained, before.gain_PH[1], rtol=1e-3, atol=1e-4)
    none = read_with_thoughts(model, contexts, [(), ()], config)
    for before, own in zip(plain, none, strict=True):
        torch.testing.assert_close(own.nll_L, before.nll_L)
        assert (own.thoughts, own.drawn, own.inserted) == (0, 0, 0)


def test_the_row_by_hand() -> None:
    one = page([1.0, 0, 1.0, 0, 0, 0], [0.0] * 6, [0.5, 0, -0.5, 0, 0.2, 0])
    assert gate_places(one, 0.1) == [8, 16]
    assert gate_places(one, 0.3) == [8]
    nll = one.nll_L.clone()
    nll[8:10] -= 0.25
    row = seen_row([one] * 2, [SeenPage(nll, 2, 9, 13)] * 2, 0.1, seed=0)
    assert row["saved"] * 78 == pytest.approx(0.5 / 0.6931471805599453)
    assert row["thoughts_per_token"] == pytest.approx(2 / 39)
    assert row["thought_tokens_per_token"] == pytest.approx(9 / 39)
    assert row["computed_per_token"] == pytest.approx(1 + 13 / 39)
    assert row["by_class"]["even"] == {"tokens": 32, "gain": pytest.approx(0.25 / 16)}


def test_the_command(run: tuple[dict, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = run
    cli.main(["eval", str(folder), "--pages", "2", "--stride", "4", "--seen"])
    assert "gate, thoughts seen" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["eval", str(folder), "--seen"])
    assert caught.value.code == 2
    assert "--pages" in capsys.readouterr().err
