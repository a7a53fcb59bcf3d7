"""What is refused, in words, and what cannot fool the check at load."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "models"))

from tiny_models import save, tiny_model, tiny_tokenizer

from rntp.errors import ConfigError
from rntp.model import attention, check, load_model

WINDOW = {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 0}
HIDDEN_WINDOWS = {
    "phimoe": WINDOW,
    "qwen2_moe": {
        **WINDOW,
        "max_window_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
ROPE = {"rope_theta": 1e4, "factor": 4.0}
LONG = {
    **ROPE,
    "rope_type": "longrope",
    "original_max_position_embeddings": 48,
    "short_factor": [1.0] * 12,
    "long_factor": [3.0 + i for i in range(12)],
}


def load(tmp_path: Path, name: str, span: int | None = None, **fields):
    folder = save(tiny_model(name, **fields), tmp_path)
    return load_model(str(folder), span=span, sharing="tree")


@pytest.mark.parametrize("name", HIDDEN_WINDOWS)
@pytest.mark.parametrize("lost", ["window", "off by one"])
def test_a_window_that_trees_forget_is_found(
    name: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers decide, not what the layers are told."""
    honest = attention.Style

    def forgetful(window, soft_cap, sinks):
        moved = None if lost == "window" or window is None else window + 1
        return honest(moved, soft_cap, sinks)

    folder = str(save(tiny_model(name, **HIDDEN_WINDOWS[name]), tmp_path))
    model = load_model(folder, sharing="tree")
    windows = {getattr(m, attention._WINDOW, None) for m in model.hf.modules()}
    assert 40 in windows
    monkeypatch.setattr(attention, "Style", forgetful)
    with pytest.raises(ConfigError, match="hidden states differ from its own attention's by"):
        load_model(folder, sharing="tree")
    # A run that never reaches the window has nothing to lose.
    assert load_model(folder, span=30, sharing="tree").max_span == 256


@pytest.mark.parametrize(("kind", "off"), [("bfloat16", 1.0), ("float32", 0.0041)])
def test_a_channel_that_rounding_moves_is_no_fault_and_a_row_is(kind: str, off: float) -> None:
    """Where products of other shapes round otherwise, single channels of 576 are off by so much; a
    layer that does something else is off in all of a row."""
    hidden = torch.zeros(1, dtype=getattr(torch, kind))
    wanted = torch.randn(7, 576, dtype=torch.float64)
    rounded, moved = wanted.clone(), wanted.clone()
    rounded[3, 100] += off
    moved[3] += off
    assert check._row_gap(rounded, wanted) < check._tolerance(hidden) / 3
    assert check._row_gap(moved, wanted) > check._tolerance(hidden)
    assert check._gap(rounded, wanted, hidden.float()) > check._tolerance(hidden.float())  # logits


def test_in_16_bits_a_lost_window_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "qwen2_moe"
    folder = str(save(tiny_model(name, **HIDDEN_WINDOWS[name]), tmp_path))
    assert load_model(folder, sharing="tree", dtype=torch.bfloat16).max_span == 256
    honest = attention.Style
    monkeypatch.setattr(attention, "Style", lambda window, cap, sinks: honest(None, cap, sinks))
    with pytest.raises(ConfigError, match="hidden states differ from its own attention's by"):
        load_model(folder, sharing="tree", dtype=torch.bfloat16)


def test_decoding_is_compared_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = check.PrefixRecorder.__call__

    def forgetful(self, layer, q, k, v, scale, style):
        return honest(self, 1 - layer, q, k, v, scale, style)  # each layer keeps for the other

    monkeypatch.setattr(check.PrefixRecorder, "__call__", forgetful)
    with pytest.raises(ConfigError, match="what it decodes token by token differs"):
        load(tmp_path, "llama")


def test_longrope_is_exact_up_to_its_switch_and_refused_beyond(tmp_path: Path) -> None:
    fields = {"rope_parameters": LONG}
    assert load(tmp_path, "llama", **fields).max_span == 48
    assert load(tmp_path, "llama", span=48, **fields).max_span == 48
    with pytest.raises(ConfigError, match=r"longrope\) at 48 positions, and the run reaches 49"):
        load(tmp_path, "llama", span=49, **fields)


def test_frequencies_that_grow_with_the_sequence_end_at_the_models_length(tmp_path: Path) -> None:
    rope = {**ROPE, "rope_type": "dynamic"}
    model = load(tmp_path, "llama", rope_parameters=rope, max_position_embeddings=64)
    assert model.max_span == 64


def test_a_chunk_is_the_longest_span_of_chunks(tmp_path: Path) -> None:
    assert load(tmp_path, "llama4_text", attention_chunk_size=32).max_span == 32
    with pytest.raises(ConfigError, match=r"new chunk .* at 32 positions, and the run reaches 33"):
        load(tmp_path, "llama4_text", span=33, attention_chunk_size=32)


def test_without_a_span_nothing_is_promised_that_was_not_checked(tmp_path: Path) -> None:
    fields = {"sliding_window": 600, "max_position_embeddings": 2000}
    assert load(tmp_path, "mistral", **fields).max_span == 600
    assert load(tmp_path, "mistral", span=620, **fields).max_span == 2000


