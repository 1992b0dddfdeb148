"""prepare: the only file that knows all the steps.

    P0 read      sources ─▶ chunks of about 4 MiB of records, the same for any number of workers
    P1 map       chunk ─▶ documents, in a pool of processes; one stage file per chunk
    P2 plan      lengths ─▶ rows, partition by partition, and one pass over the rows that stayed badly filled
    P3 write     rows ─▶ shards, in the pool
    P4 publish   the ledger must add up; the manifest is last; the whole directory appears under its name at once

Everything is made in OUT.tmp-<pid> and renamed to OUT, so OUT is either absent or whole. Same recipe and input, same
bytes: chunks, partitions and shards depend on the data alone, and results are taken in the order of the chunks.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import maskpipe
from maskpipe import card, summary
from maskpipe.chat import Conversation, read_record
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, RecordError, UsageError
from maskpipe.fit import Finding, check_fit
from maskpipe.pack import Pieces, plan
from maskpipe.recipe import Recipe
from maskpipe.shards.documents import documents_to_table
from maskpipe.shards.format import DOCUMENT_SCHEMA
from maskpipe.shards.manifest import Manifest, ShardRecord, Source, json_lines
from maskpipe.shards.writer import create_directory, publish, write_shard
from maskpipe.sources import Chunk, Sources, open_sources
from maskpipe.template.render import wrap
from maskpipe.template.shadow import prove
from maskpipe.template.spans import read_template
from maskpipe.tokenizer import Tokenizer

PARTITION_TOKENS = 1 << 25
"""Tokens packed together: at least 1,000 sequences cost 0.1 % more padding than packing all at once (DESIGN §7)."""
PARTITION_SEQUENCES = 1000
FULL = 0.95
"""A row filled less is packed again with the others like it, across partitions."""
SHARD_BYTES = 1 << 28

Progress = Callable[[int, int, int], None]
"""Called with (records, bytes of records, rejected) as the map step goes on."""


@dataclass
class Prepared:
    """What a preparation made. `print(prepared)` is the summary that the command line shows."""

    path: Path
    manifest: Manifest
    counts: Counter[str]
    """Tokens made, truncated and dropped, control tokens neutralised, fields lost, proofs, …"""
    findings: list[Finding]
    """Where template and tokenizer do not fit each other."""
    rejects: list[dict[str, Any]]
    """The first rejected record of each reason, and some more: source, row, reason, message."""
    seconds: float = 0.0

    def __str__(self) -> str:
        return summary.of_dataset(self)


@dataclass
class Trial:
    """What `dry_run` found in the first records; nothing was written."""

    records: int
    kept: int
    counts: Counter[str]
    documents: int
    tokens: int
    loss_tokens: int
    sequences: int
    runs: int
    """Stretches of tokens with the same facts: what files keep facts as."""
    ended: bool
    """The sources hold no further records."""
    sequence_length: int
    rejected: Counter[str]
    findings: list[Finding]
    rejects: list[dict[str, Any]]
    seconds: float

    def __str__(self) -> str:
        return summary.of_trial(self)


@dataclass
class _Mapped:
    """What the map step made of one chunk."""

    lengths: npt.NDArray[np.int64]  # [documents]
    stage: str
    records: int
    kept: int
    bytes: int
    counts: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    role_names: set[str] = field(default_factory=set)
    loss_tokens: int = 0
    runs: int = 0


def prepare(
    source: Any,
    out: str | Path,
    *,
    tokenizer: Tokenizer | str | Path,
    recipe: Recipe | None = None,
    split: str | None = None,
    workers: int | None = None,
    proof: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Reads `source` (paths, a datasets.Dataset, or an iterable of dicts) and publishes the dataset `out`.

    workers: processes, by default one per core; the bytes do not depend on it. proof: prove the provenance of this many
    conversations by shadow rendering, -1 for all. Raises UsageError, RecordError (a bad record, unless the recipe
    rejects those), TokenizerError, TemplateError or DatasetError; then nothing is published.
    """
    begun = time.monotonic()
    recipe, tokenizer, encoder = _resolve(recipe, tokenizer)
    findings = check_fit(encoder)
    final = _target(out)
    sources = open_sources(source, recipe, split=split)
    work = create_directory(final.parent / f"{final.name}.tmp-{os.getpid()}")
    stage = work / ".stage"
    stage.mkdir()
    try:
        with _Pool(_workers(workers), encoder) as pool:
            mapped = list(_map(pool, sources, stage, proof, progress))
            if not any(len(part.lengths) for part in mapped):
                raise _nothing_left(mapped)
            shards = list(_write(pool, mapped, stage, work, recipe, tokenizer))
        manifest = _publish(work, mapped, shards, sources, tokenizer, encoder, recipe, findings, begun, pool.workers)
        _remove_stage(stage)
        os.rename(work, final)
    except BaseException:
        _remove(work)
        raise
    counts = sum((part.counts for part in mapped), Counter(sources.counts))
    rejects = _examples([entry for part in mapped for entry in part.rejects])
    return Prepared(final, manifest, counts, findings, rejects, time.monotonic() - begun)


