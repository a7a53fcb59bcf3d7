"""Where the stages run, at which sizes, and the models they use: random weights, no download."""

from dataclasses import dataclass

import torch
from rntp_kernels import TreeLayout
from rntp_kernels.tree_attention.chains import chains
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from rntp.bench.sizes import Sizes
from rntp.model import LanguageModel, adopt_model

# hidden width, vocabulary
HEADS = {
    "SmolLM2-135M": (576, 49_152),
    "Qwen3-0.6B": (1024, 151_936),
    "Llama-3-8B": (4096, 128_256),
}
# query heads, key heads, size of a head
ATTENTIONS = {"SmolLM2-135M": (9, 3, 64), "Qwen3-0.6B": (16, 8, 128)}


@dataclass(frozen=True)
class Setting:
    """device: cuda or cpu. tiny: sizes at which the script itself is tried."""

    device: str
    tiny: bool

    @property
    def types(self) -> tuple[torch.dtype, ...]:
        """Types that kernels are checked in."""
        return (torch.float32,) if self.tiny else (torch.bfloat16, torch.float32)

    @property
    def heads(self) -> dict[str, tuple[int, int]]:
        return {"tiny": (32, 300)} if self.tiny else HEADS

    @property
    def attentions(self) -> dict[str, tuple[int, int, int]]:
        return {"tiny": (4, 2, 16)} if self.tiny else ATTENTIONS

    @property
    def step(self) -> Sizes:
        """Sizes of the step that is timed against the usual loop."""
        if self.tiny:
            return self.small
        return Sizes(context=1024, positions=8, thoughts=8, budget=64, horizon=16, docs=1)

    @property
    def small(self) -> Sizes:
        """Sizes of steps that are compared number by number."""
        if self.tiny:
            return Sizes(context=40, positions=2, thoughts=2, budget=4, horizon=3, docs=1)
        return Sizes(context=200, positions=3, thoughts=4, budget=20, horizon=8, docs=2)

    @property
    def comb(self) -> Sizes:
        """Sizes of the page that attention and trunk are timed on."""
        if self.tiny:
            return self.small
        return Sizes(context=2048, positions=16, thoughts=8, budget=128, horizon=32, docs=1)

    def small_model(self) -> LanguageModel:
        """Make two layers in float32, with predictions that are far from uniform."""
        return self._model(
            vocab_size=1_000,
            hidden_size=64 if self.tiny else 256,
            intermediate_size=128 if self.tiny else 512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16 if self.tiny else 64,
            initializer_range=0.2 if self.tiny else 0.1,
        )

    def model(self) -> LanguageModel:
        """Make a model of Qwen3-0.6B's shape in float32."""
        if self.tiny:
            return self.small_model()
        return self._model(
            vocab_size=151_936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            initializer_range=0.02,
        )

    def _model(self, **sizes: int | float) -> LanguageModel:
        config = Qwen3Config(
            tie_word_embeddings=True,
            max_position_embeddings=8192,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=None,
            **sizes,
        )
        with torch.random.fork_rng(devices=[0] if self.device == "cuda" else []):
            torch.manual_seed(0)
            with torch.device(self.device):
                hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tokenizer = _tokenizer(config.vocab_size)
        return adopt_model(hf, tokenizer, "random weights of Qwen3's architecture")


def comb(sizes: Sizes) -> TreeLayout:
    """Make the token tree of a page: at every position thoughts with their markers, and behind
    each a continuation."""
    lengths, parents, attach = [sizes.context], [-1], [0]
    for k in range(sizes.positions):
        position = (2 * k + 1) * (sizes.context - sizes.horizon) // (2 * sizes.positions)
        for _ in range(sizes.thoughts):
            lengths += [sizes.budget + 2, sizes.horizon]
            parents += [0, len(parents)]
            attach += [position, sizes.budget + 2]
    return TreeLayout(tuple(lengths), tuple(parents), tuple(attach))


def visible_pairs(layout: TreeLayout) -> int:
    """Count the pairs of a query and a key that it sees, of one head."""
    total = 0
    for chain in chains(layout):
        rows = chain.stop - chain.start
        total += rows * (rows + 1) // 2 + rows * sum(b - a for a, b in chain.seen)
    return total


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Knows an end token and words of no meaning, so many that the two markers fill the vocabulary;
    the pages are random ids."""
    words = ["<end>", "?", ".", *(f"word{i}" for i in range(vocabulary - 5))]
    known = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
