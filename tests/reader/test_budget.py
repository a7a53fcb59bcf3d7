"""From a budget of thought tokens to a price, by hand and on a text."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp import cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.gate import Gate
from rntp.gate.gate import best_length
from rntp.model.tokenizer import encode
from rntp.reader import Reader
from rntp.reader.budget import price_for, tokens_at
from rntp.reader.when import parse_when
from rntp.run.export import export
from rntp.trainer import Trainer

TEXT = "The river rose in the night and the people of the town went up the hill to wait. " * 4


ONE = torch.tensor([2.0], dtype=torch.float64)  # tokens of a thought


def worth(*gains: float) -> torch.Tensor:
    """Of gains in nats a token over a horizon of 4."""
    return 4 * torch.tensor(gains, dtype=torch.float64)[:, None]


def test_the_price_is_the_lowest_that_keeps_within_the_budget() -> None:
    gains = worth(-torch.inf, 0.1, 0.4, -0.2, 0.3, 0.2, 0.05)
    # A nat a token is worth 4 / 2 nats a thought token; a thought has 2 tokens.
    expected = ((20, 5, 0.0), (6, 3, 0.2), (4, 2, 0.4), (3.9, 1, 0.6), (1, 0, 0.8))
    for budget, thoughts, price in expected:
        found = price_for(gains, ONE, budget, least=1)
        assert found == pytest.approx(price), budget
        assert tokens_at(2.0 * (gains[:, 0] / 2 > found), 1) == 2 * thoughts
    # Two tokens apart at least: those at 2, 4 and 6, or at 1, 4 and 6.
    assert price_for(gains, ONE, 6, least=2) == 0.0
    assert price_for(gains, ONE, 4, least=2) == pytest.approx(0.1)
    assert tokens_at(torch.tensor([1.0, 1, 1, 0, 1]), 2) == 3
    assert price_for(worth(*[-0.1] * 5), ONE, 100, least=1) == 0.0


def test_a_budget_is_met_by_shorter_thoughts_too() -> None:
    tokens = torch.tensor([2.0, 8.0], dtype=torch.float64)
    # Nats of a short and of a long thought at four places.
    each = torch.tensor([[1.0, 3.0], [1.0, 1.1], [-1.0, 2.0], [0.5, -2.0]], dtype=torch.float64)

    def at(price: float) -> list[int]:
        return best_length(each, tokens, price).tolist()

    assert at(0.0) == [2, 2, 2, 1]
    assert at(0.02) == [2, 1, 2, 1]  # the second gains 0.1 by 6 tokens more: 0.017 each
    assert at(0.3) == [2, 1, 0, 0]  # the third wants 0.25 a token, the fourth too
    assert at(0.34) == [1, 1, 0, 0]  # 2 nats by 6 tokens more
    assert at(0.5) == [0, 0, 0, 0]  # what gains nothing more is not thought
    for budget, price in ((26, 0.0), (25, 0.1 / 6), (19, 0.25), (9, 1 / 3), (3, 0.5)):
        found = price_for(each, tokens, budget, least=1)
        assert found == pytest.approx(price), budget
        spent = torch.tensor([0.0, 2, 8])[best_length(each, tokens, found)]
        assert tokens_at(spent, 1) <= budget


@pytest.mark.slow
def test_a_text_is_read_within_its_budget(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 4
    raw["data"]["docs_per_step"] = 8
    raw["placement"]["positions_per_doc"] = 3
    raw["model"]["dtype"] = "float32"
    raw["evaluation"] = {"docs": 0}
    Trainer(Config.parse(raw)).fit()
    folder = export(tmp_path / "run", tmp_path / "model", say=lambda text: None)
    reader, spec = Reader(str(folder)), str(folder)
    own, tokens = Gate.beside(spec), len(encode(reader.model.tokenizer, TEXT))
    freely = len(reader.read(TEXT, parse_when("gate", spec, 2)).thoughts)
    assert freely > 4
    budget = 0.5 * freely * own.thought_tokens / tokens
    price = reader.price(TEXT, budget, least=2)
    assert price > 0
    thoughts = reader.read(TEXT, parse_when(f"gate:{price!r}", spec, 2)).thoughts
    assert 0 < len(thoughts) <= freely // 2 + 1
    assert len(thoughts) * own.thought_tokens <= budget * tokens
    assert reader.price(TEXT, 99, least=2) == 0
    file = tmp_path / "page.txt"
    file.write_text(TEXT)
    options = ["--think", "gate", "--between", "2", "--budget", str(budget)]
    cli.main(["read", spec, str(file), *options])
    assert f"--think gate:{price:.4g}" in "".join(capsys.readouterr())
    with pytest.raises(SystemExit) as caught:
        cli.main(["read", spec, str(file), "--think", "entropy:2", "--budget", "1"])
    assert caught.value.code == 2
    (folder / "gate.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no gate"):
        reader.price(TEXT, 1, least=2)
