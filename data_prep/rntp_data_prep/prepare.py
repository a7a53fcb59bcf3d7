"""The preparation, top to bottom: sources in, a verified corpus and a ledger of drops out.

    1. every source, in parallel     read → extract → clean → filter → mask → count tokens
    2. near-duplicates, if asked     signatures → buckets → clusters (datatrove's MinHash)
    3. all parts, in order           exact duplicates → decontamination → shards

Parts lie in a hidden folder beside the output until the corpus is published. A part is whole or
does not exist (`rntp_data_prep.books`), so a preparation that was killed goes on with the same
command, and gives the corpus that an undisturbed one gives.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rntp.data.manifest import Manifest
from rntp.data.manifest_writer import ShardWriter
from rntp.data.shard_format import MANIFEST_NAME
from rntp.errors import DataError
from rntp_data_prep.config import PrepConfig, is_hub
from rntp_data_prep.decontaminate import Benchmarks
from rntp_data_prep.executors import Execute, local
from rntp_data_prep.extract import extractor_version
from rntp_data_prep.packages import module
from rntp_data_prep.page import Options
from rntp_data_prep.progress import Pace, joined, told, weights
from rntp_data_prep.texts import RULES_VERSION

LEDGER_NAME = "rejects.jsonl"
REPORT_NAME = "decontamination.json"

_BUCKETS = 14

Encode = Callable[[str], Sized]


def prepare(
    config: PrepConfig,
    encode: Encode,
    tokenizer_digest: str,
    progress: Callable[[str], None],
    execute: Execute | None = None,
) -> Manifest:
    """Write the corpus of `config` to its output folder; returns it opened.

    encode: text to token ids without special tokens; only their number is used, unless
    `token_ids` keeps them. progress: is given lines for people. execute: who runs the tasks, see
    `rntp_data_prep.executors`; this machine by default. Where the output already holds the corpus
    of these sources, settings and tokenizer, nothing is read but the sources' hashes. The same
    input gives the same manifest digest, with any number of workers.

    The funnel of the manifest counts: `pages` read, `kept`, `rejected/REASON`, and
    `neutralised_markers`, the special-token strings that were made ordinary text. The output
    folder's rejects.jsonl names every page that was left out, with the reason.

    Raises DataError for a source that is missing, damaged or without a page, for an empty corpus,
    and for an output folder that holds something else; ConfigError for a package that is missing.
    """
    sources = config.source_files()
    version = extractor_version(config.extractor)
    module("datatrove")
    workers = config.workers or os.cpu_count() or 1
    with _claimed(config.output) as work:
        paths = [_fetched(source, work, progress) for source in sources]
        options = [config.options(source) for source in sources]
        source_digests = _check(paths, options, workers, progress)
        benchmarks = Benchmarks(config.decontaminate)
        names = [path if is_hub(path) else Path(path).name for path in paths]
        others = [Manifest.load(folder) for folder in config.apart_from]
        prep_digest = _prep_digest(config, names, source_digests, version, benchmarks, others)
        if (config.output / MANIFEST_NAME).is_file():
            return _finished(config, prep_digest, tokenizer_digest, progress)
        keys = [
            _digest([prep_digest, name, digest, tokenizer_digest])
            for name, digest in zip(names, source_digests, strict=True)
        ]
        execute = execute or local(workers)
        folders = _prepare_parts(config, encode, paths, options, keys, work, execute, progress)
        removed = None
        if config.dedup == "minhash":
            removed = _near_duplicates(folders, work, execute, progress)
        with ShardWriter(
            config.output,
            shard_bytes=config.shard_bytes,
            tokenizer_digest=tokenizer_digest,
            tokenizer_spec=config.tokenizer,
            prep_digest=prep_digest,
            with_ids=config.token_ids,
        ) as writer:
            known = frozenset(name for other in others for name in other.document_ids)
            funnel = _write_documents(folders, removed, benchmarks, known, writer, keys, progress)
            if funnel["kept"] == 0:
                raise DataError(
                    f"no page of {len(paths)} sources was kept ({_summary(funnel)}); lower "
                    "min_chars or min_tokens, or add sources"
                )
            manifest = writer.finish(funnel)
        shutil.rmtree(work)
    progress(
        f"wrote {manifest.num_docs} documents, {manifest.num_tokens.sum()} tokens to "
        f"{config.output} ({_summary(funnel)})"
    )
    return manifest


def _prepare_parts(
    config: PrepConfig,
    encode: Encode,
    paths: list[str],
    options: list[Options],
    keys: list[str],
    work: Path,
    execute: Execute,
    progress: Callable[[str], None],
) -> list[Path]:
    """The folders of all parts, in order, those of an earlier start among them."""
    from rntp_data_prep.books import finished
    from rntp_data_prep.steps import pipeline

    folders = [work / "parts" / f"{n:06d}-{key[:16]}" for n, key in enumerate(keys)]
    missing = [n for n, key in enumerate(keys) if finished(folders[n], key) is None]
    if len(missing) < len(keys):
        progress(f"{len(keys) - len(missing)} of {len(keys)} sources are prepared already")
    if missing:
        for n in missing:
            shutil.rmtree(folders[n], ignore_errors=True)
        chosen = [[items[n] for n in missing] for items in (paths, options, folders, keys)]
        steps = pipeline(config, encode, *chosen)  # type: ignore[arg-type]
        shares = weights(paths)
        pace = Pace(done=1 - sum(shares[n] for n in missing))
        with told(lambda: _parts_line(paths, folders, missing, pace, shares), progress):
            execute(steps, len(missing), work / "logs")
    left = sum(finished(folder, key) is None for folder, key in zip(folders, keys, strict=True))
    if left:
        raise DataError(
            f"{left} of {len(keys)} sources are not prepared yet; when their tasks have run, the "
            "same command goes on"
        )
    return folders


def _near_duplicates(
    folders: list[Path], work: Path, execute: Execute, progress: Callable[[str], None]
) -> Path:
    """datatrove's MinHash over all parts; the folder that says which documents are to go."""
    module("spacy")
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    from rntp_data_prep.steps import ReadParts

    progress("looking for near-duplicates")
    config = MinhashConfig(num_buckets=_BUCKETS, hashes_per_bucket=8, n_grams=5)
    here = work / "minhash"
    shutil.rmtree(here, ignore_errors=True)
    signatures, pairs, removed = (str(here / name) for name in ("signatures", "pairs", "removed"))
    signing: list[Any] = [ReadParts(folders), MinhashDedupSignature(signatures, config)]
    execute(signing, len(folders), here / "logs-1")
    execute([MinhashDedupBuckets(signatures, pairs, config=config)], _BUCKETS, here / "logs-2")
    execute([MinhashDedupCluster(pairs, removed, config=config)], 1, here / "logs-3")
    return Path(removed)


