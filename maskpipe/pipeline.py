"""prepare: the only file that knows all the steps.

    P0 read      sources ─▶ chunks of about 4 MiB of records, the same for any number of workers
    P1 map       chunk ─▶ documents, in a pool of processes; one stage file per chunk
    P2 plan      which documents go where (selection.py); lengths ─▶ rows, partition by partition, and one pass over the
                 rows that stayed badly filled
    P3 write     rows ─▶ shards, in the pool
    P4 publish   the ledger must add up; the manifest is last; the whole directory appears under its name at once

Everything is made in OUT.partial (partial.py) and the finished directory is renamed to OUT, so OUT is either absent or
whole. Each map and write leaves a commit record there (commit.py): the same command, run again after whatever ended it,
does not do them again. Same recipe and input, same bytes: chunks, partitions and shards depend on the data alone, and
results are taken in the order of the chunks. What grows with the input is on the disk, lengths apart.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maskpipe import card, commit, summary
from maskpipe.backends import Backend
from maskpipe.durable import make_directory, sync_directory
from maskpipe.errors import MaskpipeError
from maskpipe.findings import Finding
from maskpipe.guard import Limits
from maskpipe.job import (
    TEMPLATE,
    describe,
    is_published,
    published_manifests,
    published_names,
    stopped,
    versions,
)
from maskpipe.keys import are_needed
from maskpipe.mapping import Progress, Tally, map_chunks, nothing_left, settle_backend
from maskpipe.partial import Partial, claim, partial_of, read_job, refuse_taken, take_over
from maskpipe.partitions import plan_shards
from maskpipe.pool import Pool, count_workers
from maskpipe.recipe import Recipe
from maskpipe.records import Mapped
from maskpipe.selection import (
    TOKENS_REPEATED,
    ChunkDocuments,
    Selection,
    Side,
    check_sides,
)
from maskpipe.shards.chunks import chunk_lines
from maskpipe.shards.format import (
    CHUNKS,
    DROPPED,
    DUPLICATES,
    REJECTS,
    RUN_FILE,
)
from maskpipe.shards.manifest import Manifest, ShardRecord, Source, json_lines
from maskpipe.shards.writer import publish
from maskpipe.sources import Sources
from maskpipe.tasks import (
    FitTask,
    find_write,
    run_fit,
    run_write,
    write_task,
)
from maskpipe.tokenizer import Tokenizer


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
    backend: Backend = field(default_factory=Backend)
    """Who computed the ids, and why it was not another one."""
    validation: Manifest | None = None
    """Of the other side, where the recipe splits: `manifest` is then that of `path`/train."""

    def __str__(self) -> str:
        return summary.of_dataset(self)


def prepare(
    source: Any,
    out: str | Path,
    *,
    tokenizer: Tokenizer | str | Path,
    recipe: Recipe | None = None,
    split: str | None = None,
    workers: int | None = None,
    proof: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Reads `source` (paths, a datasets.Dataset, or an iterable of dicts) and publishes the dataset `out`.

    workers: processes, by default one per core; the bytes do not depend on it. With 0 all is done in this process,
    where nothing limits what a template or a record may cost. limits: what one record may cost before it is rejected.
    proof: prove the provenance of this many conversations by shadow rendering, -1 for all. With `validation` in the
    recipe, `out` holds two datasets, train and validation.

    Raises UsageError, RecordError (a bad record, unless the recipe rejects those), TokenizerError, TemplateError,
    DatasetError, or MaskpipeError for a disk that is full or fails; then nothing is published, and what is finished
    stays in `out`.partial for the next run of the same preparation.
    """
    begun = time.monotonic()
    final = Path(os.path.abspath(out))
    if not is_published(final):
        refuse_taken(out)
    asked = describe(source, tokenizer, recipe, split)
    recipe, tokenizer, sources, job = asked.recipe, asked.tokenizer, asked.sources, asked.name
    if is_published(final):
        return _finished(final, out, job, begun)
    partial = claim(final, job, asked.identity, published_names(tokenizer, recipe))
    try:
        with Pool(count_workers(workers), tokenizer, asked.worker_recipe, limits) as pool:
            findings = [Finding(*pair) for _, found in pool.run("fit", run_fit, [FitTask()]) for pair in found]
            tally = Tally()
            chunks, backend = settle_backend(pool, sources.chunks())
            map_chunks(pool, sources, chunks, backend, partial, job, proof, tally, progress)
            if not tally.documents:
                raise nothing_left(tally)
            sides = _select(tally, partial, recipe, sources)
            if progress is not None:
                progress(tally.seen("write", 1.0, pool.found.total()))
            shards = [_write(pool, side, partial, job, recipe, tokenizer) for side in sides]
            finished: dict[str, dict[str, Any]] = {
                "attempts": dict(pool.attempts),
                "found": dict(pool.found),
                "faults": dict(pool.faults),
            }
            finished["busy_seconds"] = {kind: round(seconds, 2) for kind, seconds in pool.busy.items()}
            finished["span_seconds"] = {kind: round(seconds, 2) for kind, seconds in pool.span.items()}
        tally.counts.update(sources.counts)
        run = {
            "backend": dataclasses.asdict(backend),
            "findings": [str(finding) for finding in findings],
            "tasks": finished,
            "tokenizer": tokenizer.name,
            "workers": pool.workers,
        }
        manifests = [
            _publish(partial, tally, side, written, sources, tokenizer, recipe, run, begun)
            for side, written in zip(sides, shards, strict=True)
        ]
        os.rename(partial.dataset, final)
        sync_directory(final.parent)
        partial.remove()
    except BaseException as error:
        raise stopped(partial, error) from None
    finally:
        partial.close()
    counts = tally.counts + sum(sides[0].counts, Counter[str]())
    seconds = time.monotonic() - begun
    return Prepared(final, manifests[0], counts, findings, tally.examples(), seconds, backend, *manifests[1:])


