"""Tiny random models of every causal class of the installed transformers, for the model page.

A default config is shrunk by the names of its numbers; what a class wants besides is in `WANTS`.
Weights are of order one in every layer, so that a term that is left out shows.
"""

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

TOKENS = 318  # of the tokenizer; with two markers 320
TEXT = "A page is read, a thought is had at some of its places, and then the page goes on. "

# (names of numbers, what they become); the first that matches counts.
SHRINK = [
    (r"^(vocab_size|vocab_size_per_layer_input)$", TOKENS + 2),
    (r"^(hidden_size|n_embd|d_model|embed_dim|embedding_size|dim|dim_model|emb_dim)$", 64),
    (r"^(projection_dim|word_embed_proj_dim)$", 64),
    (r"(expert|moe)\w*(intermediate_size|ffn_hidden_size)$", 32),
    (r"^(intermediate_size|n_inner|dff|dim_ff|ffn_hidden_size|\w*ffn_dim)$", 128),
    (r"^num_(key_value|kv)_heads$|^linear_num_key_heads$", 2),
    (r"^(num_kv_shared_layers|num_mtp_layers|num_nextn_predict_layers)$", 0),
    (r"^(n_layers?|num_layers|num_(hidden|decoder|encoder)_layers|(de|en)coder_layers)$", 2),
    (r"^(num_heads|n_heads?|num\w*_attention_heads|\w*coder_attention_heads)$", 4),
    (r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len)$", 256),
    (r"^(sliding_window|attention_window|window_size|local_attention|attention_chunk_size)$", 64),
    (r"^(num_experts|num_local_experts|n_routed_experts|moe_num_experts)$", 4),
    (r"^(num_experts_per_tok|moe_k|moe_topk|moe_top_k|top_k_experts)$", 2),
    (r"^(n_group|topk_group|n_shared_experts|first_k_dense_replace|num_dense_layers)$", 1),
    (r"^(moe_num_shared_experts|num_shared_experts)$", 1),
    (r"^q_lora_rank$", 32),
    (r"^(kv_lora_rank|qk_nope_head_dim|linear_\w+_head_dim|chunk_size|kv_channels)$", 16),
    (r"^v_head_dim$", 20),
    (r"^head_dim$", 24),
    (r"^(qk_rope_head_dim|rotary_dim|mamba_d_state|ssm_state_size|state_size|laurel_rank)$", 8),
    (r"^hidden_size_per_layer_input$", 8),
    (r"^(mamba_n_heads|mamba_num_heads|linear_num_value_heads|n_mamba_heads)$", 4),
    (r"^(mamba_d_head|mamba_head_dim|mamba_headdim|attention_head_dim)$", 32),
    (r"^mamba_expand$", 2),
    (r"^mamba_n_groups$|^n_groups$", 1),
    (r"dropout|pdrop", 0.0),
]
_GEMMA_4 = {"num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 32}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
WANTS: dict[str, dict[str, Any]] = {
    "camembert": {"pad_token_id": 1},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {
        **_MIXED,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _MIXED["layer_types"]
        },
    },
    "data2vec-text": {"pad_token_id": 1},
    "dbrx": {
        "attn_config": {"attn_pdrop": 0.0, "clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon": {"alibi": False, "new_decoder_architecture": True},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        **_MIXED,
        "activation_sparsity_pattern": [0.0, 0.0],
        "altup_num_inputs": 2,
        "intermediate_size": [128, 128],
    },
    "gemma4_text": _GEMMA_4,
    "gemma4_unified_text": {**_GEMMA_4, "hidden_size_per_layer_input": 0},
    "gpt_neo": {
        "attention_layers": ["global", "local"],
        "attention_types": [[["global", "local"], 1]],
    },
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 24},
    "hunyuan_v1_moe": {"head_dim": 24},
    "inkling2_loop_text": {"unpadded_vocab_size": TOKENS},
    "inkling2_text": {"unpadded_vocab_size": TOKENS},
    "llama4_text": {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 32, "num_heads": 4},
    "ministral": {"head_dim": 24},
    "modernbert-decoder": {"cls_token_id": 0, "pad_token_id": 0, "sep_token_id": 0},
    "nemotron": {"num_key_value_heads": 2},
    "phimoe": {"head_dim": 16},
    "reformer": {"is_decoder": True},
    "roberta": {"pad_token_id": 1},
    "roberta-prelayernorm": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "xlm-roberta-xl": {"pad_token_id": 1},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"], "pad_token_id": 1},
    "zaya": {"head_dim": 32, "layer_types": ["hybrid"] * 2, "num_experts_per_tok": 1},
    "zamba2": {"hybrid_layer_ids": [1], "layers_block_type": ["linear_attention", "hybrid"]},
}
# Per-layer attributes that a default config may not have as one number.
_OF_LAYERS = {"gemma4_text", "gemma4_unified_text"}


def names() -> list[str]:
    """Model types that have a causal class."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str, **more: Any) -> PreTrainedConfig:
    """The config of a model type, shrunk. more: fields over it; None takes the default."""
    kind = CONFIG_MAPPING[name]
    default = kind()
    given = default.to_dict()
    fields: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        small = next((new for pattern, new in SHRINK if re.search(pattern, key)), None)
        if small is not None:
            fields[key] = small
    layers = [v for k, v in given.items() if k in ("layer_types", "layers_block_type") and v]
    if layers and "layer_types" in given:  # one of the first kind, and one of the last
        fields["layer_types"] = [layers[0][0], layers[0][-1]]
    if given.get("mlp_layer_types"):
        fields["mlp_layer_types"] = [given["mlp_layer_types"][i] for i in (0, -1)]
    if "kv_lora_rank" in fields:  # latent attention: keys for every head
        fields |= {"num_key_value_heads": 4, "q_lora_rank": 32}
        fields |= {"head_dim": 8} if "head_dim" in given else {}
    if name in _OF_LAYERS:
        fields = {
            k: v for k, v in fields.items() if k not in ("num_key_value_heads", "layer_types")
        }
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    fields |= {key: value for key, value in ends.items() if key in given}
    fields |= WANTS.get(name, {}) | more
    return kind(**fields)


@torch.no_grad()
def tiny_model(name: str, *, seed: int = 11, **more: Any) -> PreTrainedModel:
    """A random float32 model of a model type; see `tiny_config`."""
    config = tiny_config(name, **more)
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kind = found[0] if isinstance(found, tuple) else found
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).float().eval()
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        wide = {id(p) for end in ends if end is not None for p in end.parameters()}
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim < 2:
                parameter += 0.1 * noise
            elif id(parameter) in wide:
                parameter.copy_(0.5 * noise)
            else:
                fan_in = parameter.shape[1] if parameter.ndim == 2 else min(parameter.shape[-2:])
                parameter.copy_(noise / fan_in**0.5)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of `TOKENS` tokens at most."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT * 50], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Weights, config and the tiny tokenizer."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
