"""Tasks with known answers out of planted pages: a page up to a question, and its answer.

    python experiments/rlvr/make_tasks.py --out build/rlvr/tasks.jsonl

The pages are of another seed than the corpus of experiments/planted, so that no arm has read them.
Each gives one task, its last question of 2, 3 or 4 look-ups; "Three after Wick is" → "Lorn".
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))

import pages

SEED = 77
HOPS = (2, 3, 4)


def task(index: int) -> dict[str, str] | None:
    """The task of a page; None where it asks nothing that takes two look-ups."""
    page = pages.make_page(SEED, index, hops=HOPS)
    if not page.questions:
        return None
    last = page.questions[-1]
    return {
        "prompt": "".join(page.tokens[: last.index]),
        "answer": page.tokens[last.index].strip(),
        "kind": f"{last.kind}, {last.hops} hops",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/rlvr/tasks.jsonl"))
    parser.add_argument("--pages", type=int, default=4000)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found = [made for index in range(arguments.pages) if (made := task(index))]
    arguments.out.write_text("".join(json.dumps(made) + "\n" for made in found), encoding="utf-8")
    print(f"{len(found)} tasks in {arguments.out}")


if __name__ == "__main__":
    main()