def _write_documents(
    folders: list[Path],
    removed: Path | None,
    benchmarks: Benchmarks,
    known: Collection[str],
    writer: ShardWriter,
    keys: list[str],
    progress: Callable[[str], None],
) -> dict[str, int]:
    from rntp_data_prep.books import DROPPED, finished, kept_documents, ledger_line, unpack_ids

    rejected: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    num_pages = num_neutralised = looked_at = 0
    records = [finished(folder, key) for folder, key in zip(folders, keys, strict=True)]
    total, pace = sum(record["kept"] for record in records if record), Pace()

    def line() -> str:
        done = f"{looked_at} of {total} documents looked at, {len(writer)} written"
        return joined(done, pace.eta(looked_at / total))

    path = writer.partial_folder / LEDGER_NAME
    with open(path, "w", encoding="utf-8", newline="\n") as ledger, told(line, progress):
        for rank, (folder, record) in enumerate(zip(folders, records, strict=True)):
            assert record is not None
            num_pages += record["pages"]
            rejected.update(record["dropped"])
            notes.update(record["notes"])
            _append(folder / DROPPED, ledger)
            gone = _removed_numbers(removed, rank)
            for number, document in enumerate(kept_documents(folder)):
                looked_at += 1
                facts = document.metadata
                reason = ""
                if document.id in writer or document.id in known:  # the id is the text's hash
                    reason = "duplicate"
                elif number in gone:
                    reason = "near_duplicate"
                elif name := benchmarks.match(document.text):
                    reason = f"contaminated/{name}"
                if reason:
                    rejected[reason] += 1
                    ledger.write(ledger_line(facts["url"], facts["source"], reason))
                    continue
                num_neutralised += facts.pop("neutralised")
                num_tokens = facts.pop("num_tokens")
                ids = unpack_ids(facts.pop("token_ids")) if "token_ids" in facts else None
                writer.add(document.id, document.text, facts, num_tokens, ids)
    if num_pages != len(writer) + rejected.total():
        raise DataError(
            f"{num_pages} pages came in, {len(writer)} were kept and {rejected.total()} dropped; "
            "this is a fault of rntp, please report it"
        )
    if report := benchmarks.report():
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (writer.partial_folder / REPORT_NAME).write_text(text, encoding="utf-8")
    return {
        "pages": num_pages,
        "kept": len(writer),
        **{f"rejected/{reason}": count for reason, count in sorted(rejected.items())},
        "neutralised_markers": num_neutralised,
        **dict(sorted(notes.items())),
    }


