"""From a placement policy to the callback that an engine asks for positions."""

import torch
from transformers import PreTrainedTokenizerBase

from rntp import placement
from rntp.config import Config
from rntp.data.ordinals import progress
from rntp.placement import Place
from rntp.placement.labels import class_numbers, oracle_gains
from rntp.placement.records import Record
from rntp.placement.repeats import repeated
from rntp.placement.sentences import SentenceStarts
from rntp.rng import uniform
from rntp.types import Context, NextTokenStats, PlacementInputs


def placer(
    config: Config,
    policy: str,
    purpose: str,
    count: int | None = None,
    record: Record | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    repeats: int = 0,
) -> Place:
    """Positions of a context by `policy`: `count` of them, or as many as training takes.

    purpose names the stream of its noise. record: what the policy goes by, where it keeps one.
    tokenizer: of the model, for the policy that looks for sentences. repeats: how many of them are
    more thoughts at the others; see `rntp.placement.repeats`.
    """
    section = config.placement
    bands = placement.Bands(section.band.entropy, section.band.surprise)
    sentences = None
    if policy == "sentence_starts":
        assert tokenizer is not None
        sentences = SentenceStarts(tokenizer)

    def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        if context.task is not None:
            return (len(context) - config.reward.horizon,)
        index = torch.arange(len(context))
        noise = uniform(config.run.seed, purpose, context.ordinal, index)
        learned_L = record.of(context, next_token) if record else torch.zeros(len(context))
        places = placement.place(
            placement.REGISTRY[policy],
            PlacementInputs(
                next_token=next_token,
                noise_L=noise,
                learned_L=learned_L,
                count=(count or section.positions_per_doc) - repeats,
                ramp=progress(config, context.ordinal)
                if section.policy.get("ramp_steps")
                else None,
                random_share=float(section.policy.get("random_share")),
                starts_sentence_L=sentences.of(context.token_ids) if sentences else None,
                oracle_gain_L=oracle_gains(context.labels) if context.labels else None,
                class_L=class_numbers(context.labels) if context.labels else None,
            ),
            min_prefix=config.earliest_position,
            horizon=config.reward.horizon,
            bands=bands,
        )
        return repeated(places, learned_L[list(places)], repeats) if repeats else places

    return place


def training_placer(
    config: Config, record: Record | None, tokenizer: PreTrainedTokenizerBase
) -> Place:
    """Positions to train at, by `placement.policy`."""
    policy = config.placement.policy
    more = config.repeated_positions
    return placer(config, policy, "placement", record=record, tokenizer=tokenizer, repeats=more)
