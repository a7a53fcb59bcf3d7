"""The model page: a sample of its classes made anew, and that it is what the command writes."""

import json
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "experiments" / "models"
sys.path.insert(0, str(MODELS))

import survey  # noqa: E402
from tiny_models import names  # noqa: E402

from rntp.model import check  # noqa: E402

SAMPLE = {
    "llama": "exact",
    "deepseek_v3": "exact",
    "gemma2": "exact",
    "gpt_oss": "exact",
    "mixtral": "exact",
    "granite": "exact",
    "phi": "exact",
    "gpt2": "exact",
    "short window in the masks alone": "exact",
    "deepseek_v32": "refused",
    "lfm2_moe": "refused",
    "mamba": "refused",
}
COMMITTED = [survey.Row(**row) for row in json.loads((MODELS / "results.json").read_text())]


@pytest.mark.parametrize("label", SAMPLE)
def test_a_sample_of_the_classes(label: str, tmp_path: Path) -> None:
    name, fields = survey.VARIANTS.get(label, (label, {}))
    row = survey.survey(label, name, fields, tmp_path)
    assert row.shared == SAMPLE[label], row
    if row.shared == "exact":
        assert row.logits is not None
        assert row.sampler is not None
        assert 0 < row.logits < 1e-3
        assert 0 < row.sampler < 1e-2
    else:
        assert row.why.startswith("cannot run token trees: ")
        assert row.why.endswith(check.REMEDY)
    committed = next(r for r in COMMITTED if r.name in (label, f"{name}: {label}"))
    assert (committed.kind, committed.shared) == (row.kind, row.shared)


def test_no_class_is_wrong_or_fails_and_the_page_has_them_all() -> None:
    states = {row.shared for row in COMMITTED}
    assert states == {"exact", "refused", "not built"}
    assert {row.unshared for row in COMMITTED} <= {"", "runs", "refused", "not built"}
    listed = {row.name for row in COMMITTED}
    assert len(listed) == len(COMMITTED)
    variants = {f"{name}: {label}" for label, (name, _) in survey.VARIANTS.items()}
    assert variants <= listed
    # Of another version of transformers some are missing, and some are new.
    assert len(listed & set(names())) > 0.8 * len(names())
    for row in COMMITTED:
        assert row.why or row.shared == "exact", row


def test_the_page_says_what_the_numbers_say() -> None:
    text = (MODELS / "RESULTS.md").read_text().splitlines()
    made = survey.page(COMMITTED).splitlines()
    versions = 2  # the line that names them
    assert text[:versions] + text[versions + 1 :] == made[:versions] + made[versions + 1 :]
