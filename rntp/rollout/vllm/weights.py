"""A model as a folder that vLLM loads, and whether vLLM computes with it what the trainer does."""

import json
from pathlib import Path

import torch
from torch import Tensor

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.rollout.store.weights import CANARY_NATS

# Farthest that log-probs of the canary may lie apart on average, nats a token: other kernels round
# otherwise. See experiments/samplers/VLLM.md for what was measured.
VLLM_CANARY_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.15}


def canary_bound(config: Config, dtype: torch.dtype) -> float:
    """Give the distance above which a sampler of this run does not have the trainer's weights."""
    return (VLLM_CANARY_NATS if config.rollout.engine == "vllm" else CANARY_NATS)[dtype]


def write_weights(model: LanguageModel, folder: Path) -> None:
    """Write config and weights, in the type that the model computes in, as its class saves them.

    Rows of the embeddings that no token has are left out: vLLM would draw from them.
    """
    rows, state = model.vocabulary, model.hf.state_dict()
    longer = model.head.shape[0] > rows
    if longer:
        cut: dict[int, Tensor] = {}  # tied weights stay one tensor
        embeddings = (model.hf.get_input_embeddings(), model.hf.get_output_embeddings())
        own = {p.data_ptr() for part in embeddings if part is not None for p in part.parameters()}
        for name, tensor in state.items():
            if tensor.data_ptr() in own:
                cut.setdefault(tensor.data_ptr(), tensor[:rows].clone())
                state[name] = cut[tensor.data_ptr()]
    model.hf.save_pretrained(folder, state_dict=state)
    if longer:
        path = folder / "config.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        (facts.get("text_config") or facts)["vocab_size"] = rows
        path.write_text(json.dumps(facts, indent=2), encoding="utf-8")
