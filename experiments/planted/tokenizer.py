"""The planted corpus' tokenizer: one id for every word of the generator, with its space."""

from itertools import chain

import pages
from scratchpads import THINK_CLOSE, THINK_OPEN
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

UNKNOWN = "[UNK]"
# What a page puts literally, line by line; the lists it draws from are added below.
FIXED = (
    "\n",
    "Home | News | Contact",
    "Desks:",
    "- > =",
    "Reference",
    "The opens at",
    "Next after is",
    "Value of",
    "Trail:",
)


def vocabulary() -> list[str]:
    """All tokens that a page or a scratchpad can hold, sorted, after the special ones."""
    lines = chain(pages.INTROS, pages.LEGENDS, pages.PLACES, pages.STEPS.values())
    spaced = chain(
        pages.NAMES,
        pages.LETTERS,
        pages.KINDS,
        pages.COLOURS,
        pages.THINGS,
        pages.MUSINGS,
        map(str, range(10)),
    )
    words = {"."}
    for line in chain(FIXED, lines):
        words.update(pages.split(line))
    for line in spaced:
        words.update(pages.split(f" {line}"))
    return [UNKNOWN, THINK_OPEN, THINK_CLOSE, *sorted(words)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, lossless on the corpus: its tokens are those of `pages.split`."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pages.TOKEN.pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (THINK_OPEN, THINK_CLOSE)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN)
