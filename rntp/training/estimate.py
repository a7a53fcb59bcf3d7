"""Sizes of a run before it starts: tokens, memory, FLOP. For `rntp train --dry-run`, which measures
the time (`rntp.bench.duration`).
"""

from dataclasses import dataclass

import torch
from rntp_kernels.linear_logprob import default_chunk_rows
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rntp import rewards
from rntp.config import Config
from rntp.model import Sharing, pick_device
from rntp.model.sources import localize
from rntp.model.unshared import cannot_branch
from rntp.objective.quantities import loss_reads
from rntp.run.rollout_files import PACKED
from rntp.run.rollout_writer import PACK_EVERY, PLAIN_STEPS

# Tokens of a judge's question without answer and continuation, about.
QUESTION = 50

# Bytes of a process that has loaded torch and transformers and done nothing yet.
PROCESS = 0.7e9

BETWEEN = 1.15
"""Bytes that activations take, for each that the backward keeps: gaps between blocks, and gradients
on the way. Measured on SmolLM2-135M, 2,498 to 3,810 tokens, CPU."""


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a model depends on. trunk: parameters without embeddings. kv_width:
    numbers that a layer keeps of a token as keys, and as many as values. q_width: of a token's
    queries in a layer. shares: it runs trees."""

    parameters: int
    trunk: int
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    kv_width: int = 0
    shares: bool = True
    q_width: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, *, shares: bool = True) -> "Shape":
        parameters = sum(p.numel() for p in model.parameters())
        ends = [model.get_input_embeddings(), model.get_output_embeddings()]
        # Tied embeddings are one tensor and count once.
        embeddings = {id(p): p.numel() for end in ends if end for p in end.parameters()}
        text = model.config.get_text_config()
        heads = _number(text, "num_attention_heads", "n_heads", "num_heads") or 1
        head = _number(text, "head_dim") or text.hidden_size // heads
        return cls(
            parameters=parameters,
            trunk=parameters - sum(embeddings.values()),
            hidden=text.hidden_size,
            intermediate=_number(text, "intermediate_size") or 4 * text.hidden_size,
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            kv_width=(_number(text, "num_key_value_heads") or heads) * head,
            shares=shares,
            q_width=heads * head,
        )

    @classmethod
    def of_spec(cls, spec: str, sharing: Sharing = "auto") -> "Shape":
        """Read the model's config alone: no weights are read. sharing: with auto it is a guess
        whether the model runs trees, which the check at load decides."""
        hf_config = AutoConfig.from_pretrained(localize(spec))
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(hf_config)
        shares = sharing == "tree" or (sharing == "auto" and not cannot_branch(hf))
        return cls.of(hf, shares=shares)


def _number(config: PreTrainedConfig, *names: str) -> int | None:
    """The first of these that a config has; the largest, where layers have their own."""
    for name in names:
        try:
            found = getattr(config, name, None)
        except RuntimeError:  # it is another one in every layer, says transformers
            found = [getattr(layer, name, None) for layer in config.per_layer_config]
        if isinstance(found, list | tuple):
            found = max((n for n in found if isinstance(n, int)), default=None)
        if isinstance(found, int):
            return found
    return None


@dataclass(frozen=True)
class Tokens:
    """Tokens of a step.

    tree: of its token trees. learning: those of them that have gradients. unshared: with one
    sequence a thought. read: by the sampler. sampled: drawn; without any, nothing is read for
    sampling either. head_rows: that need log-probs. learning_rows: those of them with gradients.
    asked: in the trees of a judge. plain, plain_learning: what a model that shares nothing computes
    in place of tree and learning; plain_read: its sampler, in place of read. bare: of the readings
    without a memory, where there is a reading window.
    """

    tree: int
    learning: int
    unshared: float
    read: int
    sampled: int
    head_rows: int
    learning_rows: int
    asked: int = 0
    plain: float = 0
    plain_learning: float = 0
    plain_read: float = 0
    bare: int = 0

    @property
    def spent(self) -> int:
        """Tokens read and sampled: what `tokens/spent` counts in a run."""
        return self.read + self.sampled

    @classmethod
    def of(cls, config: Config) -> "Tokens":
        docs, length = config.data.docs_per_step, config.data.context_tokens
        positions = config.placement.positions_per_doc
        branches = positions * config.thought.thoughts_per_position
        drawing = positions * config.sampled_thoughts
        read, prefix = _contexts(config)
        answer, horizon = config.thought.answer_tokens, config.reward.horizon
        drawn = config.thought.thought_tokens + answer
        # Continuation and answer of a thought would be two sequences.
        again = prefix + config.thought.thought_tokens + 2 if answer else 0
        question = QUESTION + answer + horizon
        judges = len({rewards.NEEDS[name].judge for name in config.reward.names} - {None})
        reads = loss_reads(config)
        document_rows = positions * horizon
        if reads.context:
            document_rows = length + (document_rows - horizon if config.reads_again else 0)
        # Pages, and every branch behind its prefix; without gradients, a second time.
        ahead = config.thought.thought_tokens + 2 + horizon - 1
        plain = plain_learning = read + branches * (prefix + ahead + (again and again + answer - 1))
        if not reads.continuation:
            branch = prefix + config.learning_branch_tokens
            plain_learning = read + branches * branch
            plain = plain_learning + read + branches * (prefix + ahead)
        bare = positions * config.bare_tokens
        bare_rows = positions * horizon if bare else 0
        if bare:
            apart = branches * (config.branch_tokens - config.learning_branch_tokens)  # readings
            plain_learning = read + branches * (prefix + config.learning_branch_tokens)
            if reads.continuation:
                plain = plain_learning = plain_learning + apart + bare
            else:
                plain = plain_learning + read + apart + bare
        learning, learning_rows = config.branch_tokens, drawn + horizon
        if not reads.continuation:
            learning, learning_rows = config.learning_branch_tokens, drawn
        asked = length + branches * judges * question if judges else 0
        if any(rewards.NEEDS[name].lost_span for name in config.reward.names):
            asked += positions * config.bare_tokens  # and behind every memory
            asked += branches * (config.thought.thought_tokens + 2 + config.bare_tokens)
        return cls(
            tree=docs * (read + branches * config.branch_tokens + bare),
            learning=docs * (read + branches * learning + bare * reads.continuation),
            unshared=docs * branches * (prefix + config.branch_tokens + again),
            read=docs * read,
            sampled=docs * drawing * drawn,
            head_rows=docs * (drawing * drawn + branches * horizon + document_rows + bare_rows),
            learning_rows=docs
            * (
                drawing * drawn
                + branches * (learning_rows - drawn)
                + document_rows * (reads.context or config.mixes_pages)
                + bare_rows * reads.continuation
            ),
            asked=docs * asked,
            plain=docs * plain,
            plain_learning=docs * plain_learning,
            plain_read=docs * (read + positions * prefix + branches * again),
            bare=docs * bare,
        )


def _contexts(config: Config) -> tuple[int, float]:
    """Tokens of a page's contexts, all together, and mean tokens before a position."""
    length, positions = config.data.context_tokens, config.placement.positions_per_doc
    if config.reading.piece is not None:
        # The first link has the page, each later one a piece behind a memory.
        memory = config.link_tokens - config.reading.piece - config.reward.horizon
        later = positions - 1
        return (
            length + later * config.link_tokens,
            config.reading.piece + memory * later / positions,
        )
    prefix = (config.earliest_position + length - config.reward.horizon) / 2
    if not config.placement.interleaved:
        return length, prefix
    # A page is read at each position, with a thought more each time.
    inserted = (positions - 1) / 2 * (config.thought.thought_tokens + 2)
    return round(positions * (length + inserted)), prefix + inserted


