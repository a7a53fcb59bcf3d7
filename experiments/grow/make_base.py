"""Write the corpus that the run of this experiment starts with: planted pages with many questions.

    python experiments/grow/make_base.py --out build/grow/base

As `experiments/planted/make_corpus.py`, of `web.thinkable`: classes and oracle gains are in the
metadata, which training never sees.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))

import web
from make_corpus import labels
from rntp_data_prep.texts import text_id
from tokenizer import make_tokenizer

from rntp.data import Manifest, ShardWriter
from rntp.model.tokenizer import encode, tokenizer_digest


def write_base(folder: Path, num_pages: int, region: str = "base") -> Manifest:
    """`num_pages` pages. Raises DataError if the folder is in use."""
    tokenizer = make_tokenizer()
    with ShardWriter(
        folder,
        shard_bytes=1 << 28,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="experiments/planted/base",
        prep_digest=f"{region}-{num_pages}",
    ) as writer:
        for index in range(num_pages):
            page = web.thinkable(index, region)
            text = page.text.strip("\n")  # as a preparation has it, so that copies are found
            known, ids = labels(page), encode(tokenizer, text)
            known["classes"] = str(known["classes"])[: len(ids)]
            facts = {"url": f"https://planted.example/{region}/{index}", "title": page.title}
            facts |= {"source": "experiments/grow", "labels": known}
            writer.add(text_id(text), text, facts, len(ids))
        return writer.finish({"kept": num_pages})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/grow/base"))
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--region", choices=["base", "held"], default="base")
    arguments = parser.parse_args()
    manifest = write_base(arguments.out, arguments.pages, arguments.region)
    print(f"{manifest.num_docs} pages, {manifest.num_tokens.sum():,} tokens in {arguments.out}")


if __name__ == "__main__":
    main()
