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
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import maskpipe
from maskpipe import card, commit, summary
from maskpipe.backends import Backend
from maskpipe.durable import make_directory, sync_directory
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, RecordError, TemplateError, TokenizerError, UsageError
from maskpipe.findings import Finding
from maskpipe.fit import check_fit
from maskpipe.guard import Limits
from maskpipe.keys import are_needed, compared
from maskpipe.partial import JOB, Partial, claim, partial_of, read_job, take_over
from maskpipe.partitions import Stage, plan_shards, plan_units
from maskpipe.pool import Pool, count_workers
from maskpipe.progress import Seen
from maskpipe.recipe import Recipe
from maskpipe.records import Mapped, add_records, new_batch
from maskpipe.selection import (
    TOKENS_REPEATED,
    TRAIN,
    VALIDATION,
    ChunkDocuments,
    ChunkKeys,
    Selection,
    Side,
    check_sides,
)
from maskpipe.shards.chunks import chunk_lines
from maskpipe.shards.format import (
    CARD_FILE,
    CHUNKS,
    DROPPED,
    DUPLICATES,
    FORMAT_VERSION,
    LABEL_VERSION,
    MANIFEST,
    MANIFEST_HASH,
    RECIPE,
    REJECTS,
    RUN_FILE,
)
from maskpipe.shards.manifest import Manifest, ShardRecord, Source, json_lines
from maskpipe.shards.writer import publish
from maskpipe.sources import Chunk, Sources, open_sources
from maskpipe.tasks import (
    BackendTask,
    FitTask,
    find_map,
    find_write,
    map_task,
    run_backend,
    run_fit,
    run_map,
    run_write,
    write_task,
)
from maskpipe.template.spans import read_template
from maskpipe.tokenizer import Tokenizer

EXAMPLES = 20
"""Rejected records that a summary shows at least."""
TEMPLATE = "template.jinja"

Progress = Callable[[Seen], None]
"""Called after each task."""


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
    not_tried: list[str]
    """What of the recipe is decided over all records, so not in these figures: deduplicate, validation, …"""

    def __str__(self) -> str:
        return summary.of_trial(self)


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
    recipe, tokenizer = _resolve(recipe, tokenizer)
    asked = recipe.tokenizer_backend
    recipe = recipe.replace(tokenizer_backend="auto")  # who computes the ids is no part of what the dataset is
    final = Path(os.path.abspath(out))
    if not _is_published(final):
        _refuse_taken(final, out)
    sources = open_sources(source, recipe, split=split)
    identity = _identity(recipe, tokenizer, sources, split)
    job = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    if _is_published(final):
        return _finished(final, out, job, begun)
    partial = claim(final, job, identity, _published_names(tokenizer, recipe))
    try:
        with Pool(count_workers(workers), tokenizer, recipe.replace(tokenizer_backend=asked), limits) as pool:
            findings = [Finding(*pair) for _, found in pool.run("fit", run_fit, [FitTask()]) for pair in found]
            tally = Tally()
            chunks, backend = _settle_backend(pool, sources.chunks())
            _map(pool, sources, chunks, backend, partial, job, proof, tally, progress)
            if not tally.documents:
                raise _nothing_left(tally)
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
        raise _stopped(partial, error) from None
    finally:
        partial.close()
    counts = tally.counts + sum(sides[0].counts, Counter[str]())
    seconds = time.monotonic() - begun
    return Prepared(final, manifests[0], counts, findings, tally.examples(), seconds, backend, *manifests[1:])


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
    encoder = encoder_of(tokenizer, recipe)
    recipe = encoder.recipe
    findings = check_fit(encoder)
    total = new_batch()
    tally = Tally()
    lengths: list[int] = []
    ended = True
    for chunk in open_sources(source, recipe, split=split).chunks():
        if total.records >= records:
            ended = False
            break
        left = records - total.records
        ended = chunk.count <= left
        add_records(encoder, chunk, total, lengths, None, left, proof)
    tally.add_counts(total)
    total.counts.update({f"records_{reason}": n for reason, n in total.left_out.items()})
    units = total.units.astype(np.int64) if recipe.objective == "preference" else None
    rows = plan_units(np.array(lengths, np.int32), units, recipe).rows if lengths else 0
    return Trial(
        records=total.records, kept=total.kept, counts=total.counts, documents=len(lengths), tokens=sum(lengths),
        loss_tokens=total.loss_tokens, sequences=rows, runs=total.runs, ended=ended,
        sequence_length=recipe.sequence_length, rejected=tally.rejected,
        findings=findings, rejects=tally.examples(), seconds=time.monotonic() - begun,
        not_tried=compared(recipe),
    )  # fmt: skip


