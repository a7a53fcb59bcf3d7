"""Train the planted base to look facts up on pages of memories and to read a memory.

    python experiments/planted/read_memories.py --out build/memory-reader

The base looks up names and the first letters; here any letter stands for a digit. So it reads fresh
pages of memories, whole, and pieces of them behind a window: alone, and with a memory by a rule,
half of the time the best one. Some pages carry memories as thoughts, which are records of the page
taken at random, or nothing: so it can copy a record, and what is worth copying is left to RNTP. It
never sees a page twice, nor the seed of the corpus that RNTP trains on.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_memory import write_base
from memory_pages import CLASSES, HORIZON, MUSINGS, WINDOW, MemoryPage, make_memory_page
from pages import split
from pretrain import IGNORE, Steppers
from scratchpads import THINK_CLOSE, THINK_OPEN
from tokenizer import UNKNOWN
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rntp.runtime.memory import keep_freed_memory

SEED = 1000
PAGES = 16  # whole ones in one step
READ_PAGES = 48  # of which places are read behind the window, two a page
RIGHT, RECORDS, IDLE = 0.5, 0.3, 0.1  # shares of the memories that are read; the rest are empty
WORTH = 0.7  # of the memories that are read stand where one is worth something
WRITTEN = 0.5  # of the pages that carry memories as thoughts
SILENT = 0.3  # of these thoughts are empty
MORE = (0.6, 0.2, 0.2)  # the others copy one record, two or three
RATE = 0.5  # peak learning rates, as a share of the pretraining's
RECORD = re.compile(r"^(?:-|Next) (\w) = (\d)$", re.MULTILINE)


def records(page: MemoryPage, random: np.random.Generator) -> list[str]:
    """Copy one to three records of a page's start, each as likely, old ones among them."""
    found = RECORD.findall("".join(page.tokens[: page.classes.index("i")]))
    count = 1 + int(random.choice(len(MORE), p=MORE))
    chosen = random.permutation(len(found))[:count].tolist()
    return [t for n in chosen for t in (f" {found[n][0]}", f" {found[n][1]}")]


def memory(page: MemoryPage, index: int, random: np.random.Generator) -> list[str]:
    """Tokens of a memory for the place at a token: the best one, some records, an idle line, or
    nothing."""
    right = {place.index: place.memory for place in page.places}
    draw = random.random()
    if draw < RIGHT and index in right:
        return split(right[index])
    if draw < RIGHT + RECORDS:
        return records(page, random)
    if draw < RIGHT + RECORDS + IDLE:
        return split(f" {MUSINGS[int(random.integers(len(MUSINGS)))]}")[:7]
    return []


def whole(page: MemoryPage, random: np.random.Generator) -> list[str]:
    """A page's tokens, some pages with thoughts before their places."""
    carries = random.random() < WRITTEN
    tokens: list[str] = []
    for i, token in enumerate(page.tokens):
        if carries and page.classes[i] != " ":
            thought = [] if random.random() < SILENT else records(page, random)
            tokens += [THINK_OPEN, *thought, THINK_CLOSE]
        tokens.append(token)
    return tokens


def readings(page: MemoryPage, random: np.random.Generator) -> list[list[str]]:
    """Two places of a page behind the window: one alone, one with a memory, more often where one
    is worth something."""
    places = [i for i, label in enumerate(page.classes) if label != " "]
    worth = [place.index for place in page.places]
    first = int(random.choice(places))
    second = int(random.choice(worth if random.random() < WORTH else places))
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
    parser.add_argument("--steps", type=int, default=560)
    arguments = parser.parse_args()
    keep_freed_memory()
    write_base(arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    model = AutoModelForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    ids_of, steppers, begun, lines = tokenizer.get_vocab(), Steppers(model), time.perf_counter(), []
    for step in range(arguments.steps):
        random = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 2, 0, step]))
        pages = [make_memory_page(SEED, step * READ_PAGES + n) for n in range(READ_PAGES)]
        loss = gradient(model, ids_of, [whole(page, random) for page in pages[:PAGES]])
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
