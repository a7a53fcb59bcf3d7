"""A model as a folder that vLLM loads, and whether vLLM computes with it what the trainer does."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.head import weight_of
from rntp.model.mixing import without_mixing
from rntp.rollout.store.weights import CANARY_NATS

# Farthest that log-probs of the canary may lie apart on average, nats a token: other kernels round
# otherwise. See experiments/samplers/VLLM.md for what was measured.
VLLM_CANARY_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.15}


def canary_bound(config: Config, dtype: torch.dtype) -> float:
    """Give the distance above which a sampler of this run does not have the trainer's weights."""
    return (VLLM_CANARY_NATS if config.rollout.engine == "vllm" else CANARY_NATS)[dtype]


def write_weights(model: LanguageModel, folder: Path) -> None:
    """Write config and weights, in the type that the model computes in, as its class saves them.

    Rows of the embeddings that no token has are left out: vLLM would draw from them. Tied
    embeddings are written twice, as if they were not: vLLM's CPU build packs the head at load, and
    a reload of tied weights leaves the packed copy as it was.
    """
    rows, hf = model.vocabulary, model.hf
    with without_mixing(hf):  # vLLM draws thoughts, which nothing is mixed with
        state, head = hf.state_dict(), _name_of_head(model)
    ends = {weight_of(hf.get_input_embeddings()).data_ptr(), model.head.data_ptr()}
    for name, tensor in state.items():
        if tensor.data_ptr() in ends:
            state[name] = tensor[:rows].clone()
    if model.bias is not None:
        state[head.removesuffix("weight") + "bias"] = model.bias.detach()[:rows].clone()
    state[head] = model.head.detach()[:rows].clone()
    with without_mixing(hf):
        hf.save_pretrained(folder, state_dict=state)
    tied = folder / "tied.safetensors"
    if not _has(folder, head):
        safetensors.torch.save_file({head: state[head]}, tied, {"format": "pt"})
    path = folder / "config.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["tie_word_embeddings"] = False
    text = facts.get("text_config") or facts
    text |= {"vocab_size": rows, "tie_word_embeddings": False}
    path.write_text(json.dumps(facts, indent=2), encoding="utf-8")


def _name_of_head(model: LanguageModel) -> str:
    """Of the output embedding's weight, as a checkpoint has it."""
    out = model.hf.get_output_embeddings()
    return next(f"{name}.weight" for name, part in model.hf.named_modules() if part is out)


def _has(folder: Path, name: str) -> bool:
    """Whether a file of weights has a tensor of this name."""
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118
                return True
    return False
