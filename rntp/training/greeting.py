"""What a run says of itself at its start."""

from collections.abc import Iterator, Mapping

from rntp.config import Config
from rntp.data.corpus import Corpus
from rntp.data.live import Live
from rntp.model import LanguageModel
from rntp.run.log import Level
from rntp.training.guards import Guards
from rntp.training.preflight import sharing_notes
from rntp.training.step_memory import StepMemory


def greeting(
    config: Config,
    model: LanguageModel,
    corpus: Corpus,
    guards: Guards,
    *,
    done: int,
    packs: bool,
    memory: StepMemory,
    recomputes: bool,
    changed: Mapping[str, Mapping[str, object]],
) -> Iterator[tuple[str, Level]]:
    """Tell what is trained on what and what to mind: lines, each with its level.

    done: steps. packs: weights are packed for the CPU. recomputes: layers keep their inputs alone.
    changed: fields that were set otherwise at the last start.
    """
    fits = memory.warnings(recompute=recomputes)
    for warning in [*config.warnings(), *corpus.warnings(config.model.spec), *fits]:
        yield warning, "warning"
    packed = ", weights packed" if packs else ""
    yield (
        (
            f"{config.run.name}: {config.model.spec} ({model.num_parameters / 1e6:.0f}M "
            f"parameters, {config.model.dtype}, {model.device}{packed}), {corpus.facts()}, "
            f"steps {done + 1} … {config.run.steps}"
            if done < config.run.steps
            else f"{config.run.name}: all {done} steps are done; raise run.steps to go on"
        ),
        "info",
    )
    for note in sharing_notes(config, model):
        yield note, "info"
    if changed:
        listed = (f"{name}: {c['was']} → {c['is']}" for name, c in changed.items())
        yield f"set otherwise than at the last start: {'; '.join(listed)}", "info"
    if recomputes and config.parallel.activation_checkpointing == "auto":
        yield (
            "layers keep only their inputs for the backward (parallel.activation_checkpointing:"
            " auto), since a step would not fit into memory otherwise; it takes longer for it",
            "info",
        )
    if guards.excluded:
        where = config.run.dir / "quarantine"
        yield f"{len(guards.excluded)} ordinals are set aside, see {where}", "info"


def pages_read(corpus: Corpus) -> Iterator[str]:
    """Tell what became of the pages of a source that is read as it comes; else nothing."""
    if isinstance(corpus.manifest, Live):
        told = ", ".join(f"{name} {count}" for name, count in corpus.funnel.items() if count)
        yield f"pages read so far: {told}"
