"""The preparation, top to bottom: sources in, a verified corpus and a ledger of rejects out."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path

from rntp.data.manifest import MANIFEST_NAME, Manifest, ShardWriter
from rntp.errors import DataError
from rntp_data_prep.clean import clean, normalise
from rntp_data_prep.config import PrepConfig
from rntp_data_prep.extract import Page, check_source, extract, extractor_version, read_pages

LEDGER_NAME = "rejects.jsonl"

# Part of the preparation's identity: raise it with any change of what a page becomes, so that a
# corpus of older rules is not taken for finished.
RULES_VERSION = 1

_PAGES_PER_REPORT = 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """What became of a page: a text with its facts, or the reason why it is left out."""

    text: str = ""
    title: str = ""
    num_tokens: int = 0
    num_neutralised: int = 0
    reason: str = ""

    @property
    def document_id(self) -> str:
        """Hash of the text: the same text has the same id, and split, in every corpus."""
        return hashlib.blake2b(self.text.encode("utf-8"), digest_size=16).hexdigest()


def prepare(
    config: PrepConfig,
    encode: Callable[[str], Sized],
    tokenizer_digest: str,
    progress: Callable[[str], None],
) -> Manifest:
    """Write the corpus of `config` to its output folder; returns it opened.

    encode: text to token ids without special tokens; only their number is used. progress: is given
    lines for people. Where the output already holds the corpus of these sources, settings and
    tokenizer, nothing is read but the sources' hashes. The same input gives the same manifest
    digest.

    The funnel of the manifest counts: `pages` read, `kept`, `rejected/REASON`, and
    `neutralised_markers`, the special-token strings that were made ordinary text. The output
    folder's rejects.jsonl names every page that was left out, with the reason.

    Raises DataError for a source that is missing, damaged or without a page, for an empty corpus,
    and for an output folder that holds something else; nothing half-written is left behind.
    """
    paths = config.source_files()
    version = extractor_version()
    source_digests = []
    for path in paths:
        progress(f"checking {path}")
        source_digests.append(check_source(path))
    prep_digest = _prep_digest(config, paths, source_digests, version)
    if (config.output / MANIFEST_NAME).is_file():
        return _finished(config, prep_digest, tokenizer_digest, progress)
    with ShardWriter(
        config.output,
        shard_bytes=config.shard_bytes,
        tokenizer_digest=tokenizer_digest,
        tokenizer_spec=config.tokenizer,
        prep_digest=prep_digest,
    ) as writer:
        funnel = _write_documents(config, paths, encode, writer, progress)
        if funnel["kept"] == 0:
            raise DataError(
                f"no page of {len(paths)} sources was kept ({_summary(funnel)}); lower min_chars "
                "or min_tokens, or add sources"
            )
        manifest = writer.finish(funnel)
    progress(
        f"wrote {manifest.num_docs} documents, {manifest.num_tokens.sum()} tokens to "
        f"{config.output} ({_summary(funnel)})"
    )
    return manifest


def judge(page: Page, config: PrepConfig, encode: Callable[[str], Sized]) -> Candidate:
    """One page through extraction, cleaning and the limits; knows nothing of other pages."""
    if page.html is None:
        return Candidate(reason=page.reason)
    title, raw_text = extract(page.html)
    text, num_neutralised = clean(raw_text, title)
    if not text:
        return Candidate(reason="no_text")
    if len(text) < config.min_chars:
        return Candidate(reason="too_few_chars")
    if len(text) > config.max_chars:
        return Candidate(reason="too_many_chars")
    num_tokens = len(encode(text))
    if num_tokens < config.min_tokens:
        return Candidate(reason="too_few_tokens")
    return Candidate(text, normalise(title), num_tokens, num_neutralised)


def _write_documents(
    config: PrepConfig,
    paths: list[Path],
    encode: Callable[[str], Sized],
    writer: ShardWriter,
    progress: Callable[[str], None],
) -> dict[str, int]:
    rejected: Counter[str] = Counter()
    num_pages = num_neutralised = 0
    # Exact duplicates are found by id, so memory is one id a document: about 100 bytes.
    seen: set[str] = set()
    with open(writer.partial_folder / LEDGER_NAME, "w", encoding="utf-8") as ledger:
        for page in _pages(paths, progress):
            num_pages += 1
            if num_pages % _PAGES_PER_REPORT == 0:
                progress(f"{num_pages} pages, {len(seen)} kept")
            candidate = judge(page, config, encode)
            reason = candidate.reason
            if not reason and candidate.document_id in seen:
                reason = "duplicate"
            if reason:
                rejected[reason] += 1
                entry = {"url": page.url, "source": page.source, "reason": reason}
                ledger.write(json.dumps(entry, ensure_ascii=False) + "\n")
                continue
            seen.add(candidate.document_id)
            num_neutralised += candidate.num_neutralised
            metadata = {"url": page.url, "title": candidate.title, "source": page.source}
            writer.add(candidate.document_id, candidate.text, metadata, candidate.num_tokens)
    assert num_pages == len(seen) + rejected.total()
    return {
        "pages": num_pages,
        "kept": len(seen),
        **{f"rejected/{reason}": count for reason, count in sorted(rejected.items())},
        "neutralised_markers": num_neutralised,
    }


def _pages(paths: list[Path], progress: Callable[[str], None]) -> Iterator[Page]:
    for path in paths:
        progress(f"reading {path}")
        num_usable = 0
        for page in read_pages(path):
            num_usable += page.html is not None
            yield page
        if num_usable == 0:
            raise DataError(
                f"{path} holds no HTML page (HTTP response, status 200); leave it out of `sources`"
            )


def _finished(
    config: PrepConfig,
    prep_digest: str,
    tokenizer_digest: str,
    progress: Callable[[str], None],
) -> Manifest:
    present = Manifest.load(config.output)
    if (present.prep_digest, present.tokenizer_digest) != (prep_digest, tokenizer_digest):
        raise DataError(
            f"{config.output} holds a corpus of other sources, settings or tokenizer "
            f"({present.tokenizer_spec}); delete it, or choose another output folder"
        )
    progress(
        f"{config.output} already holds this corpus: {present.num_docs} documents, "
        f"{present.num_tokens.sum()} tokens; nothing to do"
    )
    return present


def _prep_digest(
    config: PrepConfig, paths: list[Path], source_digests: list[str], version: str
) -> str:
    """Identity of a preparation: contents and file names of the sources, limits and rules."""
    facts = {
        "rules": RULES_VERSION,
        "extractor": version,
        "sources": [[path.name, d] for path, d in zip(paths, source_digests, strict=True)],
        "settings": config.model_dump(mode="json", exclude={"sources", "output", "tokenizer"}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _summary(funnel: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in funnel.items())