def _removed_numbers(removed: Path | None, rank: int) -> set[int]:
    """Numbers, within a part, of the documents that datatrove's clusters leave out."""
    import numpy as np

    path = removed / f"{rank:06d}.remove" if removed else None
    if path is None or not path.is_file():
        return set()
    return set(np.fromfile(path, dtype="<u4").tolist())


def _append(path: Path, file: IO[str]) -> None:
    with open(path, encoding="utf-8", newline="\n") as part:
        shutil.copyfileobj(part, file)


def _check(
    paths: list[str], options: list[Options], workers: int, progress: Callable[[str], None]
) -> list[str]:
    from rntp_data_prep.sources import check

    progress(f"checking {len(paths)} sources")
    with ThreadPoolExecutor(workers) as pool:  # hashing and unpacking run beside each other
        return list(pool.map(check, paths, options))


def _fetched(source: str, work: Path, progress: Callable[[str], None]) -> str:
    """A local file: a URL's is fetched into the work folder, once."""
    if "://" not in source:
        return source
    import fsspec

    path = work / "fetched" / hashlib.sha256(source.encode()).hexdigest()[:16] / Path(source).name
    if not path.is_file():
        progress(f"fetching {source}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_name(f".{path.name}")
        try:
            with fsspec.open(source, "rb") as there, open(partial_path, "wb") as here:
                shutil.copyfileobj(there, here, 1 << 20)
        except (OSError, ImportError) as error:
            raise DataError(
                f"{source} cannot be fetched ({error}); check the address and the network, then "
                "give the same command again"
            ) from error
        os.replace(partial_path, path)
    return str(path)


@contextmanager
def _claimed(output: Path) -> Iterator[Path]:
    """The work folder of an output, for one process at a time; left-overs of a kill are removed."""
    work = output.parent / f".{output.name}.work"
    existed = work.exists()
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is preparing {output}; wait for it") from error
        for stale in output.parent.glob(f".{output.name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            yield work
        finally:
            # Parts are kept for the next start; nothing else is worth a folder.
            if not existed and work.exists() and not (work / "parts").exists():
                shutil.rmtree(work)


def _parts_line(
    paths: list[str], folders: list[Path], begun: list[int], pace: Pace, done: list[float]
) -> str:
    """How far the parts are. begun: those of this start, not of an earlier one."""
    from rntp_data_prep.books import RECORD, pages_so_far

    ready = [(folder / RECORD).is_file() for folder in folders]
    pages = sum(pages_so_far(folders[n]) for n in begun)
    rate = f"{pages} pages read, {pace.a_second(pages):.0f} a second" if pages else ""
    share = sum(part for part, is_ready in zip(done, ready, strict=True) if is_ready)
    return joined(f"{sum(ready)} of {len(paths)} sources are prepared", rate, pace.eta(share))


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
    config: PrepConfig,
    names: list[str],
    source_digests: list[str],
    version: str,
    benchmarks: Benchmarks,
    others: list[Manifest],
) -> str:
    """Identity of a preparation: contents and file names of the sources, settings and rules."""
    facts: dict[str, Any] = {
        "rules": RULES_VERSION,
        "extractor": version,
        "sources": [[name, d] for name, d in zip(names, source_digests, strict=True)],
        "settings": config.decisions(),
    }
    if benchmarks.digests:
        facts["benchmarks"] = benchmarks.digests
    if others:
        facts["apart_from"] = [other.digest for other in others]
    return _digest(facts)


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _summary(funnel: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in funnel.items())