REFUSED = {
    "deepseek_v32": ({}, "sparse attention"),
    "nemotron": ({}, "do not pass keywords on to their attention"),
    "granitemoehybrid": ({}, "2 of its 2 layers do not go through the attention interface"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "1 of its 2 layers do not go"),
    "diffllama": ({}, "layers run more than once"),
    "mamba": ({}, "attention interface"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_trees_is_refused_in_words_with_remedies(name: str, tmp_path: Path) -> None:
    fields, reason = REFUSED[name]
    model = tiny_model(name, **fields)
    with pytest.raises(ConfigError) as caught:
        load_model(str(save(model, tmp_path)), sharing="tree")
    text = str(caught.value)
    assert text.startswith(
        f"model.spec {str(tmp_path)!r} ({type(model).__name__}) cannot run token"
    )
    assert reason in text
    assert text.endswith("choose another model, or set model.sharing to none")


@pytest.mark.parametrize("name", ["nemotron", "lfm2", "mamba"])
def test_a_model_that_is_refused_is_as_it_was(name: str) -> None:
    model = tiny_model(name, **REFUSED[name][0])
    ids = torch.arange(9)[None]
    before, how = model(ids).logits, model.config._attn_implementation
    with pytest.raises(ConfigError):
        check.check_trunk(model, name)
    assert model.config._attn_implementation == how
    assert torch.equal(model(ids).logits, before)


def test_an_error_of_the_models_own_code_becomes_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"HeliumForCausalLM.*its own forward ends in RuntimeEr"):
        load(tmp_path, "helium", head_dim=24)


def test_a_model_that_reads_both_ways_is_no_causal_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it reads both ways"):
        load(tmp_path, "bert")


def test_what_stands_before_the_output_embedding_is_found(tmp_path: Path) -> None:
    model = load(tmp_path, "modernbert-decoder")
    assert model.shape.neck == "lm_head"
    ids = torch.arange(11) * 13 % 300
    model.hf.set_attn_implementation("eager")
    wanted = model.hf(ids[None]).logits[0, :, : model.vocabulary]
    hidden = model.hf.base_model(ids[None]).last_hidden_state[0]
    torch.testing.assert_close(model.logits(hidden), wanted, rtol=1e-4, atol=1e-4)
    logp, _, top1 = model.logprob(hidden, ids)
    true = wanted.log_softmax(-1)
    torch.testing.assert_close(logp, true[torch.arange(11), ids], rtol=1e-4, atol=1e-4)
    assert torch.equal(top1, wanted.argmax(-1))
    logp.sum().backward()
    necks = list(model.hf.lm_head.parameters())
    assert necks
    assert all(float(p.grad.abs().max()) > 0 for p in necks)


@pytest.mark.parametrize("cap", [30.0, None])
def test_a_soft_cap_is_found_where_logits_are_small(tmp_path: Path, cap: float | None) -> None:
    """A fresh model's logits are the same with it and without; a trained one's are not."""
    model = tiny_model("gemma3_text", final_logit_softcapping=cap)
    weight = model.get_output_embeddings().weight
    weight.data.mul_(1e-3)
    before = weight.detach().clone()
    loaded = load_model(str(save(model, tmp_path)))
    assert loaded.shape.soft_cap == cap
    text = len(loaded.tokenizer) - 2  # without the markers
    assert torch.equal(loaded.head[:text], before[:text])


def test_a_head_that_does_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no scaled and soft-capped products .* \(off by"):
        load(tmp_path, "roberta", is_decoder=True)


def test_weights_that_are_programs_are_refused_in_words(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    torch.save({"model.embed_tokens.weight": Program()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickled programs, .* as safetensors"):
        load_model(str(tmp_path), sharing="tree")
    assert not (tmp_path / "touched").exists()


def test_markers_get_rows_in_a_head_that_has_fewer_than_the_embedding(tmp_path: Path) -> None:
    from rntp.model.markers import learn_marker

    model, tokenizer = tiny_model("inkling2_text"), tiny_tokenizer()
    for token in range(len(tokenizer), 318):
        tokenizer.add_tokens([f"<{token}>"])
    assert model.get_output_embeddings().weight.shape[0] == 318
    head = model.get_output_embeddings().weight.clone()
    assert learn_marker(model, tokenizer, "<think>", "tiny") == 318
    assert model.get_output_embeddings().weight.shape[0] == 319
    assert torch.equal(model.get_output_embeddings().weight[:318], head)
    assert model.config.unpadded_vocab_size == 319
    assert model(torch.arange(5)[None]).logits.shape[-1] == 319


@pytest.mark.parametrize("sharing", ["auto", "tree", "none"])
@pytest.mark.parametrize("words", ["DefaultCPUAllocator: not enough memory", "CUDA out of memory"])
def test_too_little_memory_says_nothing_of_the_model(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, sharing: str, words: str
) -> None:
    """It is no reason to refuse the class, nor to fall back to plain sequences."""

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr("transformers.LlamaModel.forward", no_memory)
    with pytest.raises(RuntimeError, match=words):
        load_model(str(model_folders["llama"]), sharing=sharing)  # type: ignore[arg-type]
    monkeypatch.undo()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("transformers.LlamaModel.forward", broken)
    with pytest.raises(ConfigError, match="shapes do not fit"):
        load_model(str(model_folders["llama"]), sharing=sharing)  # type: ignore[arg-type]
