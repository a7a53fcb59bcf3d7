"""Pretrain the base model of the planted corpus: 1.06 million parameters, two layers.

    python experiments/planted/pretrain.py --out experiments/planted/base

Plain next-token training on fresh pages, a few percent of which carry scratchpads (scratchpads.py).
It never sees a page twice, nor the seed of the corpus that RNTP trains on. The first steps read
pages with few names and long trails: induction, one look-up in the page, has to form before
anything else can be learnt, and it forms from look-ups, suddenly. When it has, ordinary pages
follow. Two layers can do one look-up in a forward pass and not two in a row.

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

from rntp.memory import keep_freed_memory

SEED = 0  # of weights and pages; the RNTP corpus has another
PAGES = 32  # in one step
DRILLED, MOST_DRILLS = 0.7, 1500  # accuracy of one look-up that ends the drill; steps of it at most
STEPS = 1800  # on ordinary pages, after the drill
CHECK = 100  # steps
MUON_LR, ADAM_LR, WARMUP = 0.02, 3e-3, 100
IGNORE = -100
LOOK_UP = "accuracy of one look-up"


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


def optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def pretrain(out: Path, mix: Mix) -> None:
    """Train, and write a Hugging Face folder with the log beside the weights."""
    keep_freed_memory()
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    steppers = optimizers(model)
    peaks = [group["lr"] for o in steppers for group in o.param_groups]
    lines: list[dict[str, Any]] = []
    start = time.perf_counter()
    drills, step = MOST_DRILLS, 0
    while step < drills + STEPS:
        ids, targets = batch(tokenizer, step, step < drills, mix)
        step += 1
        # Constant, then linear to 2 % over the last two fifths of the ordinary pages.
        left = max(0.02, (drills + STEPS - step) / (0.4 * STEPS))
        groups = (group for o in steppers for group in o.param_groups)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, step / WARMUP, left)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in steppers:
            o.step()
            o.zero_grad()
        if step % CHECK == 0 or step == drills + STEPS:
            seconds = time.perf_counter() - start
            found = losses_by_class(model, tokenizer)
            if step < drills and found[LOOK_UP] >= DRILLED:
                drills = step
            minutes = seconds / step * (drills + STEPS - step) / 60
            lines.append({"step": step, "loss": loss.item(), **found, "seconds": seconds})
            print(
                f"{step:>5}/{drills + STEPS} {'drill' if step < drills else 'pages'} "
                f"loss {loss.item():.3f}, one look-up {found[LOOK_UP]:.0%}, {minutes:.0f} min left",
                flush=True,
            )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    log = out / "pretrain.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pretrain(arguments.out, Mix())


if __name__ == "__main__":
    main()
