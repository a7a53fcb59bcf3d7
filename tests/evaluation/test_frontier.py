"""Whole pages under rules of where to think: by hand, and of a run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp import cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.everywhere import Everywhere, Lengths, Made, think_everywhere
from rntp.evaluation.frontier import chosen, frontier, saved
from rntp.evaluation.target import evaluate_everywhere
from rntp.run.export import export
from rntp.trainer import Trainer

H = 4


def page(
    worth: list[float], entropy: list[float], expected: list[float] | None = None
) -> Everywhere:
    """Positions two tokens apart, each with a gain that is the same for all four tokens."""
    count = len(worth)
    gain = torch.tensor(worth, dtype=torch.float64)
    return Everywhere(
        positions=8 + 2 * torch.arange(count),
        gain_PH=(gain / H)[:, None].expand(-1, H),
        entropy_P=torch.tensor(entropy, dtype=torch.float64),
        expected_P=None if expected is None else torch.tensor(expected, dtype=torch.float64),
        drawn_P=torch.full((count,), 5.0, dtype=torch.float64),
        computed_P=torch.full((count,), 10.0, dtype=torch.float64),
        nll_L=torch.cat([torch.zeros(1), torch.full((39,), math.log(2))]).double(),
        num_bytes=78,
        none_P=torch.zeros(count, dtype=torch.bool),
        made=Made(
            gain.clamp_min(0),
            torch.where(gain > 0, 3.0, 0.0).double(),
            tuple("odd" if n % 2 else "even" for n in range(40)),
        ),
    )


def test_thoughts_stand_a_horizon_apart() -> None:
    made = page([1.0] * 6, [0.0] * 6)
    everywhere = torch.ones(6, dtype=torch.bool)
    assert chosen(made, everywhere).tolist() == [True, False] * 3
    some = torch.tensor([False, True, True, False, False, True])
    assert chosen(made, some).tolist() == [False, True, False, False, False, True]
    assert saved(made, some) == (2.0, 10.0, 20.0)
    assert saved(made, ~everywhere) == (0.0, 0.0, 0.0)


def test_the_table_by_hand() -> None:
    log2 = math.log(2)
    worth = [2 * log2, 0.0, -log2, 0.0, log2, 0.0]
    pages = [page(worth, [3.0, 0, 1, 0, 2, 0], [w / H for w in worth]) for _ in range(3)]
    found = frontier(pages, seed=0)
    rows = {(row["rule"], row["bound"]): row for row in found["rows"]}
    never = rows["never", None]
    assert never["bits_per_byte"] == pytest.approx(0.5)  # 39 bits of 78 bytes
    assert (never["saved"], never["thoughts_per_token"], never["computed_per_token"]) == (0, 0, 1)
    assert never["saved_ci95"] == [0, 0]
    always = rows["every so many tokens", 2]
    assert always["thoughts_per_token"] == pytest.approx(3 / 39)
    assert always["thought_tokens_per_token"] == pytest.approx(15 / 39)
    assert always["computed_per_token"] == pytest.approx(1 + 30 / 39)
    assert always["saved"] == pytest.approx(2 / 78)
    assert rows["every so many tokens", 8]["saved"] == pytest.approx(3 / 78)
    gate = rows["gate", 0.0]
    hindsight, perfect = rows["in hindsight", 0.0], rows["where the corpus knows one", None]
    assert gate["saved"] == hindsight["saved"] == perfect["saved"] == pytest.approx(3 / 78)
    assert gate["saved_ci95"] == pytest.approx([3 / 78] * 2)
    assert gate["thought_tokens_per_token"] == pytest.approx(10 / 39)
    # Perfect thoughts of three tokens, with what the corpus knows of the two places.
    best = rows["perfect ones there", None]
    assert best["saved"] == pytest.approx(3 / 78)
    assert best["thought_tokens_per_token"] == pytest.approx(6 / 39)
    assert best["computed_per_token"] == pytest.approx(1 + 2 * (10 - 5 + 3) / 39)
    # 32 tokens of each page from the first position on. A thought gains as much at odd ones as at
    # even ones, a perfect one where it stands alone, at 8 and at 16.
    assert gate["by_class"] == {
        "even": {"tokens": 48, "gain": pytest.approx(1.5 * log2 / 16)},
        "odd": {"tokens": 48, "gain": pytest.approx(1.5 * log2 / 16)},
    }
    assert best["by_class"]["even"]["gain"] == pytest.approx(3 * log2 / 16)
    assert best["by_class"]["odd"]["gain"] == never["by_class"]["odd"]["gain"] == 0
    assert found["gate"]["auc"] == found["gate"]["auc_known"] == found["gate"]["auc_much"] == 1
    # A hair of a gain, where the gate expects least, is one of those that help and not by much.
    hair = replace(
        pages[0], gain_PH=pages[0].gain_PH.clone(), expected_P=pages[0].expected_P.clone()
    )
    hair.gain_PH[1], hair.expected_P[1] = 0.01, -1.0
    finer = frontier([hair, pages[0]], seed=0)["gate"]
    assert finer["auc_much"] == 1
    assert finer["auc"] < 1
    dear = frontier(pages, seed=0, gate_bounds=(0.0, 0.4))
    assert [r["bound"] for r in dear["rows"] if r["rule"] == "gate"][-2:] == [0.0, 0.4]
    assert dear["rows"][-4]["thoughts_per_token"] == pytest.approx(0 / 39)
    for tenth in found["gate"]["deciles"]:
        assert tenth["expected"] == pytest.approx(tenth["measured"])
    # The negative case: a gate that has it the wrong way round.
    wrong = frontier([page(worth, [0.0] * 6, [-w / H for w in worth])] * 2, seed=0)
    backwards = next(r for r in wrong["rows"] if (r["rule"], r["bound"]) == ("gate", 0.0))
    assert backwards["saved"] == pytest.approx(-1 / 78)
    assert wrong["gate"]["auc"] == 0
    # A gate that had rather think later, at the first place: what it gains there is left.
    later = torch.tensor([True] + [False] * 5)
    waiting = frontier([replace(page, waits_P=later) for page in pages], seed=0)
    waited = next(r for r in waiting["rows"] if (r["rule"], r["bound"]) == ("gate", 0.0))
    assert waited["saved"] == pytest.approx(1 / 78)
    assert waiting["gate"] == found["gate"]
    # A policy that closes its third thought, which costs a nat, and its fourth at once. Read behind
    # the first thought, at 8, is 10; begun and closed are 12 and 14, taken is 16, and 18 not begun.
    none = torch.tensor([False, False, True, True, False, False])
    itself = frontier([replace(page, none_P=none) for page in pages], seed=0)
    own = next(r for r in itself["rows"] if r["rule"] == "the policy itself")
    assert own["saved"] == pytest.approx(3 / 78)
    assert own["thoughts_per_token"] == pytest.approx(2 / 39)
    assert own["thought_tokens_per_token"] == pytest.approx((5 + 5 + 1 + 1) / 39)
    assert own["computed_per_token"] == pytest.approx(1 + (10 + 10 + 2 + 2) / 39)
    assert all(row["rule"] != "the policy itself" for row in found["rows"])
    without = frontier([page(worth, [0.0] * 6)] * 2, seed=0)
    assert without["gate"] is None
    assert all(row["rule"] != "gate" for row in without["rows"])


def test_thoughts_as_long_as_pays_by_hand() -> None:
    """Three places a horizon apart: a long thought pays at the first, a short one at the second."""
    made = page([4.0, 0, 1.0, 0, -1.0, 0], [0.0] * 6, [0.1] * 6)
    short = torch.tensor([1.0, 0, 1.0, 0, -2.0, 0], dtype=torch.float64)
    gain = torch.stack([(short / H)[:, None].expand(-1, H), made.gain_PH])
    lengths = Lengths(
        worth_PB=torch.stack([short, made.gain_PH.sum(dim=1)], dim=1),  # it expects what is
        tokens_B=torch.tensor([2.0, 5.0], dtype=torch.float64),
        gain_BPH=gain,
        drawn_BP=torch.stack([torch.full((6,), 2.0).double(), made.drawn_P]),
        computed_BP=torch.stack([torch.full((6,), 7.0).double(), made.computed_P]),
    )
    rows = frontier([replace(made, lengths=lengths)] * 2, seed=0)["rows"]
    [free] = [r for r in rows if r["rule"] == "gate, as long as pays" and r["bound"] == 0]
    assert free["saved"] * 78 * math.log(2) == pytest.approx(5.0)
    assert free["thought_tokens_per_token"] == pytest.approx((5 + 2) / 39)
    assert free["computed_per_token"] == pytest.approx(1 + (10 + 7) / 39)
    hindsight = next(r for r in rows if r["rule"] == "in hindsight")
    assert hindsight["thought_tokens_per_token"] == pytest.approx((5 + 5) / 39)
    # Dearer than a token of the short one is worth, and than one of the long one: less and less.
    spent = [r["thought_tokens_per_token"] for r in rows if r["rule"] == "gate, as long as pays"]
    assert spent[0] == max(spent)
    assert min(spent) < free["thought_tokens_per_token"]
    plain = {r["rule"] for r in frontier([made] * 2, seed=0)["rows"]}
    assert "gate, as long as pays" not in plain


@pytest.fixture(scope="module")
def run(
    model_folders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("frontier") / "run"
    raw = tiny_run(model_folders["llama"], corpus, folder)
    raw["run"]["steps"] = 4
    raw["data"]["docs_per_step"] = 8
    raw["placement"]["positions_per_doc"] = 3
    raw["model"]["dtype"] = "float32"
    raw["evaluation"] = {"docs": 0}
    Trainer(Config.parse(raw)).fit()
    raw["evaluation"] = {"docs": 3}
    (folder / "config.yaml").write_text(Config.parse(raw).to_yaml())
    return raw, folder


def test_gains_are_those_of_the_plain_model(run: tuple[dict, Path]) -> None:
    raw, _ = run
    trainer = Trainer(Config.parse(raw, ["run.dir=unused"]))
    model, contexts = trainer.model, trainer.corpus.heldout_contexts(2)
    seen: list[torch.Tensor] = []
    found = think_everywhere(model, contexts, trainer.config, stride=5, gate=None)
    model.hf.set_attn_implementation("sdpa")
    for context, one in zip(contexts, found, strict=True):
        ids = context.token_ids
        assert one.positions.tolist() == list(range(8, len(ids) - 3, 5))
        with torch.no_grad():
            logits = model.hf(ids[None]).logits[0].float()
        logp = torch.log_softmax(logits, -1)
        plain = -logp[:-1].gather(1, ids[1:, None])[:, 0]
        torch.testing.assert_close(one.nll_L[1:].float(), plain, rtol=1e-4, atol=1e-4)
        before = one.positions - 1
        entropy = -(logp[before].exp() * logp[before]).sum(-1)
        torch.testing.assert_close(one.entropy_P.float(), entropy, rtol=1e-4, atol=1e-4)
        assert one.gain_PH.shape == (len(before), 4)
        assert (one.computed_P >= one.drawn_P + 2 + 3).all()
        seen.append(one.gain_PH)
    assert float(torch.cat(seen).abs().max()) > 1e-3


def test_a_window_that_loses_nothing_is_read_from_its_start_token(run: tuple[dict, Path]) -> None:
    raw, _ = run
    sets = ["run.dir=unused", "thought.tools={use: {python: null}}"]
    trainer = Trainer(Config.parse(raw, [*sets, "reading.window=48"]))
    model, contexts = trainer.model, trainer.corpus.heldout_contexts(2)
    assert not trainer.config.loses_context
    found = think_everywhere(model, contexts, trainer.config, stride=5, gate=None)
    usual = think_everywhere(model, contexts, Config.parse(raw, sets), stride=5, gate=None)
    model.hf.set_attn_implementation("sdpa")
    for context, one, bare in zip(contexts, found, usual, strict=True):
        ids = torch.cat([torch.tensor([model.start_id]), context.token_ids])
        with torch.no_grad():
            logp = torch.log_softmax(model.hf(ids[None]).logits[0].float(), -1)
        plain = -logp[1:-1].gather(1, ids[2:, None])[:, 0]
        torch.testing.assert_close(one.nll_L[1:].float(), plain, rtol=1e-4, atol=1e-4)
        assert float((one.nll_L - bare.nll_L).abs().max()) > 1e-3
        # Behind each thought all of the page so far is read once more, thought and markers, too.
        again = one.computed_P - bare.computed_P
        assert (again == one.drawn_P + 3 + one.positions).all()


def test_the_command_prints_rules_side_by_side(
    run: tuple[dict, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run
    facts = evaluate_everywhere(folder, count=3, stride=4, say=lambda text: None)
    rules = [row["rule"] for row in facts["rows"]]
    assert rules.count("gate") == 6  # the run has learnt one
    assert rules.count("entropy") == rules.count("every so many tokens") == 5
    best = max(row["saved"] for row in facts["rows"])
    hindsight = next(row for row in facts["rows"] if row["rule"] == "in hindsight")
    assert hindsight["saved"] >= 0
    assert best >= hindsight["saved"]
    never = facts["rows"][0]["bits_per_byte"]
    for row in facts["rows"]:
        assert row["bits_per_byte"] == pytest.approx(never - row["saved"])
    out = tmp_path / "pages.json"
    cli.main(["eval", str(folder), "--pages", "3", "--stride", "4", "--out", str(out)])
    assert json.loads(out.read_text())["rows"] == facts["rows"]
    printed = capsys.readouterr().out
    assert "bits a byte" in printed
    assert "gate: AUC" in printed
    # A gate of several lengths, of an exported folder, in place of the run's own.
    model = export(folder, tmp_path / "model", say=lambda text: None)
    sizes = ["--contexts", "12", "--positions", "3", "--lengths", "2"]
    cli.main(["gate", str(folder), str(model), *sizes])
    cli.main(["eval", str(folder), "--pages", "3", "--gate", str(model), "--out", str(out)])
    found = json.loads(out.read_text())
    paid = [row for row in found["rows"] if row["rule"] == "gate, as long as pays"]
    assert paid
    assert all(row["thought_tokens_per_token"] <= 5 / 4 for row in paid)
    assert "gate, as long as pays" in capsys.readouterr().out


def test_what_cannot_be_asked_is_refused(run: tuple[dict, Path], tmp_path: Path) -> None:
    raw, folder = run
    window = tmp_path / "window.yaml"
    window.write_text(Config.parse(raw, ["reading.window=6"]).to_yaml())
    with pytest.raises(ConfigError, match=r"give --piece, or set reading\.piece"):
        evaluate_everywhere(window, count=2, stride=4, say=lambda text: None)
    for arguments, message in (
        (["--pages", "2", "--stride", "0"], "must be 1 or more"),
        (["--pages", "2", "--page-tokens", "9"], "leave it out"),
        (["--stride", "4"], "go with --pages"),
        (["--gate", "model"], "go with --pages"),
        (["--pages", "2", "--gate", str(tmp_path)], "has no gate"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["eval", str(folder), *arguments])
        assert caught.value.code == 2, message
