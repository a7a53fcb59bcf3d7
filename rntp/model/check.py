"""What is asked of a model before it is used: what its head does, and whether trees are exact.

Both compare numbers with the model's own, so that nothing depends on what a class says of itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rntp_kernels import DecodeAttention, TreeAttention, TreeLayout
from rntp_kernels.tree_attention import PrefixRecorder
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rntp.errors import ConfigError, is_out_of_memory
from rntp.model.attention import ATTENTION, NotATreeError, note_layers, trunk
from rntp.model.head import Head, raw_logits, weight_of
from rntp.model.unshared import Plain, in_words, run_plain

# Numbers of a config that may stand between the hidden states and the logits.
_SCALES = re.compile(r"scal|mult|logit|base|mup|factor", re.IGNORECASE)
_CAPS = re.compile(r"cap", re.IGNORECASE)
# Numbers of a config at which attention may change.
_SWITCHES = re.compile(
    r"window|position|chunk|context|length|len$|extent|local|topk|block|stride|n_ctx", re.IGNORECASE
)
# A caller who names no length gets a check of these; longer ones cost seconds on a large model.
CHECKED_UNASKED = 512
_SHORT = 24
_LEAST = 12
UNLIMITED = 1 << 20
REMEDY = "choose another model, or set model.sharing to none"


class NotTreesError(ConfigError):
    """A model whose layers cannot branch. cause: why, in words."""

    def __init__(self, refused: str, cause: str) -> None:
        super().__init__(f"{refused}{cause}; {REMEDY}")
        self.cause = cause


def check_head(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: str, *, at_head: bool = False
) -> Head:
    """Find what lies between the last hidden states and the logits, in the config's numbers and
    compared with what the model computes.

    tokenizer: with the think markers. at_head: hidden states are what the output embedding is
    given, not what the trunk returns. Raises ConfigError for a head that does something else.
    """
    refused = f"model.spec {spec!r} ({type(hf).__name__}) cannot be used: "
    try:
        return _find_head(hf, max(tokenizer.get_vocab().values()) + 1, at_head)
    except ConfigError as error:
        raise ConfigError(f"{refused}{error}; choose another model") from error
    except Exception as error:  # of the class's own code
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{refused}its own forward ends in {in_words(error)}; choose another model"
        ) from error


@torch.no_grad()
def _find_head(hf: PreTrainedModel, tokens: int, at_head: bool) -> Head:
    """tokens: ids that the tokenizer may give are below."""
    out = hf.get_output_embeddings()
    if out is None:
        raise ConfigError("it has no output embedding")
    rows = weight_of(out).shape[0]
    ids = _ids(hf, min(_SHORT, own_limit(hf)))
    hidden, logits = _plain(hf, ids, at_head)
    columns = logits.shape[1]
    if columns > rows or len(logits) != len(hidden):
        raise ConfigError(
            f"its logits have the shape {tuple(logits.shape)}, and its output embedding has {rows} "
            "rows"
        )
    _, first = _plain(hf, ids[: len(ids) // 2], at_head)
    if not _gap(first, logits[: len(first)], hidden) <= _tolerance(hidden):
        raise ConfigError(_no_function_of_the_past(hf, ids, logits, hidden))
    known = min(columns, tokens)
    vocabulary = None if known == rows else known
    found, best = [], float("inf")
    for neck, before in _necks(hf, hidden, weight_of(out).shape[1]):
        raw = raw_logits(out, before).double()[:, :columns]
        for scale, soft_cap in _shapes(hf.config.get_text_config()):
            head = Head(scale, soft_cap, vocabulary, neck)
            gap = _gap(head.scaled(raw), logits, hidden)
            best = min(best, gap)
            found += [head] if gap <= _tolerance(hidden) else []
    if not found:
        raise ConfigError(
            "its logits are no scaled and soft-capped products of its last hidden states with its "
            f"output embedding (off by {best:.2g} standard deviations or more)"
        )
    return found[0] if len(found) == 1 else _told_apart(hf, ids, found, at_head)


def _told_apart(hf: PreTrainedModel, ids: Tensor, heads: list[Head], at_head: bool) -> Head:
    """The one of these that computes what the model computes where logits are large: small ones
    are the same with a soft cap and without."""
    out = hf.get_output_embeddings()
    assert out is not None
    weight = weight_of(out).data
    kept = weight.clone()
    loudest = max(head.soft_cap or 1.0 for head in heads)
    try:
        hidden, logits = _plain(hf, ids, at_head)
        weight.mul_(4 * loudest / float(logits.abs().max().clamp_min(1e-30)))
        hidden, logits = _plain(hf, ids, at_head)
        for head in heads:
            before = hf.get_submodule(head.neck)(hidden) if head.neck else hidden
            raw = raw_logits(out, before).double()[:, : logits.shape[1]]
            if _gap(head.scaled(raw), logits, hidden) <= _tolerance(hidden):
                return head
    finally:
        weight.copy_(kept)
    raise ConfigError("its logits are soft-capped in a way that is not supported")


def _plain(hf: PreTrainedModel, ids: Tensor, at_head: bool) -> tuple[Tensor, Tensor]:
    """Last hidden states and logits (float64) of a text, int64 [n], by the class's own way.

    at_head: hidden states as the output embedding is given them.
    """
    logits = hf(input_ids=ids[None], use_cache=False).logits[0].double()
    return run_plain(hf, Plain(at_head=at_head), ids[None]).hidden[0], logits


def _no_function_of_the_past(
    hf: PreTrainedModel, ids: Tensor, logits: Tensor, hidden: Tensor
) -> str:
    """Why the first half of some tokens alone has other logits than with the rest behind it."""
    half = len(ids) // 2
    again = hf(input_ids=ids[None], use_cache=False).logits[0].double()
    if not _gap(again, logits, hidden) <= _tolerance(hidden):
        return "two forwards of the same tokens differ: something in it is random"
    other = torch.cat([ids[:half], ids[half:].roll(1)])
    changed = hf(input_ids=other[None], use_cache=False).logits[0].double()
    if _gap(changed[:half], again[:half], hidden) <= _tolerance(hidden):
        return depends_on_length(half, len(ids))
    return sees_later_tokens(hf)


def depends_on_length(first: int, whole: int) -> str:
    """Say in words how a model changes with the length of a sequence."""
    return (
        "what it makes of a token depends on the length of the sequence: the first "
        f"{first} tokens alone have other logits than with {whole - first} behind them; its "
        "attention or its rotary embeddings switch with the length"
    )


def sees_later_tokens(hf: PreTrainedModel) -> str:
    """Say in words that a model is not causal; and name the usual trap."""
    said = (
        "a token sees tokens that come after it (another later token changes earlier logits): it "
        "reads both ways, and is no causal language model"
    )
    if getattr(hf.config, "is_decoder", None) is False:
        said += (
            "; its config says is_decoder: false: if the weights are those of a decoder, set "
            "is_decoder to true in its config.json"
        )
    return said


def _necks(hf: PreTrainedModel, hidden: Tensor, width: int) -> Iterator[tuple[str | None, Tensor]]:
    """What may stand between trunk and output embedding: nothing, or one part of the rest of the
    model. (name, what it makes of hidden [N, H]: [N, width])."""
    if hidden.shape[1] == width:
        yield None, hidden
    trunk_parts, out = set(hf.base_model.modules()), hf.get_output_embeddings()
    for name, part in hf.named_modules():
        if not name or part is out or part in trunk_parts:
            continue
        try:
            found = part(hidden)
        except Exception:
            continue  # it is no such part: this is a search, and who finds nothing is refused
        if isinstance(found, Tensor) and found.shape == (len(hidden), width):
            yield name, found


def check_trunk(hf: PreTrainedModel, spec: str, span: int | None = None) -> int:
    """Compare trees with the model's own attention on the unshared sequences, and decoding too, on
    a tree that is long enough for every window and switch of the config that `span` positions meet.

    span: the longest sequence that will be used; None: as far as the model sees, up to the first
    switch behind 512 positions.
    Returns the longest sequence that trees can have. Leaves the model with the trees' attention.
    Raises ConfigError with the reason; the model then has the attention that it had.
    """
    before = hf.config._attn_implementation
    refused = f"model.spec {spec!r} ({type(hf).__name__}) cannot run token trees: "
    try:
        return _check_trunk(hf, span)
    except Exception as error:
        hf.set_attn_implementation(before)
        if is_out_of_memory(error):
            raise
        cause = str(error) if isinstance(error, ConfigError) else in_words(error)
        if isinstance(error, NotATreeError):
            cause = "its layers do not pass keywords on to their attention"
        raise NotTreesError(refused, cause) from error


@torch.no_grad()
def _check_trunk(hf: PreTrainedModel, span: int | None) -> int:
    if not hf._supports_attention_backend:
        raise ConfigError("it does not go through the transformers attention interface")
    if any(True for _ in _named(hf.config.to_dict(), r"^index_topk$")):
        raise ConfigError("its layers pick the keys that a token sees (sparse attention)")
    seen, (tree_limit, why) = own_limit(hf), _tree_limit(hf)
    if span is not None and tree_limit < min(span, seen):
        raise ConfigError(
            f"{why} at {tree_limit} positions, and the run reaches {span}; lower "
            "data.context_tokens or thought.thought_tokens"
        )
    limit = min(seen, tree_limit)
    switches = sorted(set(switches_of(hf.config.get_text_config().to_dict())))
    if span is None:
        limit = min([limit, *(s for s in switches if s >= CHECKED_UNASKED)])
    span = min(span or limit, limit)
    # One position more than a switch is beyond it; a few more make it show in many rows.
    met = max((s for s in switches if s < span), default=0)
    longest = min(max(_SHORT, met + 8), span)
    if longest < _LEAST:
        raise ConfigError(f"it sees {span} positions, and its check takes {_LEAST}")

    tree = _Probe.of(longest)
    ids = _ids(hf, tree.layout.num_tokens)
    expected = {
        s: hf.base_model(input_ids=ids[tree.layout.unshared(s)][None], use_cache=False)
        .last_hidden_state[0]
        .double()
        for s in tree.asked
    }
    notes = note_layers(hf, ids[tree.layout.unshared(2)], span)
    _require_layers(hf, notes.calls)
    hf.set_attn_implementation(ATTENTION)
    positions = tree.layout.position_ids().to(hf.device)
    hidden = trunk(hf, ids, positions, TreeAttention(tree.layout, hf.device))
    for segment, wanted in expected.items():
        rows = tree.layout.unshared(segment)
        _require_small(_row_gap(hidden[rows].double(), wanted), hidden, "its hidden states differ")
    for segment, found in _decode(hf, tree, ids).items():
        gap = _row_gap(found.double(), expected[segment])
        _require_small(gap, hidden, "what it decodes token by token differs")
    return limit


@dataclass(frozen=True)
class _Probe:
    """A long page with short branches at its end, and branches of these; a short page beside it.

    asked: segments whose unshared sequences are compared; they cover all others.
    """

    layout: TreeLayout
    asked: tuple[int, ...]

    @classmethod
    def of(cls, longest: int) -> "_Probe":
        page = longest - 8
        layout = TreeLayout(
            (page, 5, 4, 4, 5, 7, 4),
            (-1, 0, 1, 0, 0, -1, 5),
            (0, page - 1, 4, page, page // 3, 0, 3),
        )
        return cls(layout, (2, 3, 4, 6, 5))


def _gap(found: Tensor, wanted: Tensor, hidden: Tensor) -> float:
    """The largest difference of logits in the last rows, in standard deviations: so that the bound
    does not depend on the model. In 16 bits, of a row's root mean square.

    hidden: of the type that the model computes in.
    """
    if not _is_precise(hidden):
        return _row_gap(found, wanted)
    return float((found - wanted[-len(found) :]).abs().max() / wanted.std().clamp_min(1e-30))


def _row_gap(found: Tensor, wanted: Tensor) -> float:
    """The largest root mean square of a row's differences, in standard deviations.

    Single channels say little: where products of other shapes round otherwise, some of SmolLM2-135M
    are off by a whole standard deviation in bfloat16, and of what was trained from it by 0.004 in
    float32 (by nothing in float64).
    """
    difference = (found - wanted[-len(found) :]) / wanted.std().clamp_min(1e-30)
    return float(difference.square().mean(dim=-1).sqrt().max())


def _require_small(gap: float, hidden: Tensor, what: str) -> None:
    if not gap <= _tolerance(hidden):
        raise ConfigError(
            f"{what} from its own attention's by {gap:.2g} standard deviations (bound "
            f"{_tolerance(hidden)}); its layers do something with a sequence that branches do not "
            "have (convolutions, states, or positions in a way that is not supported)"
        )


def _decode(hf: PreTrainedModel, tree: _Probe, ids: Tensor) -> dict[int, Tensor]:
    """The branches that hang at the end of the page, token by token: segment -> [n, H]."""
    layout, device = tree.layout, hf.device
    page = layout.lengths[0]
    recorder = PrefixRecorder((page,), page, device)
    trunk(hf, ids[:page], torch.arange(page, device=device), recorder)
    branches = (1, 3)
    visible = torch.tensor([[layout.attach[s] for s in branches]], device=device)
    attention = DecodeAttention(recorder, visible, 4)
    steps = []
    for t in range(4):
        token = torch.stack([ids[layout.offsets[s] + t] for s in branches])
        steps.append(trunk(hf, token, visible[0] + t, attention))
        attention.advance()
    # The first branch is compared as part of what hangs at it.
    return {3: torch.stack(steps)[:, 1]}


def _require_layers(hf: PreTrainedModel, calls: list[int]) -> None:
    layers = hf.config.get_text_config().num_hidden_layers
    if len(calls) < layers:
        raise ConfigError(
            f"{layers - len(calls)} of its {layers} layers do not go through the attention "
            "interface (state-space and linear-attention layers cannot branch)"
        )
    if len(set(calls)) < len(calls):
        raise ConfigError("some of its layers run more than once a token")


def own_limit(hf: PreTrainedModel) -> int:
    """The longest sequence that a model says it sees."""
    config = hf.config.get_text_config()
    said = [config.to_dict().get("max_position_embeddings")]
    # Some say it by another name.
    others = ("max_position_embeddings", "max_seq_len", "max_target_positions")
    said += [getattr(config, name, None) for name in others]
    return min((n for n in said if isinstance(n, int) and n > 0), default=UNLIMITED)


def _tree_limit(hf: PreTrainedModel) -> tuple[int, str]:
    """The longest sequence for which a position means the same in sequences of all lengths, and
    what changes there: a tree has one call for sequences of many lengths."""
    config = hf.config.get_text_config().to_dict()
    chunk = config.get("attention_chunk_size")
    if isinstance(chunk, int):
        return chunk, "its layers begin a new chunk (attention_chunk_size)"
    return rotary_limit(hf)


def rotary_limit(hf: PreTrainedModel) -> tuple[int, str]:
    """The longest sequence up to which rotary frequencies do not depend on its length, and what
    happens there."""
    config = hf.config.get_text_config().to_dict()
    for module in hf.modules():
        kinds = getattr(module, "rope_type", None)
        own = kinds.values() if isinstance(kinds, dict) else [kinds]
        if {"longrope", "dynamic"} & {str(kind) for kind in own}:
            named = _named(config, r"^original_max_position_embeddings$")
            switch = min((n for n in named if isinstance(n, int)), default=UNLIMITED)
            return switch, "its rotary frequencies change for the whole sequence (longrope)"
    return UNLIMITED, ""


def switches_of(config: dict[str, object]) -> Iterator[int]:
    """Numbers of a config at which what a layer sees may change."""
    for number in _named(config, _SWITCHES):
        if isinstance(number, int) and not isinstance(number, bool) and number > 1:
            yield number


def _named(config: object, name: str | re.Pattern[str]) -> Iterator[object]:
    """Values of a config whose keys match, however deep."""
    if isinstance(config, dict):
        for key, value in config.items():
            if re.search(name, str(key)) and not isinstance(value, dict | list):
                yield value
            elif isinstance(value, dict | list):
                yield from _named(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _named(value, name)


def _shapes(config: PreTrainedConfig) -> Iterator[tuple[float, float | None]]:
    """(scale, soft cap) that a head may have: plain first, then by the numbers of the config."""
    numbers = {k: v for k, v in config.to_dict().items() if type(v) in (int, float) and v > 0}
    scales = [1.0]
    for key, value in numbers.items():
        if _SCALES.search(key):
            scales += [float(value), 1.0 / value]
    if "dim_model_base" in numbers:  # MiniCPM's (2404.06395)
        scales.append(numbers["dim_model_base"] / numbers["hidden_size"])
    caps = [None, *(float(v) for k, v in numbers.items() if _CAPS.search(k))]
    for soft_cap in caps:
        for scale in dict.fromkeys(scales):
            yield scale, soft_cap


def _ids(hf: PreTrainedModel, number: int) -> Tensor:
    vocabulary = weight_of(hf.get_input_embeddings()).shape[0]
    return (torch.arange(number, device=hf.device) * 7919 + 11) % vocabulary


def _tolerance(x: Tensor) -> float:
    # Norms of transformers work in float32 whatever the type, so float64 has no bound of its own.
    # Rounding was seen to move a row by 0.0002 in float32 and, SmolLM2-135M, by 0.09 in 16 bits;
    # layers that do something else by 0.04 and more, a window that one of two tiny layers loses by
    # 0.2. In 16 bits experts that rounding swaps move it by 0.29, and are refused.
    return 3e-3 if _is_precise(x) else 0.15


def _is_precise(x: Tensor) -> bool:
    return x.dtype in (torch.float64, torch.float32)
