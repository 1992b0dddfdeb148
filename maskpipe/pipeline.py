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
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import maskpipe
from maskpipe import card, summary
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, RecordError, UsageError
from maskpipe.fit import Finding, check_fit
from maskpipe.pack import plan
from maskpipe.partitions import ShardPlan, Stage, plan_shards
from maskpipe.pool import Pool, count_workers
from maskpipe.recipe import Recipe
from maskpipe.records import Mapped, add_records, map_chunk, new_batch
from maskpipe.shards.chunks import chunk_lines
from maskpipe.shards.manifest import Manifest, ShardRecord, Source, json_lines
from maskpipe.shards.writer import create_directory, publish, write_shard
from maskpipe.sources import Sources, open_sources
from maskpipe.template.spans import read_template
from maskpipe.tokenizer import Tokenizer

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
        with Pool(count_workers(workers), encoder) as pool:
            mapped = list(_map(pool, sources, stage, proof, progress))
            if not any(len(part.lengths) for part in mapped):
                raise _nothing_left(mapped)
            shards = list(_write(pool, mapped, work, recipe, tokenizer))
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
    total = new_batch()
    lengths: list[int] = []
    ended = True
    for chunk in open_sources(source, recipe, split=split).chunks():
        if total.records >= records:
            ended = False
            break
        left = records - total.records
        ended = chunk.count <= left
        add_records(encoder, chunk, total, lengths, None, left, proof)
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


# -- P1: map


def _map(pool: Pool, sources: Sources, stage: Path, proof: int | None, progress: Progress | None) -> Iterator[Mapped]:
    """Results in the order of the chunks, at most a few chunks in memory at a time."""
    seen = Counter[str]()
    numbered = ((f"{number:06d}.arrow", chunk) for number, chunk in enumerate(sources.chunks()))
    for part in pool.run(map_chunk, ((chunk, str(stage / name), proof) for name, chunk in numbered)):
        seen.update(records=part.records, bytes=part.bytes, rejected=part.records - part.kept)
        if progress is not None:
            progress(seen["records"], seen["bytes"], seen["rejected"])
        yield part


def _examples(rejects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each reason, then the first others: 20, or as many as there are reasons."""
    firsts = {entry["reason"]: entry for entry in reversed(rejects)}
    others = [entry for entry in rejects if firsts[entry["reason"]] is not entry]
    return [*reversed(firsts.values()), *others[: max(0, 20 - len(firsts))]]


def _nothing_left(mapped: list[Mapped]) -> RecordError:
    rejects = [entry for part in mapped for entry in part.rejects]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(e["reason"] for e in rejects).most_common())
    return RecordError(
        f"no record is left of {sum(part.records for part in mapped):,} ({reasons}); nothing was written. The first: "
        f"{rejects[0]['message']}",
        reason="nothing_left",
    )


# -- P2 and P3: plan and write


def _write(pool: Pool, mapped: list[Mapped], work: Path, recipe: Recipe, tokenizer: Tokenizer) -> Iterator[ShardRecord]:
    settings = {
        "sequence_length": recipe.sequence_length,
        "pad_id": tokenizer.pad_id,
        "vocab_size": tokenizer.vocab_size,
        "recipe_fingerprint": recipe.fingerprint(),
    }
    shards = plan_shards([Stage(part.stage, part.lengths) for part in mapped], recipe)
    yield from pool.run(_write_task, ((str(work), number, shard, settings) for number, shard in enumerate(shards)))


def _write_task(encoder: Encoder, work: str, number: int, shard: ShardPlan, settings: dict[str, Any]) -> ShardRecord:
    tables = []
    for name, rows in shard.stages:
        with pa.memory_map(name) as file:
            table = pa.ipc.open_file(file).read_all()
        tables.append(table if rows is None else table.take(pa.array(rows)))
    return write_shard(work, number, pa.concat_tables(tables), shard.pieces, **settings)


# -- P4: publish


def _publish(
    work: Path,
    mapped: list[Mapped],
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
        "chunks.jsonl": chunk_lines(part.entry for part in mapped),
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


def _check_ledger(manifest: Manifest, counts: Counter[str], mapped: list[Mapped]) -> None:
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
