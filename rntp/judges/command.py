"""What the judges of a config say to known attacks, without a run."""

from dataclasses import asdict
from functools import partial
from typing import Any

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.errors import ConfigError
from rntp.judges.auditing import TOGETHER, Auditor
from rntp.judges.opening import open_panel
from rntp.model.tokenizer import add_marker, decode, load_tokenizer


def audit_judges(config: Config) -> tuple[dict[str, dict[str, Any]], str]:
    """Put every attack, on the first pages of the training stream, to every judge.

    Returns by judge, and for all together, the share of each attack's tries that it took for right
    (`by_attack`), of true continuations (`gold`), and verdicts `asked` and `missing`; and what is
    wrong with the judges, "" where nothing is. Raises ConfigError, DataError, and JudgesAway where
    no judge replies.
    """
    if not config.reward.judges.use:
        raise ConfigError("reward.judges.use names no judge; name one to try attacks on")
    if config.reward.judges.audit == "off":
        raise ConfigError("reward.judges.audit is off; set it to stop or warn, or leave it out")
    tokenizer = load_tokenizer(config.model.spec)
    for marker in (config.model.think_open, config.model.think_close):
        add_marker(tokenizer, marker)
    corpus = open_corpus(config, open_data(config), tokenizer)
    panel = open_panel(config)
    try:
        auditor = Auditor(config, corpus, partial(decode, tokenizer))
        found = auditor.audit(panel)
    finally:
        panel.close()
        corpus.close()
    return {name: asdict(audit) for name, audit in found.items()}, auditor.complaint(
        found[TOGETHER]
    )
