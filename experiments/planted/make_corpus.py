"""Write the planted corpus in the shard format of real text.

    python experiments/planted/make_corpus.py --out build/planted

The classes, the oracle thoughts and what they are worth go into each document's metadata, which
training never sees. Held-out pages also ask one hop more than any page that is trained on.
"""

import argparse
import hashlib
from pathlib import Path

import pages
from tokenizer import make_tokenizer

from rntp.data import Manifest, ShardWriter
from rntp.model.tokenizer import encode, tokenizer_digest
from rntp.rng import fraction

HELDOUT_FRACTION = 0.1  # data.heldout_fraction of the configs here
TRAINED_HOPS = (2, 3, 4)
HELDOUT_HOPS = (2, 3, 4, 5)


def write_corpus(folder: Path, seed: int, num_pages: int) -> Manifest:
    """`num_pages` pages of the corpus `seed`. Raises DataError if the folder is in use."""
    tokenizer = make_tokenizer()
    code = b"".join(Path(module.__file__).read_bytes() for module in (pages,))
    with ShardWriter(
        folder,
        shard_bytes=1 << 28,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="experiments/planted/base",
        prep_digest=hashlib.sha256(code + f"{seed} {num_pages}".encode()).hexdigest(),
    ) as writer:
        for index in range(num_pages):
            name = f"planted-{seed}-{index:06d}"
            heldout = fraction(name, "heldout") < HELDOUT_FRACTION
            page = pages.make_page(seed, index, hops=HELDOUT_HOPS if heldout else TRAINED_HOPS)
            ids = encode(tokenizer, page.text)
            assert len(ids) == len(page.tokens)
            metadata = {
                "url": f"https://planted.example/{seed}/{index}",
                "title": page.title,
                "source": f"experiments/planted, seed {seed}",
                "labels": labels(page),
            }
            writer.add(name, page.text, metadata, len(ids))
        return writer.finish({"pages made": num_pages, "kept": num_pages})


def labels(page: pages.Page) -> dict[str, object]:
    """The metadata that `rntp.types.Labels` is read from."""
    classes = list(page.labels)
    for hops, word in pages.STEPS.items():
        if hops in (1, *TRAINED_HOPS):
            continue
        # "Five after Arlen is": training never reads that, so it is of no class. Nor is the answer
        # where the page has asked the same before; otherwise it has its own.
        for first in (i for i, token in enumerate(page.tokens) if token == word):
            answer = first + 4
            asked = " " if classes[answer] != str(hops) else classes[answer]
            classes[first : answer + 1] = [" "] * 4 + [asked]
    return {
        "classes": "".join(classes),
        "names": {label: pages.CLASSES[label] for label in sorted({*classes} - {" "})},
        "oracle": {
            str(q.index): {"thought": "".join(q.thought), "gain": q.nats_without}
            for q in page.questions
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/planted"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pages", type=int, default=8000)
    arguments = parser.parse_args()
    manifest = write_corpus(arguments.out, arguments.seed, arguments.pages)
    print(
        f"{manifest.num_docs} pages, {manifest.num_tokens.sum():,} tokens in {arguments.out}, "
        f"digest {manifest.digest[:12]}"
    )


if __name__ == "__main__":
    main()