def peak_memory(
    config: Config,
    shape: Shape,
    ranks: int = 1,
    *,
    recompute: bool = False,
    kept_per_token: float | None = None,
) -> float:
    """Most bytes that training takes, all of `memory_parts`."""
    parts = memory_parts(config, shape, ranks, recompute=recompute, kept_per_token=kept_per_token)
    return sum(parts.values())


def memory_parts(
    config: Config,
    shape: Shape,
    ranks: int = 1,
    *,
    recompute: bool = False,
    kind: str | None = None,
    kept_per_token: float | None = None,
) -> dict[str, float]:
    """Bytes by what they are for: weights, moments, gradients, one microbatch's activations, ….

    recompute: with activation checkpointing. kind: of the device, cpu or cuda; None is what the
    config takes on this machine. kept_per_token: bytes that all layers keep of a token for the
    backward, where that was measured (`rntp.training.step_memory`). Of each of `ranks` processes:
    masters and moments are split over them, the copy that computes and the gradients that add up
    during a step are not.
    """
    tokens, docs = Tokens.of(config), config.data.docs_per_step
    wide, narrow = number_bytes(config)
    kind = kind or pick_device(config.model.device).type
    split = 4 if ranks == 1 else 4 / ranks  # master, gradient, two moments
    copy = (narrow if narrow < wide else 0) if ranks == 1 else wide + narrow
    found = {
        "process": PROCESS,
        "masters, moments, gradients": shape.parameters * split * wide,
        "copy that computes": shape.parameters * copy,
        "reference": shape.parameters * _reference_bytes(config)[0],
        "buffers of saves": 0.0,
    }
    if config.checkpoint.asynchronous and kind != "cuda":
        most = config.checkpoint.copies_bytes
        whole = checkpoint_bytes(config, shape.parameters) / ranks
        found["buffers of saves"] = whole if most is None else min(whole, most)
    if narrow == 2 and kind == "cpu":
        # Packed, and the head in float32; see `rntp.model.packed_weights`.
        head = (wide - narrow) * shape.vocabulary * shape.hidden
        found["copy that computes"] += narrow * shape.parameters + head
    every, learning = _computed(shape, tokens)
    whole = every / docs  # what is never split
    if not shape.shares and ranks == 1:  # but computed again in pieces where it is larger
        whole = config.span_tokens
    elif config.reads_again:
        branches = config.thought.thoughts_per_position * config.branch_tokens
        whole = config.longest_context + branches + config.bare_tokens
    microbatch = min(max(config.parallel.tokens_per_microbatch, whole), every)
    microbatch *= learning / every  # the others leave nothing for the backward
    # In units of a layer's widths, as measured for Llama; norms, and attention on the CPU, work in
    # `wide`.
    kept = kept_per_token
    if kept is None:
        layer = (8 * shape.hidden + 4 * shape.intermediate) * narrow + 13 * shape.hidden * wide
        kept = float(shape.layers * layer)
    per_token = BETWEEN * kept / shape.layers
    # Logits of two chunks at most, in float32, and the gradient of the weight.
    chunk = default_chunk_rows(torch.device(kind))
    logits = min(2 * chunk, tokens.head_rows) * shape.vocabulary * wide
    found["head"] = logits + shape.vocabulary * shape.hidden * wide
    if recompute:  # the inputs of all layers, and all of the one whose backward runs
        found["activations"] = (shape.layers * shape.hidden * narrow + per_token) * microbatch
    else:
        found["activations"] = shape.layers * per_token * microbatch
    found["decoding"] = decoding_bytes(config, shape, kind)
    return found