def _finished(final: Path, out: str | Path, job: str, begun: float) -> Prepared:
    """Ends that run for it, if it was the same job."""
    if (read_job(partial_of(final)) or {}).get("job") != job:
        refuse_taken(out)
    partial = take_over(partial_of(final))
    try:
        partial.remove()
    finally:
        partial.close()
    paths = published_manifests(final)
    manifests = [Manifest.from_json(path.read_bytes(), str(path)) for path in paths]
    run = json.loads((paths[0].parent / RUN_FILE).read_bytes())
    tally = Tally()
    with (paths[0].parent / REJECTS).open(encoding="utf-8") as lines:
        for line in lines:
            tally.add_example(json.loads(line))
    findings = [Finding(*text.split(" ", 1)) for text in run["findings"]]
    seconds, backend = time.monotonic() - begun, Backend(**run["backend"])
    counts = Counter(run["counts"])
    return Prepared(final, manifests[0], counts, findings, tally.examples(), seconds, backend, *manifests[1:])


# -- P2 and P3: plan and write


def _select(tally: Tally, partial: Partial, recipe: Recipe, sources: Sources) -> list[Side]:
    """The datasets to write: one, or train and validation."""
    if not are_needed(recipe):
        return [Side("", tally.stages, tally.kept, Counter(), [Counter() for _ in tally.stages])]

    def documents(number: int) -> ChunkDocuments:
        part = Mapped.from_dict(commit.get(partial.commits, tally.tasks[number])["mapped"])
        return ChunkDocuments(tally.stages[number].name, part.lengths, part.document_keys, tally.stages[number].units)

    tally.selection = Selection(tally.keys, recipe, sources.weights)
    sides = tally.selection.sides(documents)
    check_sides(sides, recipe)
    for side in sides:
        if side.name:
            make_directory(partial.dataset / side.name)
    return sides


def _write(pool: Pool, side: Side, partial: Partial, job: str, recipe: Recipe, tokenizer: Tokenizer) -> ShardRecords:
    settings = {
        "sequence_length": recipe.sequence_length,
        "pad_id": tokenizer.pad_id,
        "vocab_size": tokenizer.vocab_size,
        "recipe_fingerprint": recipe.fingerprint(),
    }
    plans = enumerate(plan_shards(side.stages, recipe))
    folder = str((partial.dataset / side.name).relative_to(partial.path))
    tasks = (write_task(partial.path, job, folder, number, shard, settings) for number, shard in plans)
    return ShardRecords(partial.commits, [name for _, name in pool.run("write", run_write, tasks, find_write)])