def dry_run(
    source: Any,
    *,
    tokenizer: Tokenizer | str | Path,
    recipe: Recipe | None = None,
    split: str | None = None,
    records: int = 1000,
    proof: int | None = None,
) -> Trial:
    """What `prepare` would make of the first records, in this process, without writing anything."""
    begun = time.monotonic()
    recipe, tokenizer, encoder = _resolve(recipe, tokenizer)
    findings = check_fit(encoder)
    total = _Mapped(np.zeros(0, np.int64), "", 0, 0, 0)
    lengths: list[int] = []
    ended = True
    for chunk in open_sources(source, recipe, split=split).chunks():
        if total.records >= records:
            ended = False
            break
        left = records - total.records
        ended = chunk.count <= left
        _map_chunk(encoder, chunk, total, lengths, None, left, proof)
    rows = plan(lengths, recipe.sequence_length, recipe.packing).rows if lengths else 0
    return Trial(
        records=total.records, kept=total.kept, counts=total.counts, documents=len(lengths), tokens=sum(lengths),
        loss_tokens=total.loss_tokens, sequences=rows, runs=total.runs, ended=ended,
        sequence_length=recipe.sequence_length, rejected=Counter(entry["reason"] for entry in total.rejects),
        findings=findings, rejects=_examples(total.rejects), seconds=time.monotonic() - begun,
    )  # fmt: skip


def _resolve(recipe: Recipe | None, tokenizer: Tokenizer | str | Path) -> tuple[Recipe, Tokenizer, Encoder]:
    """The recipe with the template's text in it, the tokenizer, and what encodes with both."""
    recipe = recipe or Recipe()
    if recipe.objective == "preference":
        raise UsageError("objective 'preference' is not available yet; use 'sft' or 'pretrain'")
    if recipe.chat_template is not None:
        recipe = recipe.replace(chat_template=read_template(recipe.chat_template))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    encoder = Encoder(tokenizer, recipe)
    if recipe.objective == "sft":
        _ = encoder.template  # a missing one is said before anything is read
    return recipe, tokenizer, encoder


def encoder_of(tokenizer: Tokenizer | str | Path, recipe: Recipe | None = None) -> Encoder:
    """What `prepare` would encode records with. Raises what `prepare` raises before it reads anything."""
    return _resolve(recipe, tokenizer)[2]


def _target(out: str | Path) -> Path:
    path = Path(os.path.abspath(out))
    if path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists() or path.is_symlink():
        raise UsageError(f"{out} is already there; nothing is overwritten: choose a new directory")
    return path


