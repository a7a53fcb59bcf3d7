"""A checkpoint as a Hugging Face folder that any program of that world can load."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rntp import __version__
from rntp.config import Config
from rntp.errors import CheckpointError, ConfigError
from rntp.model import LanguageModel, own_attention
from rntp.model.mixing import FILE as MIXING
from rntp.model.mixing import without_mixing
from rntp.model.tokenizer import encode
from rntp.run import checkpoint
from rntp.run.log import read_manifest
from rntp.run.settings import FILE, Settings
from rntp.run.trained import learnt_gate, open_trained

PROBE = "A page is read, a thought is had, and the page goes on."


def export(
    run_dir: Path, out: Path, step: int | None = None, *, say: Callable[[str], None]
) -> Path:
    """Write safetensors (float32), tokenizer with think markers, configs, how to think (rntp.json)
    and a model card to `out`; its mixing head, where it has one; and the gate that was learnt
    along, if it has seen enough.

    The folder is loaded again with plain transformers, and its logits on a probe compared with the
    checkpoint's, before it gets its name. Raises ConfigError if `out` exists, and CheckpointError
    if there is no such checkpoint or the copy computes something else.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose another folder or remove it")
    config, model, path = open_trained(run_dir, step, say)
    texts = {"README.md": _card(config, run_dir, path), FILE: Settings.of(config).text()}
    write_folder(model, out, texts)
    if gate := learnt_gate(path, config):
        gate.save(out)
    return out


def write_folder(model: LanguageModel, out: Path, texts: Mapping[str, str]) -> None:
    """Weights, tokenizer, configs, a mixing head, and `texts` by file name: checked, then published
    by a rename.

    Raises CheckpointError if plain transformers computes something else with the folder.
    """
    if model.shares:  # else the model has its own attention already
        model.hf.set_attn_implementation(own_attention(model.hf))
    ids = encode(model.tokenizer, PROBE)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tmp-export-", dir=out.parent))
    try:
        with without_mixing(model.hf):
            model.hf.save_pretrained(staging)
        if model.mixing is not None:
            model.mixing.save(staging)
        model.tokenizer.save_pretrained(staging)
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        reloaded = AutoModelForCausalLM.from_pretrained(staging, dtype=model.head.dtype)
        gap = (_logits(reloaded, ids) - _logits(model.hf, ids.to(model.device)).cpu()).abs().max()
        if not gap <= 1e-5:
            raise CheckpointError(f"the exported copy's logits differ by {float(gap):.2g}")
        staging.chmod(0o755)
        staging.replace(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@torch.no_grad()
def _logits(hf: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return hf.eval()(ids[None], use_cache=False).logits[0].float()


def _card(config: Config, run_dir: Path, path: Path) -> str:
    """A model card with the facts of the run; nothing in it is a claim of quality."""
    state, manifest = checkpoint.load_state(path), read_manifest(run_dir)
    facts = {
        "base model": config.model.spec,
        "trained with": f"rntp {__version__}, step {state['step']} of {config.run.steps}",
        "commit": (manifest.get("git") or {}).get("commit", "unknown"),
        "config digest": state["config_digest"],
        "data digest": state["data_digest"],
        "seed": config.run.seed,
        "think markers": f"`{config.model.think_open}` … `{config.model.think_close}`",
        "reward": f"{config.reward.label}, horizon {config.reward.horizon} tokens",
    }
    if config.reading.mixing:
        facts["read on with"] = f"(1 − w) p(no think) + w p(think); w from `{MIXING}`"
    lines = [f"| {name} | {value} |" for name, value in facts.items()]
    evaluation = run_dir / "eval" / f"step_{state['step']:08d}.json"
    measured = "Not evaluated at this step."
    if evaluation.is_file():
        result = json.loads(evaluation.read_text(encoding="utf-8"))
        low, high = result["gain/ci95"]
        measured = (
            f"On {result['num_tokens']} held-out tokens of {result['num_docs']} documents: loss "
            f"{result['nll/no_think']:.3f} nats per token without a thought, "
            f"{result['nll/think']:.3f} with one; gain {result['gain/mean']:+.3f}, 95 % interval "
            f"[{low:+.3f}, {high:+.3f}]."
        )
    head = ["---", "library_name: transformers", "tags: [rntp]", "---", "", f"# {config.run.name}"]
    return "\n".join([*head, "", "| fact | value |", "|---|---|", *lines, "", measured, ""])
