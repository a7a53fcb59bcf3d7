"""What is refused, limited or found out of a model that runs plain sequences."""

from pathlib import Path
from types import MethodType

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from plain_models import load_plain, plain_model, save_plain
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rntp.errors import ConfigError
from rntp.model import adopt_model, load_model
from rntp.model.unshared import run_plain

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.05 * i for i in range(4)],
    "long_factor": [2.0 + i for i in range(4)],
    "original_max_position_embeddings": 32,
    "factor": 8.0,
}


def refusal(hf: PreTrainedModel, sharing: str = "none") -> str:
    with pytest.raises(ConfigError) as refused:
        adopt_model(hf, tiny_tokenizer(), "it", sharing=sharing)  # type: ignore[arg-type]
    return str(refused.value)


def changed(change) -> PreTrainedModel:
    """A Llama that does something else to its last hidden states [B, S, H]."""
    model = tiny_model("llama")
    norm = model.base_model.norm
    original = norm.forward
    norm.forward = MethodType(lambda self, x: change(original(x)), norm)
    return model


@pytest.mark.parametrize("name", ["mamba", "qwen3-next", "bloom"])
def test_auto_takes_what_works_and_says_why(name: str) -> None:
    model = load_plain(name, sharing="auto")
    assert model.plain is not None
    assert not model.shares
    assert "attention interface" in model.plain.why
    assert "its own cache" in model.plain.describe()


def test_auto_shares_where_it_can(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    assert load_model(str(model_folders["llama"])).shares
    assert not load_model(str(model_folders["llama"]), sharing="none").shares
    assert not load_model(save_plain("mamba", tmp_path)).shares


@pytest.mark.parametrize("name", ["mamba", "jamba", "lfm2", "bloom", "rwkv"])
def test_tree_refuses_what_cannot_branch_in_words(name: str) -> None:
    message = refusal(plain_model(name), sharing="tree")
    assert "cannot run token trees: " in message
    assert "attention interface" in message


def test_an_encoder_is_no_language_model() -> None:
    message = refusal(plain_model("encoder"))
    assert "BertLMHeadModel" in message
    assert "a token sees tokens that come after it" in message
    assert "set is_decoder to true in its config.json" in message
    assert "no causal" in refusal(plain_model("encoder"), sharing="auto")


def test_what_looks_ahead_is_refused() -> None:
    message = refusal(changed(lambda x: x + x.mean(dim=1, keepdim=True)))
    assert "a token sees tokens that come after it" in message
    assert "is_decoder" not in message


def test_what_depends_on_the_length_is_refused() -> None:
    assert "depends on the length" in refusal(changed(lambda x: x * (1 + 1 / x.shape[1])))


def test_chance_is_refused() -> None:
    assert "random" in refusal(changed(lambda x: x + 0.1 * torch.randn_like(x)))


def test_what_ignores_its_tokens_is_refused() -> None:
    positions = torch.randn(600, 32)
    message = refusal(changed(lambda x: 0 * x + positions[: x.shape[1]]))
    assert "do not depend on the tokens" in message


def test_a_detached_or_infinite_gradient_is_refused() -> None:
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return gradient * float("nan")

    assert "not finite" in refusal(changed(NoGradient.apply))
    assert "no gradient" in refusal(changed(lambda x: x.detach()))


def test_a_forward_that_fails_is_told_with_class_cause_and_remedy() -> None:
    def fail(x: Tensor) -> Tensor:
        raise KeyError("its kernel is missing")

    message = refusal(changed(fail))
    assert "LlamaForCausalLM" in message
    assert "KeyError" in message
    assert "its kernel is missing" in message
    assert "choose another model" in message


def test_a_forward_that_fails_later_is_told_as_well() -> None:
    model = load_plain("mamba")
    assert model.plain is not None

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("expected Half")

    model.hf.base_model.forward = fail
    with pytest.raises(ConfigError, match=r"MambaForCausalLM fails \(RuntimeError: expected Half"):
        run_plain(model.hf, model.plain, torch.ones(1, 4, dtype=torch.int64))


def test_rows_that_mix_run_one_by_one() -> None:
    """Such as experts of a capacity that a batch shares."""
    model = adopt_model(
        changed(lambda x: x + x.mean(dim=0, keepdim=True)), tiny_tokenizer(), "it", sharing="none"
    )
    assert model.plain is not None
    assert not model.plain.together
    assert "one by one" in model.plain.describe()


def test_a_cache_that_lies_is_not_used() -> None:
    honest = adopt_model(tiny_model("llama"), tiny_tokenizer(), "it", sharing="none")
    assert honest.plain is not None
    assert honest.plain.cached
    hf = tiny_model("llama")
    rotary = hf.base_model.rotary_emb
    original = rotary.forward
    # Positions of a step by itself begin at 0 again.
    rotary.forward = lambda x, position_ids: original(x, position_ids - position_ids[:, :1])
    model = adopt_model(hf, tiny_tokenizer(), "it", sharing="none")
    assert model.plain is not None
    assert not model.plain.cached
    assert "again for every token" in model.plain.describe()


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        (LONGROPE, 32),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 128),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 128),
    ],
    ids=["longrope", "dynamic", "linear"],
)
def test_a_switch_of_rotary_embeddings_limits_the_span(rope: dict, limit: int) -> None:
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    model = adopt_model(LlamaForCausalLM(config), tiny_tokenizer(), "it", sharing="none")
    assert model.max_span == limit


def test_windows_limit_nothing_where_the_model_has_them_itself(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=320,
        num_hidden_layers=2,
        num_key_value_heads=2,
        sliding_window=16,
        max_position_embeddings=128,
        **sizes,
    )
    hf = MistralForCausalLM(config)
    assert adopt_model(hf, tiny_tokenizer(), "it", sharing="none").max_span == 128


def test_alibi_reaches_as_far_as_it_was_made() -> None:
    """MPT's is a table; the check may not run out of it."""
    assert load_plain("mpt").max_span == 48
    assert load_plain("bloom").max_span > 10**5


def test_a_model_without_a_head_is_refused() -> None:
    model = tiny_model("llama-untied")
    model.get_output_embeddings = lambda: None  # type: ignore[method-assign]
    assert "no output embedding" in refusal(model)


def test_a_head_behind_something_else_is_read_where_it_is_called() -> None:
    """Such as the transform of BERT's decoder heads."""
    model = tiny_model("llama-untied")

    class Between(nn.Module):
        def __init__(self, head: nn.Linear) -> None:
            super().__init__()
            self.decoder = head

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.decoder(torch.tanh(x))
            return logits

    head = model.lm_head
    model.lm_head = Between(head)
    model.get_output_embeddings = lambda: head  # type: ignore[method-assign]
    loaded = adopt_model(model, tiny_tokenizer(), "it", sharing="none")
    assert loaded.plain is not None
    assert loaded.plain.at_head
    ids = torch.arange(3, 14)[None]
    hidden = run_plain(loaded.hf, loaded.plain, ids).hidden[0]
    wanted = loaded.hf(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(loaded.logits(hidden), wanted, rtol=0, atol=1e-5)


def test_rwkv_is_not_rescaled_in_place() -> None:
    """Evaluated, it would halve its weights, and they would be trained and saved like that."""
    model = load_plain("rwkv")
    assert model.hf.config.rescale_every == 0
    before = plain_model("rwkv").base_model.blocks[1].attention.output.weight
    after = model.hf.base_model.blocks[1].attention.output.weight
    assert torch.equal(before, after)
