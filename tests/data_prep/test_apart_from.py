"""A corpus that is to grow another has none of its documents."""

import json
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="extra `prep`")

from conftest import tiny_tokenizer
from rntp_data_prep.config import PrepConfig
from rntp_data_prep.prepare import prepare

from rntp.data import Manifest
from rntp.errors import DataError
from rntp.model.tokenizer import encode, tokenizer_digest


def prepared(folder: Path, texts: list[str], **facts: object) -> Manifest:
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = tiny_tokenizer()
    given = {"sources": (str(source),), "output": folder, "tokenizer": "tiny", "min_tokens": 1}
    config = PrepConfig.model_validate({**given, "min_chars": 1, "workers": 1, **facts})
    return prepare(config, partial(encode, tokenizer), tokenizer_digest(tokenizer), print)


def test_texts_of_other_corpora_are_duplicates(tmp_path: Path) -> None:
    texts = [f"The dog does not mind the fox number {n}." for n in range(6)]
    first = prepared(tmp_path / "first", texts[:3])
    second = prepared(tmp_path / "second", texts[1:], apart_from=(tmp_path / "first",))
    assert (first.num_docs, second.num_docs) == (3, 3)
    assert not set(first.document_ids) & set(second.document_ids)
    assert second.funnel["rejected/duplicate"] == 2
    # Whose documents are left out is part of what a preparation is.
    alone = prepared(tmp_path / "alone", texts[1:])
    assert (alone.num_docs, alone.prep_digest == second.prep_digest) == (5, False)
    with pytest.raises(DataError, match="other sources, settings"):
        prepared(tmp_path / "second", texts[1:])
