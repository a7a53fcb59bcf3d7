"""A run folder as the trainer would leave it, with invented numbers: for the tests of the report.

`python tests/report/fake_run.py FOLDER` writes one to look at.
"""

import json
import math
import random
import sys
from pathlib import Path

from rntp.config import Config
from rntp.runtime.files import json_lines, write_bytes_atomic, write_json, write_text_atomic

HORIZON = 8
SCHEMES = ("log_ratio", "logprob", "exact_prefix")
PROSE = (
    "The harbour of the old town was built in three stages, and each of them can still be read in "
    "the stones. The oldest quay follows the line of a Roman wall; merchants extended it twice "
    "when the river began to silt up.\n\nIn 1714 a storm carried away the lighthouse, and the "
    "council asked every guild to pay for a new one. The weavers refused. Their letter, kept in "
    "the municipal archive, says that no cloth was ever lost to the dark but much of it to the "
    "tax. The dispute went on for eleven years, until the harbour master lit a fire on the tower "
    "of the church instead, and sent the bill to the bishop.\n\nToday the quay is quiet. A small "
    "ferry leaves for the islands at nine and at four, and on market days the fishermen sell what "
    "they caught from wooden tables along the water. "
)
THOUGHTS = (
    "The sentence lists what was built, so a date or a material is likely next.",
    "Who is 'they'? The guilds. The next words should say what they answered.",
    "Perhaps a place name.\nThe paragraph is about the river, so: the river, the bridge, the quay",
    "a a a the the of of and",
    "This looks like a local history; the tone is dry, and a contrast with today is coming.",
)


def config(run_dir: Path, name: str = "demo", seed: int = 0, steps: int = 24) -> Config:
    return Config.parse(
        {
            "run": {"name": name, "seed": seed, "steps": steps, "dir": str(run_dir)},
            "model": {"spec": "package:smollm2-135m"},
            "data": {"source": "shards", "context_tokens": 256, "docs_per_step": 4},
            "placement": {"policy": "random", "positions_per_doc": 4},
            "thought": {"thoughts_per_position": 4, "thought_tokens": 16},
            "reward": {"horizon": HORIZON, "shadows": list(SCHEMES)},
        }
    )


def fake_run(
    run_dir: Path,
    *,
    name: str = "demo",
    seed: int = 0,
    steps: int = 24,
    docs: int = 3,
    text: str = PROSE,
    thought: str | None = None,
    document_id: str = "local-history/harbour",
    evaluated: tuple[int, ...] | None = None,
) -> Path:
    """evaluated: the steps with an evaluation; before and after by default."""
    chance = random.Random(seed)
    (run_dir / "rollouts").mkdir(parents=True)
    (run_dir / "eval").mkdir()
    resolved = config(run_dir, name, seed, steps)
    write_text_atomic(run_dir / "config.yaml", resolved.to_yaml())
    write_json(run_dir / "manifest.json", _manifest(resolved))
    metrics = [_metrics(step, steps, chance) for step in range(1, steps + 1)]
    write_bytes_atomic(run_dir / "metrics.jsonl", json_lines(metrics))
    for step in range(1, steps + 1):
        rows = [_row(step, steps, n, chance, text, thought, document_id) for n in range(16)]
        path = run_dir / "rollouts" / f"step_{step:08d}.jsonl"
        write_bytes_atomic(path, json_lines(rows))
    for step in (0, steps) if evaluated is None else evaluated:
        evaluation = _evaluation(step / max(steps, 1), step, docs, text, thought, document_id)
        write_json(run_dir / "eval" / f"step_{step:08d}.json", evaluation)
    return run_dir


def fake_compare(before: dict, after: dict) -> dict:
    """In the form of rntp.evaluation.compare; the intervals are invented."""

    def cell(key: str) -> dict:
        change = after[key] - before[key]
        ci95 = [change - 0.03, change + 0.03]
        return {"before": before[key], "after": after[key], "change": change, "ci95": ci95}

    return {
        "nll/no_think": cell("nll/no_think"),
        "nll/think": cell("nll/think"),
        "gain/mean": cell("gain/mean"),
        "gain_ci95": {"before": before["gain/ci95"], "after": after["gain/ci95"]},
        "num_docs": before["num_docs"],
        "num_tokens": before["num_tokens"],
    }


def tokens_of(text: str) -> list[str]:
    """Words with the blank before them, as a byte-level tokenizer would give."""
    return [word if not i else f" {word}" for i, word in enumerate(text.split(" ")) if word]


