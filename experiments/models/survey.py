"""The model page: what happens to every causal class of the installed transformers.

    python experiments/models/survey.py [NAME ...]

builds a tiny random model of every class, and of the variants below, loads it as a run would, and
compares trees and decoding with the class's own attention on texts of their own. It writes
RESULTS.md and results.json beside this file (for some names alone it prints them).
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from tiny_models import TOKENS, names, save, tiny_model
from transformers import AutoModelForCausalLM

from rntp.errors import ConfigError
from rntp.model import LanguageModel, Sharing, load_model, own_attention
from rntp.model.thought_tree import TokenTree
from rntp.objective.forward import build_tree, forward
from rntp.objective.rewards_and_advantages import sampler_logp
from rntp.rollout import Engine, no_check
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.unshared import UnsharedEngine
from rntp.types import Context

HERE = Path(__file__).parent
SECONDS, BYTES = 120, 6 << 30  # of one class, after which it is given up
BIG = 4_000_000  # parameters; what cannot be made smaller is not run

_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0}
_LONG |= {"original_max_position_embeddings": 32}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_WINDOW = {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 0}
# label: (model type, fields of its config)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "phi3",
        {
            "rope_parameters": {
                **_LONG,
                "short_factor": [1.0 + 0.05 * i for i in range(8)],
                "long_factor": [2.0 + i for i in range(8)],
            },
            "original_max_position_embeddings": 32,
        },
    ),
    "dynamic NTK": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
            "max_position_embeddings": 64,
        },
    ),
    "YaRN": ("llama", {"rope_parameters": {**_YARN, "original_max_position_embeddings": 64}}),
    "scaled by position (Llama 4's)": (
        "ministral3",
        {
            "rope_parameters": {
                **_YARN,
                "original_max_position_embeddings": 40,
                "llama_4_scaling_beta": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            }
        },
    ),
    "short window": ("mistral", _WINDOW),
    "short window in the masks alone": ("phimoe", _WINDOW),
    "windows in some layers": ("qwen2_moe", {**_WINDOW, **_MIXED, "max_window_layers": 2}),
    "short windows, soft caps": ("gemma2", {"sliding_window": 24}),
    "short windows, sinks": ("gpt_oss", {**_MIXED, "sliding_window": 24}),
    "short chunks": ("llama4_text", {"attention_chunk_size": 32}),
    "soft cap of the logits": ("gemma3_text", {"final_logit_softcapping": 5.0}),
    "scaled logits": ("granite", {"logits_scaling": 8.0}),
    "padded vocabulary": ("llama", {"vocab_size": TOKENS + 66}),
    "clipped queries": ("olmo", {"clip_qkv": 0.5}),
    "clipped queries of experts": ("olmoe", {"clip_qkv": 0.5}),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
}


@dataclass(frozen=True)
class Row:
    """What became of one class. shared: as token trees: `exact`, or `refused`, `wrong`, `failed`.
    unshared: with one sequence a thought, ditto. why: the reason. logits: the largest difference of
    logits, in their standard deviations. sampler: that of log-probs when drawn and when scored,
    nats. Both are of trees, or, where there are none, of sequences. span: positions that trees
    reach.
    """

    name: str
    kind: str = ""
    shared: str = ""
    unshared: str = ""
    why: str = ""
    logits: float | None = None
    sampler: float | None = None
    span: int | None = None


def survey(label: str, name: str, fields: dict[str, Any], folder: Path) -> Row:
    """Build, load, compare. Never raises."""
    try:
        model = tiny_model(name, **fields)
    except Exception as error:
        return Row(label, shared="not built", unshared="not built", why=_first_line(error))
    kind = type(model).__name__
    if sum(p.numel() for p in model.parameters()) > BIG:
        return Row(label, kind, "not built", "not built", "it cannot be made small")
    save(model, folder)
    shared, unshared = (tried(kind, folder, sharing) for sharing in ("tree", "none"))
    reasons = [shared.why]
    if unshared.found != "exact" and unshared.why not in shared.why:
        reasons.append(f"unshared: {unshared.why}")
    numbers = shared if shared.found == "exact" else unshared
    return Row(
        label,
        kind,
        shared.found,
        unshared.found,
        "; ".join(filter(None, reasons)),
        numbers.logits,
        numbers.sampler,
        shared.span,
    )


@dataclass(frozen=True)
class Tried:
    """One way of running a model; fields as those of `Row`."""

    found: str
    why: str = ""
    logits: float | None = None
    sampler: float | None = None
    span: int | None = None


def tried(kind: str, folder: Path, sharing: Sharing) -> Tried:
    """Load and compare. kind: its class."""
    try:
        loaded = load_model(str(folder), sharing=sharing)
    except ConfigError as error:
        return Tried("refused", _reason(error, kind, folder))
    except Exception as error:
        return Tried("failed", f"at load: {_first_line(error)}")
    try:
        logits, sampler = tree_gap(loaded, folder), sampler_gap(loaded)
    except Exception as error:
        return Tried("failed", f"in use: {_first_line(error)}")
    exact = logits < 1e-3 and sampler < 1e-2
    return Tried("exact" if exact else "wrong", "", logits, sampler, loaded.max_span)


@torch.no_grad()
def tree_gap(model: LanguageModel, folder: Path) -> float:
    """Largest difference of the tokenizer's logits between a forest and the plain sequences, in
    standard deviations."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain.set_attn_implementation(own_attention(plain))
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(1, TOKENS - 30, (max(count, 1),), generator=generator)

    span = min(model.max_span, 110)
    page = span * 3 // 4
    rest = span - page
    tree = TokenTree.build(
        [
            (ids(page), -1, 0),
            (ids(rest // 2), 0, page // 2),
            (ids(rest - rest // 2), 1, rest // 2),
            (ids(rest), 0, page),
            (ids(rest // 3), 3, rest // 2),
            (ids(span // 4), -1, 0),
        ]
    )
    logits = model.logits(tree.hidden(model)).double()
    worst = 0.0
    for segment in range(len(tree.layout.lengths)):
        rows = tree.layout.unshared(segment)
        wanted = plain(tree.token_ids[rows][None], use_cache=False).logits[0].double()
        known = min(wanted.shape[1], len(model.tokenizer) - 2)  # markers are new to the plain one
        gap = (logits[rows, :known] - wanted[:, :known]).abs().max() / wanted[:, :known].std()
        worst = max(worst, float(gap))
    return worst


def sampler_gap(model: LanguageModel) -> float:
    """Largest difference of the log-probs of sampled tokens, drawn and then scored, in nats; every
    token has to be one of the tokenizer's."""
    length = min(model.max_span - 14, 60)
    contexts = [
        Context(n, f"page {n}", torch.arange(1, length + 1 - 3 * n) * 7 % (TOKENS - 30) + 1)
        for n in range(2)
    ]
    asked: dict[str, Any] = {"thoughts": 4, "budget": 7, "answer_tokens": 3}
    asked |= {"temperature": 0.8, "seed": 0}
    engine: Engine = UnsharedEngine(model, **asked)
    if model.shares:
        engine = InProcessEngine(model, slots=length, **asked)
    rollouts = engine.sample(contexts, lambda context, _: (4, len(context) - 5), no_check)
    drawn = torch.cat([t.sampled_ids for r in rollouts for g in r.thoughts for t in g])
    assert int(drawn.max()) < len(model.tokenizer)
    with torch.no_grad():
        found = forward(model, build_tree(model, rollouts, 4), temperature=0.8)
    return float((found.thought_logp_M - sampler_logp(rollouts)).abs().max())


def apart(work: Callable[[Path], Row], label: str) -> Row:
    """A row from a process of its own, with limits on time and memory."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(SECONDS)
        if sys.platform == "linux":
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        with tempfile.TemporaryDirectory() as folder:
            row = work(Path(folder))
        os.write(write, json.dumps(asdict(row)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        why = "too much time or memory"
        return Row(label, shared="not built", unshared="not built", why=why)
    return Row(**json.loads(said))


def rows(wanted: Iterable[str]) -> list[Row]:
    """One for every name, which is a model type or the label of a variant."""
    found = []
    for label in wanted:
        name, fields = VARIANTS.get(label, (label, {}))
        named = f"{name}: {label}" if label in VARIANTS else label

        def work(folder: Path, name: str = name, fields: Any = fields, named: str = named) -> Row:
            return survey(named, name, fields, folder)

        found.append(apart(work, named))
        print(found[-1].name, found[-1].shared, found[-1].unshared, found[-1].why, flush=True)
    return found


def page(found: list[Row]) -> str:
    """The page, in Markdown."""
    ways = {"as token trees": [r.shared for r in found], "unshared": [r.unshared for r in found]}
    counts = [
        f"{way}: " + ", ".join(f"{states.count(kind)} {kind}" for kind in KINDS)
        for way, states in ways.items()
    ]
    lines = [
        "# Which models run",
        "",
        "Made by `python experiments/models/survey.py`: a tiny random model of every causal class, "
        f"and variants; transformers {transformers.__version__}, torch {torch.__version__}.",
        "",
        "shared: as token trees, compared with the class's own attention: logits in standard "
        "deviations, log-probs of the sampler in nats. unshared: one sequence a thought.",
        "",
        "; ".join(counts) + ".",
        "",
        "| model type | class | shared | unshared | span | logits | sampler | why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        numbers = [
            "" if r.span is None else str(r.span),
            *("" if x is None else f"{x:.1g}" for x in (r.logits, r.sampler)),
        ]
        why = r.why.replace("|", "\\|")
        lines.append(
            f"| {r.name} | {r.kind} | {r.shared} | {r.unshared} | {' | '.join(numbers)} | {why} |"
        )
    return "\n".join([*lines, ""])


KINDS = ("exact", "refused", "not built", "wrong", "failed")


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def _reason(error: ConfigError, kind: str, folder: Path) -> str:
    """What a refusal says behind the name of the model."""
    text = " ".join(str(error).replace(str(folder), "it").split())[:400]
    return text.split(f"({kind}) ", 1)[-1] if kind else text


def main() -> None:
    torch.set_num_threads(1)
    every = [*names(), *VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "only", nargs="*", metavar="NAME", help="model types or variants to print; none writes all"
    )
    only = parser.parse_args().only
    if unknown := [name for name in only if name not in every]:
        parser.error(f"there is no {', '.join(unknown)}")
    found = rows(only or every)
    if only:
        print(page(found))
        return
    (HERE / "results.json").write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n")
    (HERE / "RESULTS.md").write_text(page(found))


if __name__ == "__main__":
    main()
