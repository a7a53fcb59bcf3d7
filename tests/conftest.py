"""Tiny models and a tiny tokenizer, made on the spot: the suite needs no download and no GPU."""

import os

# Tiny models gain nothing from threads, and Triton's interpreter has to be chosen before anything
# imports triton; subprocesses inherit both.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRITON_INTERPRET"] = "1"

from pathlib import Path
from types import MethodType

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from rntp.data import ShardWriter
from rntp.model.tokenizer import encode, tokenizer_digest
from rntp.rng import uniform

# A conftest.py in another folder would hide this one from `from conftest import`.
pytest_plugins = ["browser_fixtures"]

torch.set_num_threads(1)

VOCABULARY = 320
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-untied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, {}),
    # Every second layer without rotary embeddings, as the real one has.
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [1, 0]}),
}
TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind. "
    "A model reads a page, thinks at some places, and then reads on. "
)


def tiny_model(architecture: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random two-layer model of an architecture, with grouped-query attention."""
    config_class, model_class, more = ARCHITECTURES[architecture]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        model = model_class(config_class(**{**sizes, **more}))
        # The usual initialisation is so small that every prediction is nearly uniform.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0, 0.3)
    return model.to(dtype).eval()


def compute_norms_in_float64(model: PreTrainedModel) -> None:
    """transformers' RMSNorm works in float32 whatever the model's type, and so rounds gradients to
    1e-7; to compare two computations to 1e-10, both have to be float64 throughout."""

    def forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, True) + self.variance_epsilon))

    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert len(norms) >= 5
    for norm in norms:
        norm.forward = MethodType(forward, norm)


def tiny_tokenizer(vocabulary: int = VOCABULARY - 2) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 318 tokens: two less than the models' vocabulary. With 600 it
    has a token for every word of TEXT, with its space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved folder for every architecture."""
    root = tmp_path_factory.mktemp("models")
    for name in ARCHITECTURES:
        tiny_model(name).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return {name: root / name for name in ARCHITECTURES}


def same_shards(one: Path, other: Path) -> set[str]:
    """Assert that two checkpoints hold the same tensors, to the byte; their stems."""
    names = {p.relative_to(one) for p in one.rglob("*.safetensors")}
    assert {"weights", "moments"} <= {name.parent.name for name in names}
    assert names == {p.relative_to(other) for p in other.rglob("*.safetensors")}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    return {name.parent.name for name in names}


def write_corpus(
    folder: Path,
    documents: int = 24,
    sentences: int = 12,
    labelled: bool = False,
    stops: bool = False,
) -> Path:
    """Shards of made-up pages, prepared with the tiny tokenizer.

    stops: every eighth word ends a sentence. labelled: with made-up labels: every fifth token can
    be helped, the others are easy.
    """
    tokenizer = tiny_tokenizer()
    words = TEXT.replace(".", "").replace(",", "").split()
    writer = ShardWriter(
        folder,
        shard_bytes=1 << 20,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="tiny",
        prep_digest="0" * 64,
    )
    with writer:
        for n in range(documents):
            picks = uniform(n, "test corpus", torch.arange(sentences * 8)).mul(len(words)).long()
            drawn = [words[int(i)] for i in picks]
            if stops:
                drawn[7::8] = [f"{word}." for word in drawn[7::8]]
            text = " ".join(drawn)
            metadata = {"url": f"https://example.org/{n}", "title": f"Page {n}", "source": "test"}
            length = len(encode(tokenizer, text))
            if labelled:
                metadata["labels"] = {
                    "classes": "".join("2" if i % 5 == 0 else "e" for i in range(length)),
                    "names": {"2": "left to think, 2 hops", "e": "easy"},
                    "oracle": {i: {"thought": "x", "gain": 1.5} for i in range(0, length, 5)},
                }
            writer.add(f"page-{n:04d}", text, metadata, length)
        writer.finish({"pages": documents, "kept": documents})
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shards")


def tiny_run(model: Path, corpus: Path, run_dir: Path) -> dict:
    """A raw config of a run that takes a second."""
    return {
        "run": {"steps": 4, "dir": str(run_dir), "seed": 3},
        "model": {"spec": str(model), "dtype": "bfloat16", "device": "cpu"},
        "data": {
            "source": str(corpus),
            "context_tokens": 48,
            "docs_per_step": 3,
            "heldout_fraction": 0.3,
        },
        "placement": {"positions_per_doc": 2, "min_prefix_tokens": 8},
        "thought": {"thoughts_per_position": 3, "thought_tokens": 5},
        "reward": {"horizon": 4, "discount": 0.9},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
        "checkpoint": {"every_steps": 2, "keep": 2},
        "evaluation": {"docs": 3},
        "parallel": {"tokens_per_microbatch": 200},
    }
