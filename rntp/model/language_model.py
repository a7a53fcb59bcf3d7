"""Load a causal language model, give it think markers, and prove that it can run token trees.

Any Hugging Face model that goes through the attention interface works: one attention function is
registered, and the caller passes what it should do as a keyword of the forward. What cannot work
is refused at load, with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rntp_kernels import TreeAttention, TreeLayout, linear_logprob_top1
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import AttentionInterface

from rntp.errors import ConfigError
from rntp.model.plain_check import check_ends, check_runs_plain, in_float64
from rntp.model.unshared import Plain
from rntp.sources import localize
from rntp.tokenizer import add_marker, load_tokenizer

ATTENTION = "rntp"
_CHUNK_ROWS = 256

Sharing = Literal["auto", "tree", "none"]

# (layer, q [1, Hq, N, D], k [1, Hkv, N, D], v [1, Hkv, N, D], scale) -> [1, Hq, N, D]
Attention = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    rntp_attention: Attention | None = None,
    rntp_windows: list[int | None] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    if rntp_attention is None:
        raise RuntimeError(
            "this model computes token trees: call LanguageModel.hidden, or "
            "hf.set_attn_implementation('sdpa') to use it as an ordinary model"
        )
    if softcap is not None or s_aux is not None:
        raise ConfigError("its attention has soft caps or sinks, which token trees do not have yet")
    if rntp_windows is not None:
        rntp_windows.append(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = module.layer_idx
    assert isinstance(layer, int)
    out = rntp_attention(layer, query, key, value, scale)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention_function)


@dataclass
class LanguageModel:
    """A causal language model that runs token trees.

    max_span: longest sequence it can see, in positions (its limit, or its sliding window).
    plain: how it runs one sequence a branch, where it does not run trees; see
    `rntp.model.unshared`.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str
    think_open_id: int
    think_close_id: int
    max_span: int
    plain: Plain | None = None

    @property
    def shares(self) -> bool:
        """Whether branches of a tree share what they have in common."""
        return self.plain is None

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def head(self) -> Tensor:
        """The output embedding, [V, H]."""
        return _weight(self.hf.get_output_embeddings())

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, where the tokenizer has one."""
        token = self.tokenizer.eos_token_id
        assert token is None or isinstance(token, int)
        return token

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.hf.parameters())

    def hidden(self, input_ids: Tensor, position_ids: Tensor, attention: Attention) -> Tensor:
        """One trunk forward over a packed stream: int64 [N], int64 [N] -> last hidden [N, H]."""
        return _trunk(self.hf, input_ids, position_ids, attention)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, V] in the model's type, as the output embedding itself computes them."""
        out = self.hf.get_output_embeddings()
        assert out is not None
        logits: Tensor = out(hidden)
        return logits

    def logprob(
        self, hidden: Tensor, targets: Tensor, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N] log-prob of the targets and [N] entropy, float32 nats; [N] arg-max ids."""
        return linear_logprob_top1(hidden, self.head, targets, temperature=temperature)

    @torch.no_grad()
    def collision(self, hidden: Tensor) -> Tensor:
        """[N]: Σ_v p_v², the chance that two draws of the next token agree; float32 or better."""
        found = [
            (logits if logits.dtype == torch.float64 else logits.float())
            .softmax(-1)
            .square()
            .sum(-1)
            # In pieces: every row has as many logits as the vocabulary.
            for logits in (rows @ self.head.T for rows in hidden.split(_CHUNK_ROWS))
        ]
        return torch.cat(found)


def load_model(
    spec: str,
    *,
    think_open: str = "<think>",
    think_close: str = "</think>",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    sharing: Sharing = "auto",
) -> LanguageModel:
    """Load a model and check, on a small tree, that it computes what its own attention computes.

    spec: hub id, local folder, GGUF file, or `package:NAME` for an installed package that ships
    weights. Markers that are no single token are added as new tokens, whose embeddings (input, and
    output if it is not tied) are the mean of their sub-tokens'. sharing: see `adopt_model`.

    Raises ConfigError if there is no such model, or if it cannot be run, with the reason.
    """
    tokenizer = load_tokenizer(spec)
    try:
        hf = AutoModelForCausalLM.from_pretrained(localize(spec), dtype=dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.spec {spec!r} cannot be loaded: {error}") from error
    nn.Module.to(hf, device)  # PreTrainedModel.to is decorated beyond what types can follow
    return adopt_model(
        hf, tokenizer, spec, think_open=think_open, think_close=think_close, sharing=sharing
    )


def adopt_model(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: str,
    *,
    think_open: str = "<think>",
    think_close: str = "</think>",
    sharing: Sharing = "auto",
) -> LanguageModel:
    """What `load_model` does with a model once it is in memory, in place.

    spec: what messages call it. sharing: tree wants branches that share their prefix, none runs one
    plain sequence a branch, auto does that where a model cannot run trees. Raises ConfigError if it
    cannot be run so, with the reason.
    """
    hf.eval()  # dropout would make tree and unshared sequence differ
    check_ends(hf, spec)
    open_id, close_id = (_learn_marker(hf, tokenizer, m) for m in (think_open, think_close))
    if _weight(hf.get_input_embeddings()).dtype == torch.float64:
        in_float64(hf)
    model = LanguageModel(hf, tokenizer, spec, open_id, close_id, 0)
    why, own = "it is asked for", hf.config._attn_implementation
    if sharing != "none":
        try:
            return replace(model, max_span=_check_runs_trees(hf, spec))
        except ConfigError as error:
            if sharing == "tree":
                raise
            why = str(error).partition("cannot run token trees: ")[2] or str(error)
            hf.set_attn_implementation(own)
    plain, max_span = check_runs_plain(hf, model, spec, why)
    return replace(model, plain=plain, max_span=max_span)


def cast_parameters(hf: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters only, in place: buffers (rotary frequencies) keep their precision."""
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(dtype)


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> a device. Raises ConfigError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is cuda, but torch sees no CUDA device; use auto or cpu")
    return torch.device(name)


