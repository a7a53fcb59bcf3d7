"""Runs of made-up models and pages, of known sizes: what costs are fitted to, and checked on."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rntp.data import ShardWriter
from rntp.model.tokenizer import tokenizer_digest

PAGES = 64
_END, _UNKNOWN = "<end>", "?"


@dataclass(frozen=True)
class Case:
    """Sizes of a run. hidden, layers, vocabulary: of its model. context … docs: of a step, in the
    symbols L, K, G, T, H. microbatch: tokens of one forward. ranks: processes."""

    hidden: int = 128
    layers: int = 4
    vocabulary: int = 2048
    context: int = 128
    positions: int = 2
    thoughts: int = 4
    budget: int = 16
    horizon: int = 8
    docs: int = 2
    microbatch: int = 4096
    ranks: int = 1
    steps: int = 9

    @property
    def name(self) -> str:
        """Its sizes, as a name of files."""
        return "-".join(f"{key[0]}{value}" for key, value in asdict(self).items())

    def run(self, folder: Path, dtype: str, device: str) -> dict[str, Any]:
        """Make the raw config of the run, in a folder that has `model` and `corpus`."""
        return {
            "run": {"name": self.name, "steps": self.steps, "dir": str(folder / "run")},
            "model": {"spec": str(folder / "model"), "dtype": dtype, "device": device},
            "data": {
                "source": str(folder / "corpus"),
                "context_tokens": self.context,
                "docs_per_step": self.docs,
            },
            "placement": {"positions_per_doc": self.positions, "min_prefix_tokens": 8},
            "thought": {"thoughts_per_position": self.thoughts, "thought_tokens": self.budget},
            "reward": {"horizon": self.horizon},
            "parallel": {"tokens_per_microbatch": self.microbatch},
            "checkpoint": {"every_steps": 1_000_000},
            "evaluation": {"docs": 0},
        }

    def model(self) -> LlamaConfig:
        """Make the config of its model."""
        heads = max(2, self.hidden // 64)
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=1 if heads % 2 else heads // 2,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )

    def prepare(self, folder: Path) -> None:
        """Write its model, with random weights, and its corpus of words drawn evenly."""
        words = [f"w{n}" for n in range(self.vocabulary - 4)]
        known = {word: n for n, word in enumerate([_END, _UNKNOWN, *words])}
        inner = Tokenizer(WordLevel(known, unk_token=_UNKNOWN))
        inner.pre_tokenizer = WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=_END)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(self.model()).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        draw = random.Random(0)
        with ShardWriter(
            folder / "corpus",
            shard_bytes=1 << 24,
            tokenizer_digest=tokenizer_digest(tokenizer),
            tokenizer_spec=str(folder / "model"),
            prep_digest="0" * 64,
        ) as shards:
            for n in range(PAGES):
                text = " ".join(draw.choices(words, k=self.context + self.horizon))
                facts = {"url": f"https://example.org/{n}", "title": "", "source": "made up"}
                shards.add(f"page-{n}", text, facts, self.context + self.horizon)
            shards.finish({"pages": PAGES, "kept": PAGES})

    def as_dict(self) -> dict[str, int]:
        """Return the sizes by name, for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "Case":
        """Read what `as_dict` gave."""
        return cls(**sizes)


def calibration_cases(device: str, ranks: int = 1) -> list[Case]:
    """List the runs that costs are fitted to: each size is large in some and small in others.

    On CUDA they are as much larger as the device is faster. ranks: above 1 some of them run on so
    many, too.
    """
    small = (
        Case(),
        Case(hidden=64, layers=2, vocabulary=512, positions=1, thoughts=2, budget=8, docs=1),
        Case(hidden=256, layers=4, vocabulary=4096),
        Case(hidden=256, layers=8, positions=4, thoughts=8, docs=1),
        Case(hidden=128, layers=8, budget=32, context=256),
        Case(hidden=384, layers=4, vocabulary=8192, docs=1),
        Case(context=512, docs=1, positions=4, horizon=16),
        Case(docs=8, thoughts=8, microbatch=512),
        Case(hidden=192, layers=2, vocabulary=16384, horizon=16, budget=4),
        Case(hidden=512, layers=6, vocabulary=2048, thoughts=2, budget=8),
    )
    spread = tuple(
        Case(**{**case.as_dict(), "docs": max(case.docs, ranks), "ranks": ranks})
        for case in (small[0], small[2], small[7], small[9])
        if ranks > 1
    )
    if device != "cuda":
        return [*small, *spread]
    return [
        Case(
            **{
                **case.as_dict(),
                "hidden": 8 * case.hidden,
                "layers": 2 * case.layers,
                "vocabulary": 4 * case.vocabulary,
                "context": 4 * case.context,
                "microbatch": 8 * case.microbatch,
            }
        )
        for case in (*small, *spread)
    ]