def _manifest(resolved: Config) -> dict:
    return {
        "created": "2026-03-01T09:00:00Z",
        "versions": {"rntp": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "platform": "Linux",
        "device": "cpu (4 cores)",
        "threads": 4,
        "command": ["rntp", "train", "demo.yaml"],
        "config_digest": resolved.digest(),
        "data_digest": "d1" * 32,
        "starts": [{"started": "now", "from_step": 0}],
    }


def _metrics(step: int, steps: int, chance: random.Random) -> dict:
    done = step / steps
    reward = -0.4 + 0.35 * done + chance.gauss(0, 0.03)
    skipped = step == 7
    return {
        "step": step,
        "reward/mean": math.nan if skipped else reward,
        "reward/sem": 0.04 - 0.015 * done,
        "reward/std": 0.3 - 0.1 * done,
        "reward/noise_floor": 0.01,
        "reward/log_ratio": math.nan if skipped else reward,
        "reward/logprob": -3.1 + reward,
        "reward/exact_prefix": 0.1 + 0.06 * done,
        "gain/mean": math.nan if skipped else reward / HORIZON,
        "nll/no_think": 3.1 - 0.02 * done + chance.gauss(0, 0.01),
        "nll/think": 3.15 - 0.08 * done + chance.gauss(0, 0.01),
        "thought/tokens_mean": 14.5 - 4 * done,
        "thought/closed_frac": 0.1 + 0.7 * done,
        "group/dead_frac": 0.02,
        "loss/total": 0.6 - 0.05 * done,
        "loss/pg": chance.gauss(0, 0.004),
        "loss/continuation": 3.1 - 0.05 * done,
        "loss/ntp": 3.0 - 0.03 * done,
        "grad_norm": math.nan if skipped else 1.9 + chance.gauss(0, 0.2),
        "kl/sampler": abs(chance.gauss(0, 0.0003)),
        "entropy/thought": 3.2 - 0.5 * done,
        "lr": 1e-5 * min(1.0, step / 5),
        "tokens/context": 1024,
        "tokens/tree": 8000,
        "time/step_s": 9.8 + chance.gauss(0, 0.2),
        "time/rollout_s": 6.1,
        "time/forward_s": 2.4,
        "time/update_s": 1.1,
        "skipped": int(skipped),
    }


def _row(
    step: int,
    steps: int,
    index: int,
    chance: random.Random,
    text: str,
    thought: str | None,
    document_id: str,
) -> dict:
    tokens = tokens_of(text)
    position = len(tokens) // 2
    gains = [chance.gauss(-0.1 + 0.2 * step / steps, 0.25) for _ in range(HORIZON)]
    continuation = (tokens[position:] * HORIZON)[:HORIZON]
    reward = sum(gains)
    return {
        "ordinal": index // 4,
        "document_id": document_id,
        "position": position,
        "thought_index": index % 4,
        "prefix_tail": "".join(tokens[max(0, position - 30) : position]),
        "continuation": "".join(continuation),
        "thought": THOUGHTS[index % len(THOUGHTS)] if thought is None else thought,
        "answer": "",
        "rewards": dict.fromkeys(SCHEMES, reward),
        "reward": reward,
        "advantage": reward + 0.2,
        "gain": reward / HORIZON,
        "gain_per_token": gains,
        "continuation_tokens": continuation,
        "num_tokens": 14,
        "closed": index % 3 == 0,
        "sampler_logprob": -40.0,
        "policy_version": step - 1,
    }


def _evaluation(
    done: float, step: int, docs: int, text: str, thought: str | None, document_id: str
) -> dict:
    chance = random.Random(step)
    gain = -0.22 + 0.24 * done
    no_think = 3.1 - 0.04 * done
    return {
        "step": step,
        "seed": 0,
        "config_digest": "c0" * 32,
        "data_digest": "d1" * 32,
        "horizon": HORIZON,
        "num_docs": 16,
        "num_positions": 64,
        "num_tokens": 64 * HORIZON,
        "thoughts_per_position": 2,
        "nll/no_think": no_think,
        "nll/think": no_think - gain,
        "gain/mean": gain,
        "gain/ci95": [gain - 0.05, gain + 0.05],
        "thought/tokens_mean": 14.4 - 4 * done,
        "thought/closed_frac": 0.12 + 0.7 * done,
        "deciles": [_decile(n, gain) for n in range(1, 11)],
        "pages": [_page(n, done, chance, text, thought, document_id) for n in range(docs)],
    }


def _decile(number: int, gain: float) -> dict:
    low, high = 0.7 * (number - 1), 0.7 * number
    shifted = gain + 0.05 * (number - 5.5)
    return {
        "decile": number,
        "num_tokens": 51,
        "nll_low": low,
        "nll_high": high,
        "nll/no_think": (low + high) / 2,
        "nll/think": (low + high) / 2 - shifted,
        "gain": shifted,
    }


def _page(
    ordinal: int,
    done: float,
    chance: random.Random,
    text: str,
    thought: str | None,
    document_id: str,
) -> dict:
    tokens = tokens_of(text)
    places = sorted({len(tokens) * part // 6 + ordinal for part in (2, 3, 4, 5)})
    return {
        "ordinal": 40 + ordinal,
        "document_id": f"{document_id}-{ordinal}",
        "title": f"Title of {document_id}-{ordinal}" if ordinal % 2 else "",
        "tokens": tokens,
        "positions": [_position(place, done, chance, thought) for place in places],
    }


def _position(place: int, done: float, chance: random.Random, thought: str | None) -> dict:
    empty = [-abs(chance.gauss(2.5, 1.5)) for _ in range(HORIZON)]
    thoughts = []
    for index in range(2):
        gains = [chance.gauss(-0.25 + 0.35 * done, 0.4) for _ in empty]
        written = THOUGHTS[(place + index) % len(THOUGHTS)] if thought is None else thought
        logp = [e + g for e, g in zip(empty, gains, strict=True)]
        thoughts.append(
            {"text": written, "closed": index == 0, "num_tokens": 14 + index, "logp_think": logp}
        )
    return {"position": place, "logp_empty": empty, "thoughts": thoughts}


if __name__ == "__main__":
    print(json.dumps(str(fake_run(Path(sys.argv[1])))))
