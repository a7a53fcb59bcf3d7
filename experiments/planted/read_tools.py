"""Train the planted base to read results of tools, and the format of a call.

    python experiments/planted/read_tools.py --out build/tools-reader

Of the pages, one thought on each, some teach reading: most of their calls are the right ones, and
nothing of the thought is a target. Others teach writing, the tokens of the call and never those of
the result, as rules would propose calls (Toolformer's way, 2302.04761, without its filter): sums
mostly where the page has just shown one, a search elsewhere, with one of two pairs of names and
mostly the latest letter, and nothing at half of the easy tokens. So where a call pays, and whose
value to ask for, is left to RNTP. It never sees a page twice, nor the seed of the corpus that RNTP
trains on, and every page has values of its own.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_tools import MARKERS, make_tool_tokenizer
from pages import LETTERS
from pretrain import Steppers
from scratchpads import THINK_CLOSE, THINK_OPEN
from tool_pages import (
    CLASSES,
    HORIZON,
    RESULT_CLOSE,
    RESULT_OPEN,
    TOOL_OPEN,
    Call,
    ToolPage,
    add,
    make_tool_page,
    numbers,
    search,
)
from transformers import Qwen3ForCausalLM

from rntp.runtime.memory import keep_freed_memory

BASE = Path(__file__).parent / "base"
SEED = 1000
PAGES = 48  # in one step
PLAIN, READ = 0.1, 0.4  # shares of pages without a thought and of those that teach reading
NEEDED = 0.75  # of the thoughts that are read stand where a call is worth something
RIGHT, SILENT = 0.55, 0.2  # of these: the right call, and none
# Written as rules propose them: sums mostly where a sum is asked for, and nothing at half of the
# easy tokens.
WRITTEN_SILENT = {"e": 0.5, "s": 0.3, "c": 0.3, "i": 0.3}
SEARCHES = {"e": 0.7, "s": 0.7, "c": 0.3, "i": 0.7}  # of the calls; the others add
OWN = 0.65  # of the calls name the page's own desks
CURRENT, CURRENT_TERMS = 0.85, 0.95  # of letters and terms are those of the latest question
RATE = 0.5  # peak learning rates, as a share of the pretraining's
CHECK = 50  # steps

BEHIND = 12.0  # weight of the token behind a thought, which is one in a hundred
WRITTEN = 4.0  # of a token that is written in a call: copying terms is learnt last

Row = tuple[list[str], list[float]]
"""Tokens, and the weight of each as a target."""


def any_call(page: ToolPage, place: int, random: np.random.Generator) -> Call:
    """A call as one writes it who does not know what is worth something."""
    current = random.random()
    if random.random() < SEARCHES[page.classes[place]]:
        names = page.pairs[int(random.random() >= OWN)]
        asked = sum(label == "s" for label in page.classes[: place + 1])
        letter = page.letters[max(asked - 1, 0)]
        other = LETTERS[int(random.integers(len(LETTERS)))]
        return search(page.seed, names, letter if current < CURRENT else other)
    asked = sum(label == "c" for label in page.classes[: place + 1])
    terms = page.terms[max(asked - 1, 0)]
    return add(terms if current < CURRENT_TERMS else numbers(random))


def read_thought(page: ToolPage, place: int, random: np.random.Generator) -> list[str]:
    """Tokens between the markers of a thought that is read."""
    right = {p.index: p.call for p in page.places}.get(place)
    draw = random.random()
    if right and draw < RIGHT:
        return right.thought
    if draw < RIGHT + SILENT:
        return []
    return any_call(page, place, random).thought


def row(page: ToolPage, random: np.random.Generator) -> Row:
    """A page with a thought, or none, at one of its places."""
    draw = random.random()
    # What pages say are sums are any numbers, but behind a call: else a reader of two layers learns
    # in part to add, and calls are worth less.
    tokens = [
        add(numbers(random)).result[0] if label == "c" else token
        for token, label in zip(page.tokens, page.classes, strict=True)
    ]
    if draw < PLAIN:
        return tokens, [1.0] * len(tokens)
    reads = draw < PLAIN + READ
    places = [i for i, label in enumerate(page.classes) if label != " "]
    if reads:
        needed = [p.index for p in page.places]
        some = needed if random.random() < NEEDED else places
        place = some[int(random.integers(len(some)))]
        thought = read_thought(page, place, random)
    else:
        kinds = sorted({*page.classes} - {" "})  # each as often
        kind = kinds[int(random.integers(len(kinds)))]
        of_kind = [i for i in places if page.classes[i] == kind]
        place = of_kind[int(random.integers(len(of_kind)))]
        silent = random.random() < WRITTEN_SILENT[kind]
        thought = [] if silent else any_call(page, place, random).thought
    if thought:
        tokens[place] = page.tokens[place]
    branch = [THINK_OPEN, *thought, THINK_CLOSE]
    # Nobody thinks unasked, and nobody writes a result.
    given = given_tokens(branch)
    learnt = 0.0 if reads else WRITTEN
    weights = [learnt if n > 0 and not given[n] else 0.0 for n in range(len(branch))]
    return (
        [*tokens[:place], *branch, *tokens[place : place + HORIZON]],
        [*[1.0] * place, *weights, BEHIND, *[1.0] * (HORIZON - 1)],
    )


def given_tokens(branch: list[str]) -> list[bool]:
    """Which tokens of a thought a tool gives: results with both of their markers."""
    given, inside = [], False
    for token in branch:
        inside = inside or token == RESULT_OPEN
        given.append(inside)
        inside = inside and token != RESULT_CLOSE
    return given


def gradient(model: Qwen3ForCausalLM, ids_of: dict[str, int], rows: list[Row]) -> float:
    """Add the gradient of the rows' weighted mean loss; the loss in nats."""
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    weight = torch.zeros(len(rows), longest)
    for (tokens, wanted), own, its in zip(rows, ids, weight, strict=True):
        own[: len(tokens)] = torch.tensor([ids_of[t] for t in tokens])
        its[: len(tokens)] = torch.tensor(wanted)
    hidden = model.model(ids).last_hidden_state[:, :-1]
    some = weight[:, 1:] > 0  # the head costs as much as the trunk
    logits = model.lm_head(hidden[some])
    loss = F.cross_entropy(logits, ids[:, 1:][some], reduction="none")
    loss = (loss * weight[:, 1:][some]).sum() / weight[:, 1:].sum()
    loss.backward()
    return loss.item()