def decoding_bytes(config: Config, shape: Shape, kind: str | None = None) -> int:
    """Return what the sampler keeps while training goes on: on CUDA the storage that its graph
    works on (keys and values of pages and branches, and the logits of a step, twice: narrower
    graphs, for branches that have not ended, have half of them, a quarter, …); elsewhere nothing.
    """
    thoughts, rollout = config.thought, config.rollout
    kind = kind or pick_device(config.model.device).type
    if not thoughts.thoughts_per_position or kind != "cuda":
        return 0
    docs = min(rollout.docs_per_batch, config.data.docs_per_step)
    rest = config.data.docs_per_step % docs  # of the last batch, which has a graph of its own
    positions = 1 if config.reads_again else config.placement.positions_per_doc
    branches = positions * config.sampled_thoughts
    answer = thoughts.answer_tokens + 1 if thoughts.answer_tokens else 0
    kept = config.longest_context + branches * (thoughts.thought_tokens + answer)
    wide, narrow = number_bytes(config)
    stored = 2 * shape.layers * shape.kv_width * kept * narrow
    return (docs + rest) * (stored + 2 * branches * shape.vocabulary * wide)


def checkpoint_bytes(config: Config, parameters: int) -> int:
    """Weights, two moments, and the second set of weights of a baseline or a KL term."""
    return parameters * (3 * number_bytes(config)[0] + _reference_bytes(config)[1])


def record_bytes(config: Config) -> int:
    """What rollouts/ takes by the end of a run whose thoughts are all as long as they may be.

    The newest steps as they are, older ones packed. Bytes of a row: fitted to runs on English text,
    from above.
    """
    thoughts = config.thought
    groups = config.data.docs_per_step * config.placement.positions_per_doc
    rows = groups * thoughts.thoughts_per_position
    if config.log.rollouts_per_step is not None:
        rows = min(rows, max(config.log.rollouts_per_step, thoughts.thoughts_per_position))
    sampled = thoughts.thought_tokens + thoughts.answer_tokens
    row = 700 + 14 * sampled + 40 * config.reward.horizon + 60 * len(config.reward.names)
    plain = min(config.run.steps, PLAIN_STEPS + PACK_EVERY)
    return round(rows * row * (plain + (config.run.steps - plain) / PACKED))


