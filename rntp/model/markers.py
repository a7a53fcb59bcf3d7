"""Rows of the embeddings for the think markers."""

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rntp.errors import ConfigError, is_out_of_memory
from rntp.model.head import bias_of, weight_of
from rntp.model.tokenizer import add_marker

# Of configs that have more rows than tokens: how many of them the logits have.
_UNPADDED = "unpadded_vocab_size"


@torch.no_grad()
def learn_marker(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, marker: str, spec: str
) -> int:
    """The id of a marker. If it is no token yet it becomes one, and its rows of the embeddings are
    the mean of its sub-tokens'; in place.

    Raises ConfigError for a model whose embeddings have no rows of that kind.
    """
    token, parts = add_marker(tokenizer, marker)
    try:
        _make_room(hf, token)
        if not parts:
            return token
        source, out = weight_of(hf.get_input_embeddings()), hf.get_output_embeddings()
        head, bias = weight_of(out), bias_of(out)
        source[token] = source[parts].mean(dim=0)
        if head is not source:
            head[token] = head[parts].mean(dim=0)
        if bias is not None:
            bias[token] = bias[parts].mean()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"model.spec {spec!r} ({type(hf).__name__}) cannot learn the marker {marker!r}: its "
            f"embeddings take no new rows ({type(error).__name__}: {error}); choose another model"
        ) from error
    return token


def _make_room(hf: PreTrainedModel, token: int) -> None:
    """Rows for this id, in both embeddings; vocabularies are often padded, and have one."""
    if token >= weight_of(hf.get_input_embeddings()).shape[0]:
        hf.resize_token_embeddings(token + 1, mean_resizing=False)
    config = hf.config.get_text_config()
    if (getattr(config, _UNPADDED, None) or token + 1) <= token:
        setattr(config, _UNPADDED, token + 1)
    out = hf.get_output_embeddings()
    head = weight_of(out)
    if token < head.shape[0]:
        return
    if type(out) is not nn.Linear:
        raise TypeError(f"the output embedding has {head.shape[0]} rows")
    wider = nn.Linear(head.shape[1], token + 1, bias=out.bias is not None).to(head)
    wider.weight[: head.shape[0]] = head
    if out.bias is not None:
        wider.bias[: head.shape[0]] = out.bias
    hf.set_output_embeddings(wider)