@torch.no_grad()
def losses(model: torch.nn.Module, ids_of: dict[str, int], pages: int = 8) -> dict[str, float]:
    """Nats of the token at the places by class: without a thought, behind an empty one, behind the
    right call, and behind any other."""
    found: dict[str, list[float]] = {}
    for index in range(pages):
        page = make_tool_page(SEED + 1, index)
        random = np.random.Generator(np.random.Philox(key=index))
        right = {p.index: p.call.thought for p in page.places}
        for place, label in enumerate(page.classes):
            if label == " ":
                continue
            thoughts = {"bare": None, "empty": [], "any": any_call(page, place, random).thought}
            if place in right:
                thoughts["right"] = right[place]
            for kind, thought in thoughts.items():
                branch = [] if thought is None else [THINK_OPEN, *thought, THINK_CLOSE]
                tokens = [*page.tokens[:place], *branch, page.tokens[place]]
                ids = torch.tensor([[ids_of[t] for t in tokens]])
                logp = model(ids).logits[0, -2].float().log_softmax(-1)
                found.setdefault(f"{CLASSES[label]}, {kind}", []).append(-float(logp[ids[0, -1]]))
    return {name: round(sum(values) / len(values), 3) for name, values in sorted(found.items())}


def open_base(start: Path = BASE) -> Qwen3ForCausalLM:
    """Load the planted base, or what an earlier part made of it, with rows for the new tokens."""
    model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    torch.manual_seed(SEED)
    model.resize_token_embeddings(len(make_tool_tokenizer()), mean_resizing=False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--start", type=Path, default=BASE, help="weights of an earlier part")
    parser.add_argument("--first", type=int, default=0, help="steps that it has done")
    arguments = parser.parse_args()
    keep_freed_memory()
    tokenizer, model = make_tool_tokenizer(), open_base(arguments.start)
    assert all(marker in tokenizer.get_vocab() for marker in (*MARKERS, TOOL_OPEN))
    ids_of, steppers, lines = tokenizer.get_vocab(), Steppers(model), []
    for step in range(arguments.first, arguments.steps):
        random = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 4, 0, step]))
        # A page's seed is its own, and so are the values that it asks for.
        pages = [make_tool_page(SEED + 2 + step * PAGES + n, 0) for n in range(PAGES)]
        loss = gradient(model, ids_of, [row(page, random) for page in pages])
        left = (arguments.steps - step) / (0.4 * arguments.steps)
        steppers.step(RATE * min(1.0, (step - arguments.first + 1) / 20, max(0.02, left)))
        if (step + 1) % CHECK == 0 or step + 1 == arguments.steps:
            lines.append({"step": step + 1, "loss": loss, "cpu_seconds": time.process_time()})
            lines[-1] |= losses(model, ids_of)
            print(json.dumps(lines[-1]), flush=True)
            model.save_pretrained(arguments.out)
            tokenizer.save_pretrained(arguments.out)
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (arguments.out / "read_tools.jsonl").write_text(log, encoding="utf-8")


if __name__ == "__main__":
    main()