def _workers(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    return workers


# -- P1: map


def _map(pool: _Pool, sources: Sources, stage: Path, proof: int | None, progress: Progress | None) -> Iterator[_Mapped]:
    """Results in the order of the chunks, at most a few chunks in memory at a time."""
    seen = Counter[str]()
    numbered = ((f"{number:06d}.arrow", chunk) for number, chunk in enumerate(sources.chunks()))
    for part in pool.run(_map_task, ((chunk, str(stage / name), proof) for name, chunk in numbered)):
        seen.update(records=part.records, bytes=part.bytes, rejected=part.records - part.kept)
        if progress is not None:
            progress(seen["records"], seen["bytes"], seen["rejected"])
        yield part


def _map_task(encoder: Encoder, chunk: Chunk, stage: str, proof: int | None) -> _Mapped:
    out = _Mapped(np.zeros(0, np.int64), stage, 0, 0, len(chunk.payload))
    lengths: list[int] = []
    with pa.OSFile(stage, "wb") as file, pa.ipc.new_file(file, DOCUMENT_SCHEMA) as writer:
        _map_chunk(encoder, chunk, out, lengths, writer, None, proof)
    out.lengths = np.array(lengths, np.int64)
    return out


def _map_chunk(
    encoder: Encoder, chunk: Chunk, out: _Mapped, lengths: list[int], writer: Any, limit: int | None, proof: int | None
) -> None:
    """Adds what becomes of a chunk's records to `out`."""
    documents = []
    for row, record in chunk.records():
        if limit is not None and limit <= 0:
            break
        limit = None if limit is None else limit - 1
        out.records += 1
        try:
            if isinstance(record, RecordError):
                raise record
            parsed = _parsed(record, encoder.recipe, chunk, row)
        except RecordError as error:
            if encoder.recipe.on_bad_record == "stop":
                raise RecordError(
                    f"{error}. To list such records in rejects.jsonl and go on: --on-bad-record reject", error.reason
                ) from None
            _reject(out, chunk, row, error)
            continue
        encoded = encoder.encode(parsed)
        out.counts.update(encoded.counts)
        out.dropped += [
            {"source": chunk.source, "row": row, "turn": turn, "policy": why} for turn, why in encoded.dropped
        ]
        if encoded.refused is not None:
            _reject(out, chunk, row, RecordError(f"{chunk.place(row)}: {encoded.refused}", encoded.refused.reason))
            continue
        out.kept += 1
        out.loss_tokens += sum(int(document.loss_mask.sum()) for document in encoded.documents)
        lengths += [len(document) for document in encoded.documents]
        if isinstance(parsed, Conversation):
            out.role_names |= {str(m["role"]) for m in parsed.messages if m["role"] not in _STANDARD_ROLES}
            if proof is not None and (proof < 0 or row < proof):
                _prove(encoder, parsed, out, chunk.place(row))
        if writer is None:
            out.runs += sum(map(_n_runs, encoded.documents))
        else:
            documents += encoded.documents
            if len(documents) >= 512:
                writer.write_table(documents_to_table(documents))
                documents = []
    if writer is not None and documents:
        writer.write_table(documents_to_table(documents))
    out.counts.update(chunk.counts)


def _n_runs(document: Document) -> int:
    facts = (document.role_ids, document.part_ids, document.flags, document.message_ids)
    return 1 + int(np.count_nonzero(np.any([np.diff(fact) != 0 for fact in facts], axis=0)))


def _examples(rejects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each reason, then the first others: 20, or as many as there are reasons."""
    firsts = {entry["reason"]: entry for entry in reversed(rejects)}
    others = [entry for entry in rejects if firsts[entry["reason"]] is not entry]
    return [*reversed(firsts.values()), *others[: max(0, 20 - len(firsts))]]


_STANDARD_ROLES = ("system", "developer", "user", "assistant", "tool")


def _parsed(record: Any, recipe: Recipe, chunk: Chunk, row: int) -> Any:
    try:
        return read_record(record, recipe, source=chunk.source, row=row)
    except RecordError as error:
        raise RecordError(f"{chunk.place(row)}: {error}", error.reason) from None


def _reject(out: _Mapped, chunk: Chunk, row: int, error: RecordError) -> None:
    out.rejects.append({"source": chunk.source, "row": row, "reason": error.reason, "message": str(error)})


def _prove(encoder: Encoder, conversation: Conversation, out: _Mapped, place: str) -> None:
    given = {
        "tools": conversation.tools,
        "documents": conversation.documents,
        "kwargs": {**encoder.recipe.chat_template_kwargs, **conversation.chat_template_kwargs},
    }
    engine = encoder.template.engine
    trace = engine.trace(wrap(conversation.messages, **given))  # type: ignore[arg-type]
    proof = prove(engine, trace, conversation.messages, **given)  # type: ignore[arg-type]
    out.counts[f"proof_{proof.outcome}"] += 1
    if proof.outcome == "differs":
        raise MaskpipeError(f"{place}: provenance is not proved: {proof.detail}. Please report this template")


def _nothing_left(mapped: list[_Mapped]) -> RecordError:
    rejects = [entry for part in mapped for entry in part.rejects]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(e["reason"] for e in rejects).most_common())
    return RecordError(
        f"no record is left of {sum(part.records for part in mapped):,} ({reasons}); nothing was written. The first: "
        f"{rejects[0]['message']}",
        reason="nothing_left",
    )


# -- P2 and P3: plan and write


def _partitions(mapped: list[_Mapped], recipe: Recipe) -> list[list[_Mapped]]:
    """Runs of chunks with enough tokens to be packed on their own."""
    enough = max(PARTITION_TOKENS, PARTITION_SEQUENCES * recipe.sequence_length)
    out: list[list[_Mapped]] = [[]]
    tokens = 0
    for part in mapped:
        if not len(part.lengths):
            continue
        if tokens >= enough:
            out.append([])
            tokens = 0
        out[-1].append(part)
        tokens += int(part.lengths.sum())
    return out


def _write(
    pool: _Pool, mapped: list[_Mapped], stage: Path, work: Path, recipe: Recipe, tokenizer: Tokenizer
) -> Iterator[ShardRecord]:
    tasks: list[tuple[list[tuple[str, npt.NDArray[np.int64] | None]], Pieces]] = []
    partitions = _partitions(mapped, recipe)
    left_stages: list[tuple[str, npt.NDArray[np.int64]]] = []
    for partition in partitions:
        lengths = np.concatenate([part.lengths for part in partition])
        pieces = plan(lengths, recipe.sequence_length, recipe.packing)
        if len(partitions) > 1 and recipe.packing in ("best_fit", "first_fit"):
            pieces, left = _set_apart(pieces, lengths, recipe.sequence_length)
            left_stages += _by_stage(partition, left)
        tasks += [([(part.stage, None) for part in partition], one) for one in _shards_of(pieces, recipe)]
    if left_stages:
        by_name = {part.stage: part.lengths for part in mapped}
        lengths = np.concatenate([by_name[name][rows] for name, rows in left_stages])
        pieces = plan(lengths, recipe.sequence_length, recipe.packing)
        tasks += [([*left_stages], one) for one in _shards_of(pieces, recipe)]
    settings = {
        "sequence_length": recipe.sequence_length,
        "pad_id": tokenizer.pad_id,
        "vocab_size": tokenizer.vocab_size,
        "recipe_fingerprint": recipe.fingerprint(),
    }
    yield from pool.run(_write_task, ((str(work), number, *task, settings) for number, task in enumerate(tasks)))


def _set_apart(
    pieces: Pieces, lengths: npt.NDArray[np.int64], sequence_length: int
) -> tuple[Pieces, npt.NDArray[np.int64]]:
    """The well filled rows, and the documents of the others in their order."""
    row_of = np.repeat(np.arange(pieces.rows), np.diff(pieces.row_offsets))
    filled = np.bincount(row_of, weights=lengths[pieces.documents], minlength=pieces.rows)
    full = filled >= FULL * sequence_length
    keep = full[row_of]
    offsets = np.concatenate(([0], np.cumsum(np.diff(pieces.row_offsets)[full]))).astype(np.int64)
    kept = Pieces(pieces.documents[keep], pieces.starts[keep], pieces.stops[keep], offsets)
    return kept, np.sort(pieces.documents[~keep])


def _by_stage(partition: list[_Mapped], documents: npt.NDArray[np.int64]) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """The same documents as (stage file, rows in it)."""
    out = []
    first = 0
    for part in partition:
        inside = documents[(documents >= first) & (documents < first + len(part.lengths))] - first
        if len(inside):
            out.append((part.stage, inside))
        first += len(part.lengths)
    return out


def _shards_of(pieces: Pieces, recipe: Recipe) -> Iterator[Pieces]:
    """The plan cut into shards of at most SHARD_BYTES of ids."""
    rows = max(1, SHARD_BYTES // (4 * recipe.sequence_length))
    for first in range(0, pieces.rows, rows):
        offsets = pieces.row_offsets[first : first + rows + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        yield Pieces(pieces.documents[begin:end], pieces.starts[begin:end], pieces.stops[begin:end], offsets - begin)


def _write_task(
    encoder: Encoder, work: str, number: int, stages: list[tuple[str, Any]], pieces: Pieces, settings: dict[str, Any]
) -> ShardRecord:
    tables = []
    for name, rows in stages:
        with pa.memory_map(name) as file:
            table = pa.ipc.open_file(file).read_all()
        tables.append(table if rows is None else table.take(pa.array(rows)))
    return write_shard(work, number, pa.concat_tables(tables), pieces, **settings)


# -- P4: publish


def _publish(
    work: Path,
    mapped: list[_Mapped],
    shards: list[ShardRecord],
    sources: Sources,
    tokenizer: Tokenizer,
    encoder: Encoder,
    recipe: Recipe,
    findings: list[Finding],
    begun: float,
    workers: int,
) -> Manifest:
    rejects = [entry for part in mapped for entry in part.rejects]
    dropped = [entry for part in mapped for entry in part.dropped]
    files: dict[str, bytes | Path] = {
        **tokenizer.files,
        "rejects.jsonl": json_lines(rejects),
        "dropped.jsonl": json_lines(dropped),
    }
    if recipe.chat_template is not None:
        files["template.jinja"] = recipe.chat_template.encode()
    manifest = Manifest.build(
        shards,
        recipe=recipe,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        sources=[Source(origin.name, origin.sha256, origin.records) for origin in sources.origins],
        records_kept=sum(part.kept for part in mapped),
        rejected=Counter(entry["reason"] for entry in rejects),
        dropped=Counter(entry["policy"] for entry in dropped),
        files=files,
        role_names=sorted(set().union(*(part.role_names for part in mapped))),
    )
    counts = sum((part.counts for part in mapped), Counter[str](sources.counts))
    _check_ledger(manifest, counts, mapped)
    run = {
        "counts": dict(sorted(counts.items())),
        "findings": [str(finding) for finding in findings],
        "machine": platform.platform(),
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - begun, 1),
        "tokenizer": tokenizer.name,
        "versions": _versions(),
        "workers": workers,
    }
    publish(work, manifest, files=files, card=card.of(manifest, counts), run=run)
    return manifest


def _check_ledger(manifest: Manifest, counts: Counter[str], mapped: list[_Mapped]) -> None:
    """Every record and every token is in the shards or counted where it went."""
    records = manifest.records_kept + sum(manifest.rejected.values())
    if records != manifest.records:
        raise MaskpipeError(f"the ledger does not add up: {manifest.records:,} records read, {records:,} accounted for")
    gone = sum(
        count for name, count in counts.items() if name == "tokens_truncated" or name.startswith("tokens_dropped_")
    )
    if manifest.totals.n_tokens + gone != counts["tokens"]:
        raise MaskpipeError(
            f"the ledger does not add up: {counts['tokens']:,} tokens made, {manifest.totals.n_tokens:,} in the shards "
            f"and {gone:,} counted as cut or dropped"
        )
    loss = sum(part.loss_tokens for part in mapped)
    if manifest.totals.n_loss > loss:
        raise MaskpipeError(
            f"the ledger does not add up: {loss:,} loss tokens made, {manifest.totals.n_loss:,} in the shards"
        )


def _versions() -> dict[str, str]:
    names = ("tokenizers", "jinja2", "pyarrow", "numpy")
    return {"maskpipe": maskpipe.__version__, **{name: importlib.metadata.version(name) for name in names}}


def _remove_stage(stage: Path) -> None:
    for file in stage.iterdir():
        file.unlink()
    stage.rmdir()


def _remove(work: Path) -> None:
    """Takes away what this run made in its own directory."""
    if not work.is_dir():
        return
    stage = work / ".stage"
    if stage.is_dir():
        _remove_stage(stage)
    for file in work.iterdir():
        file.unlink()
    work.rmdir()


# -- the pool


class _Pool:
    """Runs task functions in processes and yields their results in the order given; with one worker, in this one.

    Processes start when there is a second task: a small input does not pay for them.
    """

    def __init__(self, workers: int, encoder: Encoder) -> None:
        self.workers = workers
        self._encoder = encoder
        self._executor: ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        iterator = iter(tasks)
        first = next(iterator, None)
        if first is None:
            return
        second = next(iterator, None) if self.workers > 1 else None
        if second is None:
            yield function(self._encoder, *first)
            for task in iterator:
                yield function(self._encoder, *task)
            return
        waiting: list[Future[Any]] = [self._submit(function, first), self._submit(function, second)]
        try:
            for task in iterator:
                waiting.append(self._submit(function, task))
                while len(waiting) > 2 * self.workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        except BrokenProcessPool:
            raise MaskpipeError(
                "a worker process died (out of memory, or killed); nothing was published. Try fewer --workers"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _submit(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Future[Any]:
        if self._executor is None:
            tokenizer = self._encoder.tokenizer
            given = (dict(tokenizer.files), tokenizer.name, self._encoder.recipe)
            self._executor = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _start_worker, given
            )
        return self._executor.submit(_in_worker, function, task)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


_worker_encoder: Encoder | None = None


def _start_worker(files: dict[str, bytes], name: str, recipe: Recipe) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core: threads inside would fight for it
    _worker_encoder = Encoder(Tokenizer(files, name), recipe)


def _in_worker(function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    assert _worker_encoder is not None
    return function(_worker_encoder, *task)