def estimate(config: Config, shape: Shape) -> dict[str, float]:
    """Sizes of a step (tokens, FLOP) and peak memory (bytes), at full lengths."""
    tokens, docs = Tokens.of(config), config.data.docs_per_step
    flop = full_flop(config, shape)
    positions = docs * config.placement.positions_per_doc
    checkpointing = config.parallel.activation_checkpointing
    return {
        "tokens per step, tree": tokens.tree,
        "tokens per step, one sequence a thought": tokens.unshared,
        "sharing ratio": tokens.unshared / tokens.tree,
        "tokens per step, model.sharing none": tokens.plain,
        "positions per step": positions,
        "rollouts per step": positions * config.thought.thoughts_per_position,
        "sampled tokens per step": tokens.sampled,
        "TFLOP per step": flop / 1e12,
        "peak memory, GB": peak_memory(config, shape, recompute=checkpointing is True) / 1e9,
        "checkpoint, GB": checkpoint_bytes(config, shape.parameters) / 1e9,
        "thoughts on the disk by the end, GB": record_bytes(config) / 1e9,
    }


def full_flop(config: Config, shape: Shape) -> float:
    """`step_flop` of a step at full thought length."""
    return step_flop(config, shape, Tokens.of(config))


def step_flop(config: Config, shape: Shape, tokens: Tokens) -> float:
    """FLOP of a step's matrix products, attention left out: all of `flop_parts`."""
    return sum(flop_parts(config, shape, tokens).values())


def flop_parts(config: Config, shape: Shape, tokens: Tokens) -> dict[str, float]:
    """FLOP of a step's matrix products by what they are for, attention left out: 2 a parameter of
    the trunk and token forward and 4 backward; the head computes its logits once more in the
    backward.
    """
    token, row = 2 * shape.trunk, 2 * shape.hidden * shape.vocabulary
    every, learning = _computed(shape, tokens)
    rows, learning_rows = tokens.head_rows, tokens.learning_rows
    most, docs = config.parallel.tokens_per_microbatch, config.data.docs_per_step
    again = token * learning * (not shape.shares and every / docs > most)
    # What is judged ahead, and an epoch over old thoughts, runs what learns once more.
    epochs = config.objective.epochs_per_rollout
    more = epochs - 1 + config.objective.needs_whole_step
    read: float = tokens.read if shape.shares else tokens.plain_read
    second: float = 0
    # For a KL term the whole tree, for a baseline the contexts alone, for a judge neither.
    if config.objective.kl_weight > 0 and tokens.sampled:
        second = token * every
    elif config.baseline.rereads and tokens.sampled:
        second = token * (tokens.bare or tokens.read)
    sampled = tokens.sampled > 0
    return {
        "reading pages to sample": (token + row) * read * sampled,
        "decoding thoughts": (token + row) * tokens.sampled,
        "forward, layers": token * (every + more * learning),
        "forward, head": row * (rows + more * learning_rows),
        # `rntp.model.unshared.run_forest` computes what is too large once more.
        "backward, layers": epochs * (2 * token * learning + again),
        "backward, head": epochs * 3 * row * learning_rows,
        "other weights": second,
        "judge": token * tokens.asked,
    }


def attention_flop(config: Config, shape: Shape) -> dict[str, float]:
    """FLOP of a step's attention at full length, which `flop_parts` leaves out, by the same names:
    4 a number of the queries and pair that may see each other, 2.5 times that backward.

    Of a tree: its page's pairs, those of branches with the page before them, and their own.
    """
    length, docs = config.data.context_tokens, config.data.docs_per_step
    thoughts = config.placement.positions_per_doc * config.thought.thoughts_per_position
    own = config.branch_tokens
    drawn = config.thought.thought_tokens + config.thought.answer_tokens
    prefix = (config.earliest_position + length - config.reward.horizon) / 2
    page = docs * length * (length + 1) / 2
    pairs = page + docs * thoughts * (own * prefix + own * (own + 1) / 2)
    decoded = docs * thoughts * (drawn * prefix + drawn * (drawn + 1) / 2)
    each = 4.0 * shape.q_width * shape.layers
    return {
        "reading pages to sample": each * page * (thoughts > 0),
        "decoding thoughts": each * decoded,
        "forward, layers": each * pairs,
        "backward, layers": 2.5 * each * pairs,
    }


def _computed(shape: Shape, tokens: Tokens) -> tuple[float, float]:
    """Tokens of a step's forwards, and those of them that have gradients."""
    if shape.shares:
        return tokens.tree, tokens.learning
    return tokens.plain, tokens.plain_learning


def number_bytes(config: Config) -> tuple[int, int]:
    """Bytes of a number of the master weights and of the compute copy."""
    wide = 8 if config.model.dtype == "float64" else 4
    return wide, 2 if config.model.dtype == "bfloat16" else wide


def _reference_bytes(config: Config) -> tuple[int, int]:
    """Bytes a parameter, in memory and in a checkpoint, of the second set of weights."""
    wide, narrow = number_bytes(config)
    if config.reference_weights == "ema":
        return wide + (narrow if narrow < wide else 0), wide
    return (narrow, narrow) if config.reference_weights == "frozen" else (0, 0)
