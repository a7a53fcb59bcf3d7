"""Load a causal language model, give it think markers, and prove that it can run token trees.

Any Hugging Face model that goes through the attention interface works; see `rntp.model.attention`.
What cannot work is refused at load, with the reason; see `rntp.model.check`.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from rntp_kernels import float32_logits, linear_logprob_top1
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rntp.errors import ConfigError, is_out_of_memory
from rntp.model.attention import ATTENTION, Attention, own_attention, trunk
from rntp.model.check import NotTreesError, check_head, check_trunk
from rntp.model.head import Head, bias_of, raw_logits, weight_of
from rntp.model.markers import learn_marker
from rntp.model.mixing import FILE, NAME, START, Mixing
from rntp.model.plain_check import check_ends, check_runs_plain
from rntp.model.sources import localize
from rntp.model.tokenizer import load_tokenizer, start_id
from rntp.model.unshared import Plain

_CHUNK_ROWS = 256

Sharing = Literal["auto", "tree", "none"]


@dataclass
class LanguageModel:
    """A causal language model that runs token trees, or plain sequences in their place.

    max_span: longest sequence it can see, in positions. shape: what its head does besides the
    product. plain: how it runs one sequence a branch, where it does not run trees; see
    `rntp.model.unshared`. tool_ids: markers around a call of a tool and around its result, where
    thoughts may call any.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str
    think_open_id: int
    think_close_id: int
    max_span: int
    shape: Head = field(default_factory=Head)
    plain: Plain | None = None
    tool_ids: tuple[int, ...] = ()

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
        return weight_of(self.hf.get_output_embeddings())

    @property
    def bias(self) -> Tensor | None:
        """The output embedding's bias, [V], where it has one."""
        return bias_of(self.hf.get_output_embeddings())

    @property
    def vocabulary(self) -> int:
        """Tokens that can be drawn: rows of the head that the tokenizer knows."""
        return self.shape.vocabulary or self.head.shape[0]

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, where the tokenizer has one."""
        token = self.tokenizer.eos_token_id
        assert token is None or isinstance(token, int)
        return token

    @property
    def start_id(self) -> int:
        """The token before a text that is read by itself. Raises ConfigError without one."""
        return start_id(self.tokenizer)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.hf.parameters())

    @property
    def mixing(self) -> Mixing | None:
        """The head that mixes predictions with a thought and without; None where there is none."""
        found = getattr(self.hf, NAME, None)
        assert found is None or isinstance(found, Mixing)
        return found

    def add_mixing(self, seed: int | None, start: float = START) -> None:
        """Give the model its mixing head: that beside its weights, or a new one of this seed where
        there is none, whose weight has the log-odds `start`. None: there has to be one, or
        ConfigError is raised."""
        width = self.head.shape[1]
        if self.shape.neck is not None:
            width = self.hf.config.get_text_config().hidden_size
        if seed is None or (Path(self.spec) / FILE).is_file():
            head = Mixing.beside(self.spec, width)
        else:
            head = Mixing(width, seed, start)
        self.hf.add_module(NAME, head.to(self.device, self.head.dtype))

    def hidden(self, input_ids: Tensor, position_ids: Tensor, attention: Attention) -> Tensor:
        """One trunk forward over a packed stream: int64 [N], int64 [N] -> last hidden [N, H]."""
        return trunk(self.hf, input_ids, position_ids, attention)

    def logits(self, hidden: Tensor, of: Tensor | None = None) -> Tensor:
        """Compute logits [N, H] -> [N, V] of the V tokens that can be drawn, or those of the ids
        `of`, int64 [V]; float32, whatever the model's type, or float64 for float64."""
        out = self.hf.get_output_embeddings()
        assert out is not None
        hidden = self._before_head(hidden)
        if of is None:
            return self.shape.shaped(raw_logits(out, hidden))
        bias = None if self.bias is None else self.bias[of]
        return self.shape.scaled(float32_logits(hidden, self.head[of], bias))

    def logprob(
        self, hidden: Tensor, targets: Tensor, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N] log-prob of the targets and [N] entropy, float32 nats; [N] arg-max ids."""
        return linear_logprob_top1(
            self._before_head(hidden),
            self.head,
            targets,
            bias=self.bias,
            temperature=temperature,
            shaping=self.shape.shaping,
        )

    def _before_head(self, hidden: Tensor) -> Tensor:
        """What the output embedding multiplies, [N, H]."""
        if self.shape.neck is None:
            return hidden
        found: Tensor = self.hf.get_submodule(self.shape.neck)(hidden)
        return found

    @torch.no_grad()
    def collision(self, hidden: Tensor) -> Tensor:
        """[N]: Σ_v p_v², the chance that two draws of the next token agree; float32 or better."""
        found = [
            # In pieces: every row has as many logits as the vocabulary.
            self.logits(rows).softmax(-1).square().sum(-1)
            for rows in hidden.split(_CHUNK_ROWS)
        ]
        return torch.cat(found)


def load_model(
    spec: str,
    *,
    think_open: str = "<think>",
    think_close: str = "</think>",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    span: int | None = None,
    sharing: Sharing = "auto",
    tool_markers: Sequence[str] = (),
) -> LanguageModel:
    """Load a model and check, on a small tree, that it computes what its own attention computes.

    spec: hub id, local folder, GGUF file, or `package:NAME` for an installed package that ships
    weights. Markers that are no single token are added as new tokens, whose embeddings (input, and
    output if it is not tied) are the mean of their sub-tokens'. span: the longest sequence that
    will be used, positions; None: as far as the model sees (see `rntp.model.check.check_trunk`).
    sharing: see `adopt_model`. tool_markers: further markers; see `LanguageModel.tool_ids`.

    Raises ConfigError if there is no such model, or if it cannot be run, with the reason.
    """
    tokenizer = load_tokenizer(spec)
    try:
        hf = AutoModelForCausalLM.from_pretrained(localize(spec), dtype=dtype)
    except ConfigError:
        raise
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"model.spec {spec!r} cannot be loaded: its weights are pickled programs, which are "
            "not run; use a copy that is stored as safetensors"
        ) from error
    except Exception as error:  # whatever libraries and files have to say
        if is_out_of_memory(error):
            raise
        first = str(error).strip() or type(error).__name__
        raise ConfigError(f"model.spec {spec!r} cannot be loaded: {first}") from error
    nn.Module.to(hf, device)  # PreTrainedModel.to is decorated beyond what types can follow
    return adopt_model(
        hf,
        tokenizer,
        spec,
        think_open=think_open,
        think_close=think_close,
        span=span,
        sharing=sharing,
        tool_markers=tool_markers,
    )


def adopt_model(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: str,
    *,
    think_open: str = "<think>",
    think_close: str = "</think>",
    span: int | None = None,
    sharing: Sharing = "auto",
    tool_markers: Sequence[str] = (),
) -> LanguageModel:
    """Return what `load_model` does with a model once it is in memory, in place.

    spec: what messages call it. sharing: tree wants branches that share their prefix, none runs one
    plain sequence a branch, auto does that where a model cannot run trees. Raises ConfigError if it
    cannot be run so, with the reason.
    """
    hf.eval()  # dropout would make tree and unshared sequence differ
    _make_usable(hf)
    check_ends(hf, spec)
    open_id, close_id = (learn_marker(hf, tokenizer, m, spec) for m in (think_open, think_close))
    tool_ids = tuple(learn_marker(hf, tokenizer, marker, spec) for marker in tool_markers)
    model = LanguageModel(hf, tokenizer, spec, open_id, close_id, 0, tool_ids=tool_ids)
    plain = Plain("it is asked for")
    try:
        model.shape = check_head(hf, tokenizer, spec)
        if sharing != "none":
            return replace(model, max_span=check_trunk(hf, spec, span))
    except NotTreesError as error:
        if sharing == "tree":
            raise
        plain = Plain(error.cause)
    except ConfigError:
        if sharing == "tree":
            raise
        # Something may lie between the trunk and the head, as in BERT's decoders.
        plain = Plain("its head is given something else than what its trunk returns", at_head=True)
        model.shape = check_head(hf, tokenizer, spec, at_head=True)
    plain, max_span = check_runs_plain(hf, model, spec, plain, span)
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


def _make_usable(hf: PreTrainedModel) -> None:
    """What some classes need before anything else, in place."""
    if hf.config._attn_implementation == ATTENTION:  # it was in use before
        hf.set_attn_implementation(own_attention(hf))
    if hf.base_model is hf:  # its name for the trunk is another's
        trunks = [name for name in ("model", "transformer", "decoder") if hasattr(hf, name)]
        hf.base_model_prefix = trunks[0] if trunks else hf.base_model_prefix
    if getattr(hf.config, "rescale_every", 0):
        # RWKV divides its weights by powers of 2 in place as soon as it is evaluated, against
        # overflow in float16: they would be trained and saved like that.
        hf.config.rescale_every = 0
    if hf.dtype == torch.float64:
        cast_parameters(hf, torch.float64)  # some classes keep a few in float32
        if hf._can_set_experts_implementation():
            hf.set_experts_implementation("eager")  # the grouped products have no float64
