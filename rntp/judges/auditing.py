"""Audits of the judges of a config, on pages of its corpus."""

from collections.abc import Callable, Sequence

from torch import Tensor

from rntp.config import Config
from rntp.data.corpus import Corpus
from rntp.errors import JudgesAway
from rntp.judges.attacks import Audit, audit
from rntp.judges.opening import combined
from rntp.judges.panel import Panel
from rntp.types import Context

TOGETHER = "together"


class Auditor:
    """Puts known attacks to judges, on the first pages of the training stream.

    decode: text of ids. found: by metric, what the last audit said of all judges together.
    """

    def __init__(self, config: Config, corpus: Corpus, decode: Callable[[Tensor], str]) -> None:
        self._config, self._decode = config, decode
        settings = config.reward.judges.audit
        docs = 0 if settings == "off" else settings.get("docs")
        self._pages: Sequence[Context] = corpus.reused_contexts(docs) if docs else []
        self.found: dict[str, float] = {}

    def is_due(self, done: int) -> bool:
        """Whether one is due after so many steps: before the first, and every so often."""
        settings = self._config.reward.judges.audit
        return settings != "off" and done % settings.get("every_steps") == 0

    def audit(self, panel: Panel, check: Callable[[], None] = lambda: None) -> dict[str, Audit]:
        """What every judge, and all together, take for right. Raises JudgesAway where none
        replies."""
        places = []
        for context in self._pages:
            at = max(1, (len(context) - self._config.reward.horizon) // 2)
            places.append(self.around(context, at))
        found = audit(panel, places, combined(self._config), check)
        together = found[TOGETHER]
        if together.missing == together.asked:
            urls = ", ".join(judge.url for judge in self._config.reward.judges.use.values())
            kinds = ", ".join(f"{count} {kind}" for kind, count in together.failures.items())
            often = max(together.failures, key=together.failures.__getitem__)
            raise JudgesAway(
                f"no judge gave a verdict at {urls} ({kinds}); {_REMEDIES.get(often, _REMEDY)}"
            )
        self.found = {"judge/fooled": together.worst[1], "judge/gold": together.gold}
        return found

    def around(self, context: Context, position: int) -> tuple[str, str]:
        """Texts before a position, and of the continuation that thoughts are judged by."""
        ids = context.token_ids
        after = ids[position : position + context.num_scored(self._config.reward.horizon)]
        return self._decode(ids[:position]), self._decode(after)

    def complaint(self, found: Audit) -> str:
        """Say what is wrong with judges of which an audit says this; "" where nothing is."""
        fooled = self._config.reward.judges.audit.get("fooled")
        if found.worst[1] > fooled:
            trouble = f"the judges can be fooled: {told(found)}"
        elif found.gold <= found.false_positives:
            trouble = f"the judges cannot tell right from wrong: {told(found)}"
        else:
            return ""
        return (
            f"{trouble}. Take a stronger model, several with reward.judges.combine: minimum, or "
            "reward.judges.sees: continuation"
        )


_REMEDY = "see that the servers run, and that `model` in reward.judges.use is what they call it"
_REMEDIES = {
    "unclear": "these models do not say what they are asked to: take reward.judges.verdict: word, "
    "or a stronger model",
    "out_of_time": "raise reward.judges.seconds, or lower reward.judges.at_once",
}


def told(found: Audit) -> str:
    """Say in a line what an audit found."""
    attack, share = found.worst
    missing = f", {found.missing} of {found.asked} missing" if found.missing else ""
    return (
        f"true continuations taken for right {found.gold:.0%}, wrong answers "
        f"{found.false_positives:.0%}, most often “{attack}” ({share:.0%}){missing}"
    )