class ShardRecords(Sequence[ShardRecord]):
    """The shards' records, read from their commits when they are looked at: row digests need not fit in memory."""

    def __init__(self, commits: Path, tasks: list[str]) -> None:
        self._commits = commits
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: Any) -> Any:
        return ShardRecord.from_dict(commit.get(self._commits, self._tasks[index]))


# -- P4: publish


def _publish(
    partial: Partial,
    tally: Tally,
    side: Side,
    shards: ShardRecords,
    sources: Sources,
    tokenizer: Tokenizer,
    recipe: Recipe,
    run: dict[str, Any],
    begun: float,
) -> Manifest:
    def chunk(number: int, part: Mapped) -> bytes:
        entry = part.entry
        return chunk_lines([replace(entry, counts=Counter(entry.counts) + side.counts[number])])

    files: dict[str, bytes | Path] = {
        **tokenizer.files,
        REJECTS: _gathered(partial, tally, REJECTS, lambda number, part: json_lines(part.rejects)),
        DROPPED: _gathered(partial, tally, DROPPED, lambda number, part: json_lines(part.dropped)),
        CHUNKS: _gathered(partial, tally, CHUNKS, chunk),
    }
    if recipe.deduplicate and tally.selection is not None:
        files[DUPLICATES] = partial.path / DUPLICATES
        with (partial.path / DUPLICATES).open("wb") as file:
            file.writelines(json_lines([duplicate._asdict()]) for duplicate in tally.selection.duplicates())
    if recipe.chat_template is not None:
        files[TEMPLATE] = recipe.chat_template.encode()
    manifest = Manifest.build(
        shards,
        recipe=recipe,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        sources=[Source(origin.name, origin.sha256, origin.records) for origin in sources.origins],
        records_kept=side.kept,
        rejected=tally.rejected,
        left_out=tally.left_out + side.left_out,
        dropped=tally.dropped,
        files=files,
        role_names=sorted(tally.role_names),
    )
    counts = tally.counts + sum(side.counts, Counter[str]())
    _check_ledger(manifest, tally, counts)
    run = {
        **run,
        "counts": dict(sorted(counts.items())),
        "machine": _machine(),
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - begun, 1),
        "versions": versions(),
    }
    partial.clear_dataset({shard.name for shard in manifest.shards}, side.name)
    publish(partial.dataset / side.name, manifest, files=files, card=card.of(manifest, counts), run=run)
    return manifest


def _gathered(partial: Partial, tally: Tally, name: str, lines: Callable[[int, Mapped], bytes]) -> Path:
    """A file of lines from all chunks, gathered from their commits one at a time."""
    path = partial.path / name
    with path.open("wb") as file:
        for number, task in enumerate(tally.tasks):
            file.write(lines(number, Mapped.from_dict(commit.get(partial.commits, task)["mapped"])))
    return path


def _check_ledger(manifest: Manifest, tally: Tally, counts: Counter[str]) -> None:
    """Every record and every token is in the shards or counted where it went."""
    records = manifest.records_kept + sum(manifest.rejected.values()) + sum(manifest.left_out.values())
    if records != manifest.records:
        raise MaskpipeError(f"the ledger does not add up: {manifest.records:,} records read, {records:,} accounted for")
    gone = sum(
        count for name, count in counts.items() if name == "tokens_truncated" or name.startswith("tokens_dropped_")
    )
    repeated = counts[TOKENS_REPEATED]
    if manifest.totals.n_tokens + gone != counts["tokens"] + repeated:
        raise MaskpipeError(
            f"the ledger does not add up: {counts['tokens']:,} tokens made and {repeated:,} repeated, "
            f"{manifest.totals.n_tokens:,} in the shards and {gone:,} counted as cut or dropped"
        )
    loss = tally.loss_tokens
    if not repeated and manifest.totals.n_loss > loss:
        raise MaskpipeError(
            f"the ledger does not add up: {loss:,} loss tokens made, {manifest.totals.n_loss:,} in the shards"
        )


def _machine() -> str:
    """System, release and processor. platform.platform() would run a program to find out."""
    here = os.uname()
    return f"{here.sysname} {here.release} {here.machine}"
