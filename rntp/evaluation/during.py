"""The evaluations of a run: before and after training and every so often, each in its file."""

import json
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.data.corpus import Corpus
from rntp.evaluation.compare import compare
from rntp.evaluation.measure import Progress, evaluate
from rntp.evaluation.provenance import provenance
from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.run.log import NoLog, RunLog
from rntp.runtime.faults import fault_point
from rntp.runtime.files import write_json
from rntp.runtime.ranks import Ranks

MEMORISED = 0.1  # nats per token: worth a warning, see `memorised`


def evaluation_path(config: Config, step: int) -> Path:
    """Name the file of the result after that step."""
    return config.run.dir / "eval" / f"step_{step:08d}.json"


class Evaluations:
    """Those of one run; an existing result is kept, so that a resumed run has the same.

    Settings of the evaluation may change between two starts. Results of other settings than now
    are neither compared with nor counted as done: their files stay, under another name.
    """

    def __init__(self, config: Config, model: LanguageModel, corpus: Corpus, ranks: Ranks) -> None:
        self._config = config
        self._model = model
        self._corpus = corpus
        self._ranks = ranks

    def run_if_due(self, step: int, log: RunLog | NoLog, check: Check, phase: Progress) -> None:
        """Before and after training, and every so often. check, phase: see `evaluate`."""
        config = self._config
        section = config.evaluation
        regular = section.every_steps > 0 and step % section.every_steps == 0
        due = section.enabled and (regular or step in (0, config.run.steps))
        if not due or self._read(step) is not None:
            return
        self._ranks.decide(lambda: _move_aside(config, step), "save")
        assert self._corpus.heldout is not None

        def progress(name: str, done: int, total: int) -> None:
            phase(name, done, total)
            if name == "evaluate":
                fault_point("evaluate.inside")

        log.message(f"evaluating on held-out pages, after step {step}")
        result = evaluate(
            self._model,
            self._corpus.heldout_contexts(section.heldout_docs),
            config,
            reference=self._read(0),
            check=check,
            progress=progress,
            ranks=self._ranks,
        )
        if section.reused_docs:
            result["reused"] = self._reused(result, log, check, progress)
        facts = provenance(config, self._corpus, step)
        self._ranks.decide(lambda: _write(config, step, {**facts, **result}), "save")
        low, high = result["gain/ci95"]
        recovered = result.get("memory", {}).get("recovered")
        share = "" if recovered is None else f", {recovered:.0%} of the lost context"
        log.message(
            f"held-out: nll {result['nll/no_think']:.3f} → {result['nll/think']:.3f} with "
            f"thinking, gain {result['gain/mean']:+.3f} [{low:+.3f}, {high:+.3f}] nats per token"
            f"{share}"
        )
        if tasks := result.get("tasks"):
            told = ", ".join(
                "pass@{k} {pass:.1%} [{ci95[0]:.1%}, {ci95[1]:.1%}]".format(**row)
                for row in (tasks["pass_at"][0], tasks["pass_at"][-1])
            )
            log.message(f"held-out tasks ({tasks['num_tasks']}): {told}")

    def comparison(self) -> dict[str, Any] | None:
        """Before and after training, side by side; None until both exist, made alike."""
        before, after = (read_result(self._config, n) for n in (0, self._config.run.steps))
        return compare(before, after, self._config.run.seed) if before and after else None

    def _reused(
        self, fresh: dict[str, Any], log: RunLog | NoLog, check: Check, progress: Progress
    ) -> dict[str, Any]:
        """The same on contexts that are trained on, and how much more thinking is worth there."""
        contexts = self._corpus.reused_contexts(self._config.evaluation.reused_docs)
        found = evaluate(
            self._model, contexts, self._config, check=check, progress=progress, ranks=self._ranks
        )
        del found["pages"]
        learnt = memorised(found, fresh, self._read(0))
        if learnt > MEMORISED:
            log.message(
                f"memorisation: without a thought, the loss on reused pages has fallen by "
                f"{learnt:.2f} nats per token more than on fresh ones; train on more documents, "
                "for fewer steps, or with a lower objective.ntp_weight",
                "warning",
            )
        gap = found["gain/mean"] - fresh["gain/mean"]
        return {**found, "gain_over_fresh": gap, "memorised": learnt}

    def _read(self, step: int) -> dict[str, Any] | None:
        """As rank 0 finds it, so that no rank has it where another has not."""
        return self._ranks.decide(lambda: read_result(self._config, step), "evaluate")


def memorised(
    reused: dict[str, Any], fresh: dict[str, Any], before: dict[str, Any] | None
) -> float:
    """Measure how much more the no-think loss of reused pages has fallen than that of fresh ones.

    Nats per token of whole pages, since the evaluation before training; 0 there. The pages are
    others, so only the changes can be compared.
    """
    if before is None:
        return 0.0
    pairs = [(fresh, before), (reused, before["reused"])]
    on_fresh, on_reused = (now["reading"]["nll"] - then["reading"]["nll"] for now, then in pairs)
    return float(on_fresh - on_reused)


def read_result(config: Config, step: int) -> dict[str, Any] | None:
    """Read the result after a step; None where there is none that was made as the config says."""
    path = evaluation_path(config, step)
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(result, dict)
    return result if _made_alike(config, result) else None


def _made_alike(config: Config, result: dict[str, Any]) -> bool:
    """Whether a result is of the evaluation that the config has now; old ones do not say."""
    digest = config.evaluation_digest()
    return bool(result.get("evaluation_digest", digest) == digest)


def _move_aside(config: Config, step: int) -> None:
    """Keep the result of other settings, if there is one, as step_N.DIGEST.json."""
    path = evaluation_path(config, step)
    if path.is_file():
        digest = str(json.loads(path.read_text(encoding="utf-8"))["evaluation_digest"])
        path.replace(path.with_suffix(f".{digest[:12]}.json"))


def _write(config: Config, step: int, result: dict[str, Any]) -> None:
    path = evaluation_path(config, step)
    path.parent.mkdir(exist_ok=True)
    write_json(path, result)
    fault_point("evaluate.written")
