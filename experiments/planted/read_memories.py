"""Train the planted base to look facts up on pages of memories and to read a memory.

    python experiments/planted/read_memories.py --out build/memory-reader

The base looks up names and the first letters; here any letter stands for a digit. So it reads fresh
pages of memories, whole, and pieces of others behind a window: half of them alone, half with a
memory, of which few are right and most wrong (another letter's fact, an idle line, nothing). Some
pages carry such memories as thoughts, so that it can write one, and seldom the right one. It never
sees a page twice, nor the seed of the corpus that RNTP trains on.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_memory import write_base
from memory_pages import CLASSES, HORIZON, MUSINGS, WINDOW, MemoryPage, make_memory_page
from pages import LETTERS, split
from pretrain import IGNORE, Steppers
from scratchpads import THINK_CLOSE, THINK_OPEN
from tokenizer import UNKNOWN
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rntp.runtime.memory import keep_freed_memory

SEED = 1000
PAGES = 24  # in one step; and from each other one two readings
RIGHT, OTHER, IDLE = 0.2, 0.4, 0.2  # shares of memories; the rest are empty
WRITTEN = 0.3  # of the pages that carry memories as thoughts
RATE = 0.5  # peak learning rates, as a share of the pretraining's


def memory(page: MemoryPage, index: int, random: np.random.Generator) -> list[str]:
    """Tokens of a memory for the place at a token: right, another fact, an idle line, or none."""
    right = {place.index: place.memory for place in page.places}
    draw = random.random()
    if draw < RIGHT and index in right:
        return split(right[index])
    if draw < RIGHT + OTHER:
        count = int(random.integers(1, 4))
        letters = random.permutation(LETTERS)[:count].tolist()
        return [t for x in letters for t in (f" {x}", f" {int(random.integers(10))}")]
    if draw < RIGHT + OTHER + IDLE:
        return split(f" {MUSINGS[int(random.integers(len(MUSINGS)))]}")[:7]
    return []


def whole(page: MemoryPage, random: np.random.Generator) -> list[str]:
    """A page's tokens, some pages with thoughts before their places."""
    carries = random.random() < WRITTEN
    tokens: list[str] = []
    for i, token in enumerate(page.tokens):
        if carries and page.classes[i] != " ":
            tokens += [THINK_OPEN, *memory(page, i, random), THINK_CLOSE]
        tokens.append(token)
    return tokens


def readings(page: MemoryPage, random: np.random.Generator) -> list[list[str]]:
    """Two places of a page behind the window: one alone, one with a memory."""
    places = [i for i, label in enumerate(page.classes) if label != " "]
    first, second = random.choice(places, size=2).tolist()
    found = []
    for i, thought in (
        (first, []),
        (second, [THINK_OPEN, *memory(page, second, random), THINK_CLOSE]),
    ):
        found.append([UNKNOWN, *thought, *page.tokens[i - WINDOW : i + HORIZON]])
    return found


def gradient(model: torch.nn.Module, ids_of: dict[str, int], rows: list[list[str]]) -> float:
    """Add the gradient of the mean loss over the rows' tokens; the loss in nats."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets = torch.full_like(ids, IGNORE)
    for row, own, target in zip(rows, ids, targets, strict=True):
        own[: len(row)] = torch.tensor([ids_of[t] for t in row])
        target[: len(row) - 1] = own[1 : len(row)]
    targets[targets == ids_of[THINK_OPEN]] = IGNORE  # nobody thinks unasked
    logits = model(ids).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    loss.backward()
    return loss.item()


@torch.no_grad()
def losses(model: torch.nn.Module, ids_of: dict[str, int], pages: int = 24) -> dict[str, float]:
    """Nats of the continuation by class, whole page, window alone, and with the best memory."""
    found: dict[str, list[float]] = {}

    def nats(tokens: list[str]) -> float:
        ids: Tensor = torch.tensor([[ids_of[t] for t in tokens]])
        logp = model(ids).logits[0, :-1].float().log_softmax(-1)
        return -float(logp.gather(1, ids[0, 1:, None])[-HORIZON:].sum())

    for index in range(pages):
        page = make_memory_page(SEED + 1, index)
        best = {place.index: place.memory for place in page.places}
        for i, label in enumerate(page.classes):
            if label in " i":
                continue
            name, behind = CLASSES[label], [*page.tokens[i - WINDOW : i + HORIZON]]
            thought = [THINK_OPEN, *split(best.get(i, "")), THINK_CLOSE]
            for kind, tokens in (
                ("whole", [*page.tokens[: i + HORIZON]]),
                ("window", [UNKNOWN, *behind]),
                ("best", [UNKNOWN, *thought, *behind]),
            ):
                found.setdefault(f"{name}, {kind}", []).append(nats(tokens))
    return {name: round(sum(values) / len(values), 3) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    keep_freed_memory()
    write_base(arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    model = AutoModelForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    ids_of, steppers, begun, lines = tokenizer.get_vocab(), Steppers(model), time.perf_counter(), []
    for step in range(arguments.steps):
        random = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 2, 0, step]))
        pages = [make_memory_page(SEED, step * PAGES + n) for n in range(PAGES)]
        loss = gradient(model, ids_of, [whole(page, random) for page in pages])
        read = gradient(model, ids_of, [row for page in pages for row in readings(page, random)])
        left = (arguments.steps - step) / (0.4 * arguments.steps)
        steppers.step(RATE * min(1.0, (step + 1) / 20, max(0.02, left)))
        if (step + 1) % 25 == 0 or step + 1 == arguments.steps:
            seconds = time.perf_counter() - begun
            lines.append({"step": step + 1, "loss": loss, "read": read, "seconds": seconds})
            lines[-1] |= losses(model, ids_of)
            print(json.dumps(lines[-1]), flush=True)
            model.save_pretrained(arguments.out)
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (arguments.out / "read_memories.jsonl").write_text(log, encoding="utf-8")


if __name__ == "__main__":
    main()