def _weight(module: nn.Module | None) -> Tensor:
    weight = getattr(module, "weight", None)
    assert isinstance(weight, Tensor)
    return weight


def _trunk(
    hf: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    attention: Attention,
    **more: object,
) -> Tensor:
    # Of a model that lies over many ranks, the trunk has hooks: see rntp.sharding.
    run = getattr(hf, "rntp_trunk", hf.base_model)
    output = run(
        input_ids=input_ids[None],
        position_ids=position_ids[None],
        use_cache=False,
        rntp_attention=attention,
        **more,
    )
    return output.last_hidden_state[0]


@torch.no_grad()
def _learn_marker(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, marker: str) -> int:
    token, parts = add_marker(tokenizer, marker)
    if not parts:
        return token
    # Vocabularies are often padded: the new id may already have a row.
    if token >= _weight(hf.get_input_embeddings()).shape[0]:
        hf.resize_token_embeddings(token + 1, mean_resizing=False)
    source, head = _weight(hf.get_input_embeddings()), _weight(hf.get_output_embeddings())
    source[token] = source[parts].mean(dim=0)
    if head is not source:
        head[token] = head[parts].mean(dim=0)
    return token


@torch.no_grad()
def _check_runs_trees(hf: PreTrainedModel, spec: str) -> int:
    """Compare a small tree with the model's own attention on the unshared sequences.

    Returns the longest sequence the model can see. Raises ConfigError with the reason.
    """
    refused = f"model.spec {spec!r} ({type(hf).__name__}) cannot run token trees: "
    if not hf._supports_attention_backend:
        raise ConfigError(refused + "it does not go through the transformers attention interface")
    layout = TreeLayout((6, 3, 2, 2, 3), (-1, 0, 1, 1, 0), (0, 4, 3, 3, 6))
    vocabulary = _weight(hf.get_input_embeddings()).shape[0]
    ids = (torch.arange(layout.num_tokens, device=hf.device) * 7919 + 11) % vocabulary
    positions = layout.position_ids().to(hf.device)

    expected = {s: hf(ids[layout.unshared(s)][None]).logits[0] for s in range(len(layout.lengths))}
    hf.set_attn_implementation(ATTENTION)
    windows: list[int | None] = []
    try:
        attention = TreeAttention(layout, hf.device)
        hidden = _trunk(hf, ids, positions, attention, rntp_windows=windows)
    except ConfigError as error:
        raise ConfigError(refused + str(error)) from error
    layers = hf.config.get_text_config().num_hidden_layers
    if len(windows) != layers:
        raise ConfigError(
            refused + f"{layers - len(windows)} of its {layers} layers do not go through the "
            "attention interface (state-space and linear-attention layers cannot branch)"
        )
    logits = (hidden @ _weight(hf.get_output_embeddings()).T).double()
    # The unit is the spread of the logits, so that the bound does not depend on the model. Norms
    # of transformers work in float32 whatever the type, so float64 has no bound of its own.
    tolerance = 1e-3 if hidden.dtype in (torch.float64, torch.float32) else 0.1
    for segment, wanted in expected.items():
        length = layout.lengths[segment]
        own = logits[layout.offsets[segment] : layout.offsets[segment + 1]]
        gap = (own - wanted[-length:].double()).abs().max() / wanted.double().std()
        if not gap <= tolerance:
            raise ConfigError(
                refused + f"its logits differ from its own attention's by {gap:.2g} standard "
                f"deviations (bound {tolerance}); it transforms logits or attention in a way that "
                "is not supported"
            )
    limits = [w for w in windows if w is not None]
    limit = getattr(hf.config.get_text_config(), "max_position_embeddings", None)
    return min([*limits, *([limit] if limit else [])], default=2**31)
