"""Write the planted corpus of tools in the shard format of real text, and the pages to search in.

    python experiments/planted/make_tools.py --out build/tools

Folders `pages` and `cards`. The right calls and their worth go into the metadata of the pages,
which training never sees.
"""

import argparse
import hashlib
from pathlib import Path

import pages
import tool_pages
from scratchpads import THINK_CLOSE, THINK_OPEN
from tokenizer import UNKNOWN, make_tokenizer, vocabulary
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rntp.data import Manifest, ShardWriter
from rntp.model.tokenizer import encode, tokenizer_digest

SPEC = "build/tools-reader"
MARKERS = (
    tool_pages.TOOL_OPEN,
    tool_pages.TOOL_CLOSE,
    tool_pages.RESULT_OPEN,
    tool_pages.RESULT_CLOSE,
)
# Numbers of two digits are one token, so that a sum is.
TOKEN = Regex(r"\n| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]")


def tool_vocabulary() -> list[str]:
    """List the base's tokens under their old ids, and behind them what calls and results have."""
    new = ["search", "python", " +", "Sum", *pages.NAMES]
    new += map(str, range(tool_pages.TERMS * tool_pages.MOST + 1))
    new += (f" {number}" for number in range(tool_pages.LEAST, tool_pages.MOST + 1))
    old = vocabulary()
    return [*old, *MARKERS, *(token for token in new if token not in old)]


def make_tool_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer that gives a text of the base's the ids that the base knows."""
    ids = {token: i for i, token in enumerate(tool_vocabulary())}
    assert tool_vocabulary()[: len(make_tokenizer())] == vocabulary()
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(TOKEN, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in (THINK_OPEN, THINK_CLOSE, *MARKERS)
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN)


def write_pages(folder: Path, seed: int, num_pages: int) -> Manifest:
    """Write `num_pages` pages of the corpus `seed`. Raises DataError if the folder is in use."""
    with _writer(folder, f"{seed} {num_pages}") as writer:
        tokenizer = make_tool_tokenizer()
        for index in range(num_pages):
            page = tool_pages.make_tool_page(seed, index)
            ids = encode(tokenizer, page.text)
            assert len(ids) == len(page.tokens)
            metadata = {
                "url": f"https://planted.example/tools/{seed}/{index}",
                "title": page.text.partition("\n")[0],
                "source": f"experiments/planted, tools, seed {seed}",
                "labels": labels(page),
            }
            writer.add(f"tools-{seed}-{index:06d}", page.text, metadata, len(ids))
        return writer.finish({"pages made": num_pages, "kept": num_pages})


def write_cards(folder: Path, seed: int) -> Manifest:
    """Write the pages that the others ask for: to search in, never to train on."""
    with _writer(folder, f"cards {seed}") as writer:
        tokenizer, texts = make_tool_tokenizer(), tool_pages.cards(seed)
        for number, text in enumerate(texts):
            metadata = {
                "url": f"https://planted.example/cards/{seed}/{number}",
                "title": text.partition(" =")[0],
                "source": f"experiments/planted, cards, seed {seed}",
            }
            writer.add(f"card-{seed}-{number:06d}", text, metadata, len(encode(tokenizer, text)))
        return writer.finish({"pages made": len(texts), "kept": len(texts)})


def labels(page: tool_pages.ToolPage) -> dict[str, object]:
    """Make the metadata that `rntp.types.Labels` is read from."""
    known = sorted({*page.classes} - {" "})
    return {
        "classes": page.classes,
        "names": {label: tool_pages.CLASSES[label] for label in known},
        "oracle": {
            str(place.index): {"thought": "".join(place.call.thought), "gain": place.gain}
            for place in page.places
        },
    }


def _writer(folder: Path, what: str) -> ShardWriter:
    code = b"".join(Path(str(m.__file__)).read_bytes() for m in (pages, tool_pages))
    return ShardWriter(
        folder,
        shard_bytes=1 << 28,
        tokenizer_digest=tokenizer_digest(make_tool_tokenizer()),
        tokenizer_spec=SPEC,
        prep_digest=hashlib.sha256(code + what.encode()).hexdigest(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/tools"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pages", type=int, default=8000)
    arguments = parser.parse_args()
    made = write_pages(arguments.out / "pages", arguments.seed, arguments.pages)
    cards = write_cards(arguments.out / "cards", arguments.seed)
    print(
        f"{made.num_docs} pages, {made.num_tokens.sum():,} tokens, and {cards.num_docs} cards in "
        f"{arguments.out}"
    )


if __name__ == "__main__":
    main()
