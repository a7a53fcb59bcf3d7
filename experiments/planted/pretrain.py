"""Pretrain the base model of the planted corpus: 1.06 million parameters, two layers.

    python experiments/planted/pretrain.py --out experiments/planted/base

Plain next-token training on fresh pages, a few percent of which carry scratchpads (scratchpads.py).
It never sees a page twice, nor the seed of the corpus that RNTP trains on. The first steps read
pages with few names and long trails: induction, one look-up in the page, has to form before
anything else can be learnt, and it forms from look-ups, suddenly. When it has, ordinary pages
follow. Two layers can do one look-up in a forward pass and not two in a row. The last part adds
empty scratchpads, and more at tokens that no thought can help with: with them from the start, the
look-up at a question never formed.

The markers are special: the open marker is never a target, so the base does not think unasked.
Reproducible on one machine: every page is a function of (seed, index).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pages import CLASSES, make_page
from scratchpads import THINK_OPEN, Mix, with_scratchpads
from tokenizer import make_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rntp.runtime.memory import keep_freed_memory

SEED = 0  # of weights and pages; the RNTP corpus has another
PAGES = 32  # in one step
DRILLED, MOST_DRILLS = 0.7, 1500  # accuracy of one look-up that ends the drill; steps of it at most
STEPS = 1800  # on ordinary pages, after the drill
SETTLING, SETTLING_RATE = 500, 0.3  # steps of the last part; its learning rates, as a share
FIRST_MIX = Mix()
LAST_MIX = Mix(trail=0.35, names=0.15, empty=0.3, elsewhere=12, harder=12)
CHECK = 100  # steps
MUON_LR, ADAM_LR, WARMUP = 0.02, 3e-3, 100
IGNORE = -100
LOOK_UP = "accuracy of one look-up"
LOG = "pretrain.jsonl"


def make_model(vocabulary: int) -> Qwen3ForCausalLM:
    """Two layers of width 192, six heads of 32, tied embeddings."""
    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=192,
            intermediate_size=640,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=6,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def pretraining_tokens(index: int, drill: bool, mix: Mix) -> tuple[str, ...]:
    """Page `index`. Every eighth asks one hop more than the others, and never with a thought."""
    if drill:
        return make_page(SEED, index, names=6, trails=10, questions=2).tokens
    if mix.chosen(SEED, index):
        page = make_page(SEED, index, questions=8)
        return tuple(with_scratchpads(page, SEED, index, mix))
    hops = (2, 3, 4, 5) if index % 8 == 0 else (2, 3, 4)
    return make_page(SEED, index, hops=hops).tokens


def batch(
    tokenizer: PreTrainedTokenizerFast, step: int, drill: bool, mix: Mix
) -> tuple[Tensor, Tensor]:
    """Ids and targets [PAGES, longest], padded on the right; padding is never a target."""
    ids_of = tokenizer.get_vocab()
    rows = [
        [ids_of[t] for t in pretraining_tokens(index, drill, mix)]
        for index in range(step * PAGES, (step + 1) * PAGES)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    targets = torch.full_like(ids, IGNORE)
    for row, target in zip(rows, targets, strict=True):
        target[: len(row) - 1] = torch.tensor(row[1:])
    targets[targets == ids_of[THINK_OPEN]] = IGNORE
    return ids, targets


@torch.no_grad()
def losses_by_class(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, num_pages: int = 64
) -> dict[str, float]:
    """Mean loss (nats) of each class on fresh pages, and the accuracy of single look-ups."""
    ids_of = tokenizer.get_vocab()
    found: dict[str, list[float]] = {}
    right: list[bool] = []
    for index in range(num_pages):
        page = make_page(SEED + 1000, index, hops=(2, 3, 4, 5))
        ids = torch.tensor([[ids_of[t] for t in page.tokens]])
        logp = model(ids).logits[0].float().log_softmax(-1)
        for i, label in enumerate(page.labels[1:], 1):
            found.setdefault(CLASSES[label], []).append(-float(logp[i - 1, ids[0, i]]))
            if label == "1":
                right.append(bool(logp[i - 1].argmax() == ids[0, i]))
    means = {name: sum(values) / len(values) for name, values in sorted(found.items())}
    return means | {LOOK_UP: sum(right) / len(right)}


class Steppers:
    """Muon for the matrices, AdamW for embeddings and norms, at one share of their rates."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        self.parameters = list(model.parameters())
        self.optimizers = [
            torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.0, momentum=0.95),
            torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, share: float) -> None:
        """Update at `share` of the peak rates, and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, peak in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()


class Pretraining:
    """The model, and the log of what it has learnt."""

    def __init__(self, start: Path | None) -> None:
        self.tokenizer = make_tokenizer()
        self.lines: list[dict[str, Any]] = []
        if start:
            self.model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
            log = (start / LOG).read_text(encoding="utf-8").splitlines()
            self.lines = [json.loads(line) for line in log]
        else:
            self.model = make_model(len(self.tokenizer))
        self.seconds = self.lines[-1]["seconds"] if self.lines else 0.0
        self.start = time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps done before this part."""
        return self.lines[-1]["step"] if self.lines else 0

    def learn(self) -> None:
        """The drill, until it is enough, and ordinary pages."""
        steppers, drills, step = Steppers(self.model), MOST_DRILLS, 0
        while step < drills + STEPS:
            drilling = step < drills
            loss = self._gradient(step, drilling, FIRST_MIX)
            step += 1
            # Constant, then linear to 2 % over the last two fifths of the ordinary pages.
            left = max(0.02, (drills + STEPS - step) / (0.4 * STEPS))
            steppers.step(min(1.0, step / WARMUP, left))
            if step % CHECK == 0 or step == drills + STEPS:
                found = self._note("drill" if drilling else "pages", step, drills + STEPS, loss)
                if step < drills and found[LOOK_UP] >= DRILLED:
                    drills = step

    def settle(self) -> None:
        """The last part: what to do with empty thoughts, and with useless ones."""
        steppers, done = Steppers(self.model), self.steps
        for step in range(done, done + SETTLING):
            loss = self._gradient(step, False, LAST_MIX)
            ahead, behind = done + SETTLING - step - 1, step + 1 - done
            steppers.step(SETTLING_RATE * min(1.0, behind / WARMUP, max(0.02, ahead / SETTLING)))
            if (step + 1) % CHECK == 0:
                self._note("last part", step + 1, done + SETTLING, loss)

    def save(self, out: Path) -> None:
        """A Hugging Face folder with the log beside the weights."""
        self.model.save_pretrained(out)
        self.tokenizer.save_pretrained(out)
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (out / LOG).write_text(text, encoding="utf-8")

    def _gradient(self, step: int, drill: bool, mix: Mix) -> float:
        ids, targets = batch(self.tokenizer, step, drill, mix)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(ids).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        return loss.item()

    def _note(self, part: str, step: int, last: int, loss: float) -> dict[str, float]:
        found = losses_by_class(self.model, self.tokenizer)
        seconds = self.seconds + time.perf_counter() - self.start
        self.lines.append({"part": part, "step": step, "loss": loss, **found, "seconds": seconds})
        minutes = seconds / step * (last - step) / 60
        print(
            f"{step:>5}/{last} {part:<9} loss {loss:.3f}, one look-up {found[LOOK_UP]:.0%}, "
            f"{minutes:.0f} min left",
            flush=True,
        )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--settle", type=Path, metavar="FOLDER", help="only the last part, from these weights"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    run = Pretraining(arguments.settle)
    if not arguments.settle:
        run.learn()
    run.settle()
    run.save(arguments.out)


if __name__ == "__main__":
    main()
