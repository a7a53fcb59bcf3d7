"""Tiny random models whose layers cannot branch, or that have experts: hybrids, states, alibi."""

from pathlib import Path

import torch
from conftest import VOCABULARY, tiny_tokenizer
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from rntp.model import LanguageModel, adopt_model
from rntp.model.language_model import Sharing

ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    **ENDS,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
ARCHITECTURES = {
    "mamba": lambda v: MambaForCausalLM(
        MambaConfig(vocab_size=v, hidden_size=32, num_hidden_layers=2, state_size=8, **ENDS)
    ),
    "mamba2": lambda v: Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=v,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=8,
            num_heads=4,
            head_dim=16,
            n_groups=1,
            chunk_size=16,
            **ENDS,
        )
    ),
    # One layer of states and one that attends, with experts behind both.
    "jamba": lambda v: JambaForCausalLM(
        JambaConfig(
            vocab_size=v,
            **SIZES,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=1,
            expert_layer_offset=0,
            num_experts=4,
            num_experts_per_tok=2,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        )
    ),
    "qwen3-next": lambda v: Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=v,
            **SIZES,
            **EXPERTS,
            head_dim=8,
            num_experts=4,
            shared_expert_intermediate_size=32,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    ),
    # Without the scales of its head and its layers, which are not the point here.
    "granite-hybrid": lambda v: GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            vocab_size=v,
            **SIZES,
            **MAMBA2,
            layer_types=["mamba", "attention"],
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=32,
        )
    ),
    "lfm2": lambda v: Lfm2ForCausalLM(
        Lfm2Config(vocab_size=v, **SIZES, layer_types=["conv", "full_attention"])
    ),
    "bloom": lambda v: BloomForCausalLM(
        BloomConfig(vocab_size=v, hidden_size=32, n_layer=2, n_head=4, **ENDS)
    ),
    "mpt": lambda v: MptForCausalLM(
        MptConfig(vocab_size=v, d_model=32, n_layers=2, n_heads=4, max_seq_len=48, **ENDS)
    ),
    "rwkv": lambda v: RwkvForCausalLM(
        RwkvConfig(vocab_size=v, hidden_size=32, num_hidden_layers=2, rescale_every=1, **ENDS)
    ),
    "mixtral": lambda v: MixtralForCausalLM(
        MixtralConfig(vocab_size=v, **SIZES, num_local_experts=4, num_experts_per_tok=2)
    ),
    "encoder": lambda v: BertLMHeadModel(
        BertConfig(
            vocab_size=v,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            is_decoder=False,
        )
    ),
}


def plain_model(name: str, vocabulary: int = VOCABULARY, scale: float = 0.3) -> PreTrainedModel:
    """A random two-layer model. scale: of its matrices; the usual one makes everything uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        model = ARCHITECTURES[name](vocabulary)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.normal_(0, scale)
    return model.eval()


def save_plain(name: str, folder: Path, **more: object) -> str:
    """The same in a folder, with a tokenizer."""
    plain_model(name, **more).save_pretrained(folder)  # type: ignore[arg-type]
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def load_plain(
    name: str, dtype: torch.dtype = torch.float32, sharing: Sharing = "none", **more: object
) -> LanguageModel:
    """The same as a `LanguageModel`."""
    hf = plain_model(name).to(dtype)
    model: LanguageModel = adopt_model(hf, tiny_tokenizer(), name, sharing=sharing, **more)  # type: ignore[arg-type]
    return model