def _resolve(recipe: Recipe | None, tokenizer: Tokenizer | str | Path) -> tuple[Recipe, Tokenizer]:
    """The recipe with the template's text in it, and the tokenizer."""
    recipe = recipe or Recipe()
    if recipe.chat_template is not None:
        recipe = recipe.replace(chat_template=read_template(recipe.chat_template))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    return recipe, tokenizer


def encoder_of(tokenizer: Tokenizer | str | Path, recipe: Recipe | None = None) -> Encoder:
    """What `prepare` would encode records with. Raises what `prepare` raises before it reads anything."""
    recipe, tokenizer = _resolve(recipe, tokenizer)
    encoder = Encoder(tokenizer, recipe)
    if recipe.objective != "pretrain":
        _ = encoder.template  # a missing one is said before anything is read
    return encoder


def _refuse_taken(final: Path, out: str | Path) -> None:
    if final.is_dir() and not any(final.iterdir()):
        return
    if final.exists() or final.is_symlink():
        raise UsageError(f"{out} is already there; nothing is overwritten: choose a new directory")


def _is_published(final: Path) -> bool:
    """A run was killed between publishing and taking its OUT.partial away."""
    partial = partial_of(final)
    return bool(_manifests(final)) and (partial / JOB).is_file() and not (partial / "dataset").exists()


def _manifests(final: Path) -> list[Path]:
    """Those of a dataset: one, or one per side."""
    return [path for side in ("", TRAIN, VALIDATION) if (path := final / side / MANIFEST).is_file()]


def _finished(final: Path, out: str | Path, job: str, begun: float) -> Prepared:
    """Ends that run for it, if it was the same job."""
    if (read_job(partial_of(final)) or {}).get("job") != job:
        _refuse_taken(final, out)
    partial = take_over(partial_of(final))
    try:
        partial.remove()
    finally:
        partial.close()
    paths = _manifests(final)
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


def _identity(recipe: Recipe, tokenizer: Tokenizer, sources: Sources, split: str | None) -> dict[str, Any]:
    """All that decides the bytes, apart from the text of the input: that is in the names of the tasks.

    `on_bad_record` is not in it: what is finished had no bad record or listed them, and holds either way. So a run that
    stopped at one goes on with `--on-bad-record reject`.
    """
    values = recipe.to_dict()
    del values["on_bad_record"]
    return {
        "recipe": values,
        "tokenizer": {name: hashlib.sha256(content).hexdigest() for name, content in tokenizer.files.items()},
        "sources": sources.names,
        "split": split,
        "format": ".".join(map(str, FORMAT_VERSION)),
        "label_version": LABEL_VERSION,
        "versions": {**_versions(), "python": ".".join(platform.python_version_tuple()[:2])},
    }


def _published_names(tokenizer: Tokenizer, recipe: Recipe) -> list[str]:
    template = [] if recipe.chat_template is None else [TEMPLATE]
    template += [DUPLICATES] if recipe.deduplicate else []
    return [MANIFEST, MANIFEST_HASH, RECIPE, REJECTS, DROPPED, CHUNKS, CARD_FILE, RUN_FILE, *template, *tokenizer.files]


def _stopped(partial: Partial, error: BaseException) -> BaseException:
    """What to raise for an error that ended a run, with how to go on; and the partial left so that one can."""
    with suppress(OSError):
        partial.sweep_temporary()
    if partial.is_empty():
        with suppress(OSError):
            partial.remove()
        kept = ""
    else:
        kept = f"What is finished is kept in {partial.path}: run the same command again to go on"
    if isinstance(error, OSError) and not isinstance(error, MaskpipeError):
        again = kept or "Nothing is left of this run"
        return MaskpipeError(f"{error.filename or 'input or output'}: {error.strerror or error}. {again}")
    if not kept:
        return error
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(kept)
    if isinstance(error, RecordError):
        kept += " once that is mended"
        error = RecordError(f"{error}. {kept}", error.reason)
    elif isinstance(error, MaskpipeError):
        error = type(error)(f"{error}. {kept}")
    if isinstance(error, RecordError | UsageError | TemplateError | TokenizerError):
        with suppress(OSError):
            partial.stop(str(error))
    return error


# -- P1: map


