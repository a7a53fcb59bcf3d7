"""Write the planted corpus of memories in the shard format of real text.

    python experiments/planted/make_memory.py --out build/memory

What a best memory is worth goes into each document's metadata, which training never sees.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import memory_pages
import pages
from tokenizer import UNKNOWN, make_tokenizer

from rntp.data import Manifest, ShardWriter
from rntp.model.tokenizer import encode, tokenizer_digest

BASE = Path(__file__).parent / "base"


def write_corpus(folder: Path, seed: int, num_pages: int) -> Manifest:
    """Write `num_pages` pages of the corpus `seed`. Raises DataError if the folder is in use."""
    tokenizer = make_tokenizer()
    sources = (Path(module.__file__) for module in (pages, memory_pages))
    code = b"".join(source.read_bytes() for source in sources)
    with ShardWriter(
        folder,
        shard_bytes=1 << 28,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="experiments/planted/base",
        prep_digest=hashlib.sha256(code + f"{seed} {num_pages}".encode()).hexdigest(),
    ) as writer:
        for index in range(num_pages):
            page = memory_pages.make_memory_page(seed, index)
            ids = encode(tokenizer, page.text)
            assert len(ids) == len(page.tokens)
            metadata = {
                "url": f"https://planted.example/memory/{seed}/{index}",
                "title": page.text.partition("\n")[0],
                "source": f"experiments/planted, memories, seed {seed}",
                "labels": labels(page),
            }
            writer.add(f"memory-{seed}-{index:06d}", page.text, metadata, len(ids))
        return writer.finish({"pages made": num_pages, "kept": num_pages})


def labels(page: memory_pages.MemoryPage) -> dict[str, object]:
    """Make the metadata that `rntp.types.Labels` is read from."""
    known = sorted({*page.classes} - {" "})
    return {
        "classes": page.classes,
        "names": {label: memory_pages.CLASSES[label] for label in known},
        "oracle": {
            str(place.index): {"thought": place.memory, "gain": place.gain} for place in page.places
        },
    }


def write_base(folder: Path) -> None:
    """Copy the planted base, with a BOS token that readings begin with: of its own it has none."""
    shutil.copytree(BASE, folder, dirs_exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.bos_token = UNKNOWN  # no page has it
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/memory"))
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
