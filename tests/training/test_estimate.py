"""Sizes of a step that writes answers and asks a judge, worked out by hand."""

from dataclasses import replace

import pytest
import torch
from test_config import minimal

from rntp.config import Config
from rntp.training import estimate
from rntp.training.estimate import (
    BETWEEN,
    QUESTION,
    Shape,
    Tokens,
    checkpoint_bytes,
    decoding_bytes,
    peak_memory,
    step_flop,
)

SHAPE = Shape(parameters=1300, trunk=1000, hidden=10, intermediate=20, layers=2, vocabulary=30)


def tokens_of(*overrides: str) -> Tokens:
    """2 documents of 128 tokens, 4 positions, 4 thoughts of 8 tokens, horizon 4."""
    return Tokens.of(Config.parse(minimal(), overrides))


def work_of(**more: int) -> Tokens:
    """A step with a tree of 100 tokens, all of which learn, and `more`."""
    zeros = dict.fromkeys(("unshared", "read", "sampled", "head_rows", "learning_rows"), 0)
    return Tokens(**{**zeros, "tree": 100, "learning": 100, **more})


def test_tokens_of_answers() -> None:
    plain, answering = tokens_of(), tokens_of("thought.answer_tokens=6")
    thoughts = 2 * 4 * 4
    # The last token of a continuation, and of an answer, predicts nothing.
    assert plain.tree == plain.learning == 2 * 128 + thoughts * (8 + 2 + 3)
    assert answering.tree == plain.tree + thoughts * 5
    assert answering.sampled == plain.sampled + thoughts * 6 == thoughts * (8 + 6)
    assert answering.head_rows == plain.head_rows + thoughts * 6
    # Two sequences a thought: one with the continuation, one with the answer.
    prefix = (32 + 128 - 4) / 2
    assert plain.unshared == thoughts * (prefix + 10 + 3)
    assert answering.unshared == thoughts * (2 * (prefix + 10) + 3 + 5)
    assert plain.asked == answering.asked == 0


def test_tokens_of_a_reading_window() -> None:
    plain, window = tokens_of(), tokens_of("reading.window=5")
    thoughts, places = 2 * 4 * 4, 2 * 4
    bare = 1 + 5 + 3  # start token, window, continuation
    reading = 8 + 2 + bare
    assert window.bare == places * bare
    assert window.tree == 2 * 128 + thoughts * (8 + reading) + places * bare
    assert window.learning == window.tree
    assert window.head_rows == plain.head_rows + places * 4
    assert window.learning_rows == plain.learning_rows + places * 4
    assert window.read == plain.read
    assert window.sampled == plain.sampled
    prefix = (32 + 128 - 4) / 2
    assert window.unshared == thoughts * (prefix + 8 + reading)
    learning = 2 * 128 + thoughts * (prefix + 8 + reading) + places * bare
    assert window.plain_learning == learning
    assert window.plain == window.plain_learning
    silent = tokens_of("reading.window=5", "objective.continuation_weight=0")
    assert silent.tree == window.tree
    assert silent.learning == 2 * 128 + thoughts * 8
    assert silent.plain_learning == 2 * 128 + thoughts * (prefix + 8)
    assert silent.plain == window.plain + 2 * 128  # the page's last part, a second time
    # Other weights read the windows, not the pages.
    frozen = Config.parse(minimal(), ["reading.window=5", "baseline.weights=frozen"])
    current = Config.parse(minimal(), ["reading.window=5"])
    work = work_of(read=50, sampled=10, bare=7)
    assert step_flop(frozen, SHAPE, work) - step_flop(current, SHAPE, work) == 2 * 1000 * 7


def test_tokens_of_judges() -> None:
    answers = "thought.answer_tokens=6"
    one = tokens_of(answers, "reward.scheme=judge_gold", "reward.shadows=[judge_gold, random]")
    both = tokens_of(answers, "reward.scheme=random", "reward.shadows=[judge_gold, self_judge]")
    branch = QUESTION + 6 + 4
    assert one.asked == 2 * (128 + 16 * branch)
    assert both.asked == 2 * (128 + 2 * 16 * branch)
    config = Config.parse(minimal(), [answers])
    work = step_flop(config, SHAPE, work_of(asked=7)) - step_flop(config, SHAPE, work_of())
    assert work == 2 * 1000 * 7  # one forward of the trunk, and of the head next to nothing