@dataclass
class Tally:
    """What the map step made, summed over the chunks; what grows with the number of records stays in their commits."""

    tasks: list[str] = field(default_factory=list)
    """Names of the map tasks, in the order of the chunks."""
    stages: list[Stage] = field(default_factory=list)
    records: int = 0
    kept: int = 0
    bytes: int = 0
    tokens: int = 0
    documents: int = 0
    loss_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    role_names: set[str] = field(default_factory=set)
    keys: list[ChunkKeys] = field(default_factory=list)
    """Per chunk, if the recipe needs them."""
    selection: Selection | None = None
    _firsts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _others: list[dict[str, Any]] = field(default_factory=list)

    def add(self, task: str, file: str, part: Mapped) -> None:
        self.tasks.append(task)
        self.stages.append(Stage(file, part.lengths, None, part.units if len(part.units) else None))
        self.keys.append(ChunkKeys(part.source, part.first_row, part.keys.reshape(-1, 2), part.key_rows))
        self.add_counts(part)

    def add_counts(self, part: Mapped) -> None:
        self.records += part.records
        self.kept += part.kept
        self.bytes += part.bytes
        self.tokens += int(part.lengths.sum(dtype=np.int64))
        self.documents += len(part.lengths)
        self.loss_tokens += part.loss_tokens
        self.counts.update(part.counts)
        self.rejected.update(entry["reason"] for entry in part.rejects)
        self.dropped.update(entry["policy"] for entry in part.dropped)
        self.left_out.update(part.left_out)
        self.role_names |= part.role_names
        for entry in part.rejects:
            self.add_example(entry)

    def add_example(self, entry: dict[str, Any]) -> None:
        if self._firsts.setdefault(entry["reason"], entry) is not entry and len(self._others) < EXAMPLES:
            self._others.append(entry)

    def seen(self, step: str, share: float | None, found: int) -> Seen:
        return Seen(step, self.records, self.rejected.total(), self.tokens, self.bytes, found, share)

    def examples(self) -> list[dict[str, Any]]:
        """The first reject of each reason, then the first others: EXAMPLES, or as many as there are reasons."""
        return [*self._firsts.values(), *self._others[: max(0, EXAMPLES - len(self._firsts))]]


def _map(
    pool: Pool,
    sources: Sources,
    chunks: Iterator[Chunk],
    backend: Backend,
    partial: Partial,
    job: str,
    proof: int | None,
    tally: Tally,
    progress: Progress | None,
) -> None:
    """Takes results in the order of the chunks, with at most a few chunks in memory at a time."""
    # What another backend has finished is not taken over: should they differ, it is found out one text in so many.
    tasks = (map_task(partial.path, f"{job} {backend.used}", chunk, proof) for chunk in chunks)
    for _, name in pool.run("map", run_map, tasks, lambda task: find_map(task, pool.limits)):
        result = commit.get(partial.commits, name)
        tally.add(name, result["stage"]["file"], Mapped.from_dict(result["mapped"]))
        if progress is not None:
            progress(tally.seen("map", sources.share_read, pool.found.total()))


def _settle_backend(pool: Pool, chunks: Iterator[Chunk]) -> tuple[Iterator[Chunk], Backend]:
    """The chunks, and who computes the ids of all of them: proved on a sample of the first one. Under `auto` one chunk
    alone does not pay for loading another backend."""
    first = list(itertools.islice(chunks, 2))
    backend = Backend(used=pool.recipe.tokenizer_backend)
    if pool.recipe.tokenizer_backend == "auto":
        backend = Backend(reason="the input is small")
    if first and (len(first) == 2 or pool.recipe.tokenizer_backend == "fastokens"):
        for _, found in pool.run("backend", run_backend, [BackendTask(first[0])]):
            backend = Backend(**found)
    pool.recipe = pool.recipe.replace(tokenizer_backend=backend.used)  # of the workers that are yet to start
    return itertools.chain(first, chunks), backend


def _nothing_left(tally: Tally) -> RecordError:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in (tally.rejected + tally.left_out).most_common())
    first = f". The first: {tally.examples()[0]['message']}" if tally.rejected else ""
    return RecordError(
        f"no record is left of {tally.records:,} ({reasons}); nothing was written{first}",
        reason="nothing_left",
    )


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
        "versions": _versions(),
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


def _versions() -> dict[str, str]:
    names = ("tokenizers", "jinja2", "pyarrow", "numpy")
    return {"maskpipe": maskpipe.__version__, **{name: importlib.metadata.version(name) for name in names}}