def test_what_does_not_learn_costs_no_backward() -> None:
    silent = "objective.continuation_weight=0"
    plain, without = tokens_of(), tokens_of(silent, "objective.ntp_weight=0")
    thoughts = 2 * 4 * 4
    assert without.tree == plain.tree
    assert without.learning == 2 * 128 + thoughts * 8  # `<think>` and all sampled but the last
    assert without.learning_rows == thoughts * 8
    answering = tokens_of(silent, "thought.answer_tokens=6")
    assert answering.learning == 2 * 128 + thoughts * (8 + 2 + 5)
    assert answering.learning_rows == thoughts * (8 + 6) + 2 * 128  # and the pages' own loss

    config = Config.parse(minimal())
    assert config.objective.ntp_weight > 0
    row = 2 * 10 * 30
    all_learn = work_of(head_rows=9, learning_rows=9)
    assert step_flop(config, SHAPE, all_learn) == 6 * 1000 * 100 + 4 * row * 9
    some = replace(all_learn, learning=60, learning_rows=5)
    assert step_flop(config, SHAPE, some) == (2 * 100 + 4 * 60) * 1000 + row * (9 + 3 * 5)
    # Judged ahead: one forward of all, and another of what learns.
    ahead = Config.parse(minimal(), ["objective.advantage=step"])
    more = step_flop(ahead, SHAPE, some) - step_flop(config, SHAPE, some)
    assert more == 2 * 1000 * 60 + row * 5
    # So does every epoch but the first, with a backward.
    twice = ["objective.epochs_per_rollout=2", "objective.algorithm=cispo"]
    epochs = Config.parse(minimal(), twice)
    more = step_flop(epochs, SHAPE, some) - step_flop(config, SHAPE, some)
    assert more == 6 * 1000 * 60 + 4 * row * 5


def test_a_frozen_judge_keeps_a_copy_and_reads_no_context_again() -> None:
    asked = ["thought.answer_tokens=6", "reward.scheme=judge_gold"]
    own, frozen, baseline = (
        Config.parse(minimal(), [*asked, *more])
        for more in ([], ["reward.judges.itself=frozen"], ["baseline.weights=frozen"])
    )
    tokens = work_of(read=50, sampled=10, asked=7)
    work = [step_flop(c, SHAPE, tokens) for c in (own, frozen, baseline)]
    assert work[0] == work[1]
    assert work[2] == work[0] + 2 * 1000 * 50
    weights = [checkpoint_bytes(c, 1300) for c in (own, frozen, baseline)]
    assert weights[1] == weights[2] > weights[0]


def test_a_gpu_keeps_larger_chunks_and_the_samplers_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = ["data.docs_per_step=5", "rollout.docs_per_batch=3", "thought.thought_tokens=2000"]
    config = Config.parse(minimal(), [*sizes, "model.dtype=bfloat16"])
    shape = replace(SHAPE, kv_width=6)
    cpu = peak_memory(config, shape)
    assert decoding_bytes(config, shape) == 0
    monkeypatch.setattr(estimate, "pick_device", lambda name: torch.device("cuda"))
    branches = config.placement.positions_per_doc * config.thought.thoughts_per_position
    # Keys and values of two bytes, logits of four.
    a_page = 2 * 2 * 6 * (128 + branches * 2000) * 2 + 2 * branches * 30 * 4
    kept = decoding_bytes(config, shape)
    assert kept == (3 + 2) * a_page  # three pages at once, then two
    # Chunks of 4,096 rows instead of 2,048, two of them, of 30 logits, and no packed weights, nor
    # the head's in float32; the asynchronous saver's buffers are the same on both.
    packed = 2 * 1300 + 2 * 30 * 10
    assert peak_memory(config, shape) == cpu + kept + 2 * 2048 * 30 * 4 - packed


def test_layers_that_compute_again_keep_their_inputs_and_one_layers_rest() -> None:
    config = Config.parse(minimal())
    tokens = Tokens.of(config).tree
    # Bytes a token: bfloat16, norms in float32, and gaps between blocks.
    layer = BETWEEN * ((8 * 10 + 4 * 20) * 2 + 13 * 10 * 4)
    all_of_it, again = (peak_memory(config, SHAPE, recompute=on) for on in (False, True))
    assert all_of_it - again == pytest.approx(tokens * (2 * layer - (2 * 10 * 2 + layer)))
