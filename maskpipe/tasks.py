"""The two kinds of tasks: what a worker does, and how its result becomes a commit record.

    map      chunk ─▶ stage/map-<task>-<sha256>.arrow     what became of the records: lengths, counts, rejects, …
    write    rows of a plan ─▶ dataset/part-NNNNN-<sha256>.arrow     the manifest's entry of the shard

A task is a name that is a hash of all that decides its result, and arguments. Any process may run it, any number of
times: a finished one is found by its record and not done again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from maskpipe import commit
from maskpipe.backends import SAMPLE_BYTES
from maskpipe.durable import HashingFile, place, temporary
from maskpipe.encoder import Encoder
from maskpipe.errors import TemplateError
from maskpipe.fit import check_fit
from maskpipe.guard import Guard, Limits
from maskpipe.partitions import ShardPlan
from maskpipe.records import map_chunk, sample_texts
from maskpipe.shards.documents import with_pairs
from maskpipe.shards.format import REGION_SIZE
from maskpipe.shards.rows import plain_array
from maskpipe.shards.writer import write_shard
from maskpipe.sources import Chunk


class FitTask(NamedTuple):
    """Do template and tokenizer fit each other? Rendering is done by workers only: a template may hang."""

    name: str = "fit"


class BackendTask(NamedTuple):
    """Who computes the ids? Settled once for a run, on the first of its chunks."""

    chunk: Chunk
    name: str = "backend"


class MapTask(NamedTuple):
    name: str
    directory: str
    """OUT.partial."""
    chunk: Chunk
    proof: int | None
    """How many conversations of each source to prove by shadow rendering, -1 for all."""


class WriteTask(NamedTuple):
    name: str
    directory: str
    folder: str
    """Where in it: dataset, or a side of a split."""
    number: int
    """Of the shard."""
    shard: ShardPlan
    settings: dict[str, Any]
    """What write_shard takes beside the documents."""


def map_task(directory: Path, job: str, chunk: Chunk, proof: int | None) -> MapTask:
    name = commit.identify(
        job, "map", proof, chunk.source, chunk.name, chunk.first_row, chunk.count, chunk.kind, chunk.payload,
        chunk.first_line, chunk.ends, chunk.reason, chunk.take, repr(chunk.share),
    )  # fmt: skip
    return MapTask(name, str(directory), chunk, proof)


def write_task(
    directory: Path, job: str, folder: str, number: int, shard: ShardPlan, settings: dict[str, Any]
) -> WriteTask:
    stages = [part for name, rows in shard.stages for part in (name, None if rows is None else rows.tobytes())]
    pieces = shard.pieces
    arrays = (pieces.documents, pieces.starts, pieces.stops, pieces.row_offsets)
    decided = repr(sorted(settings.items()))
    if shard.pairs is not None:
        stages.append(shard.pairs.tobytes())
    name = commit.identify(job, "write", folder, number, decided, *stages, *(array.tobytes() for array in arrays))
    return WriteTask(name, str(directory), folder, number, shard, settings)


def without_condemned(task: MapTask, limits: Limits) -> str:
    """The name under which the chunk is committed when records in it went over the limits. It holds for these limits
    only: with others, the chunk is mapped again."""
    return commit.identify(task.name, "map", repr(limits))


def find_map(task: MapTask, limits: Limits) -> str | None:
    """The name of the finished commit, None if there is none. DatasetError when its file is not as it was written."""
    partial = Path(task.directory)
    for name in (task.name, without_condemned(task, limits)):
        found = commit.find(partial / "commits", name)
        if found is not None:
            stage = found["stage"]
            commit.check_file(partial / "stage" / stage["file"], stage["size"], stage["sha256"])
            return name
    return None


def find_write(task: WriteTask) -> str | None:
    """The same for a shard."""
    partial = Path(task.directory)
    found = commit.find(partial / "commits", task.name)
    if found is None:
        return None
    shard = found["shard"]
    commit.check_file(partial / task.folder / shard["name"], shard["size"], shard["sha256"])
    return task.name


def run_fit(encoder: Encoder, task: FitTask, guard: Guard) -> list[list[str]]:
    """Code and text of each Finding. TemplateError for a template that cannot be rendered within the limits."""
    refused = guard.enter(0, 0)
    if refused is not None:
        raise TemplateError(f"the chat template cannot be used: on a chat of two short messages, {refused}")
    return [[finding.code, finding.text] for finding in check_fit(encoder)]


def run_backend(encoder: Encoder, task: BackendTask, guard: Guard) -> dict[str, Any]:
    """The fields of a Backend, which this worker's encoder then uses. TokenizerError or UsageError when the recipe asks
    for one that cannot be used."""
    texts = sample_texts(encoder, task.chunk, SAMPLE_BYTES, guard)
    return dataclasses.asdict(encoder.choose_backend(texts))


def run_map(encoder: Encoder, task: MapTask, guard: Guard) -> str:
    """Maps the chunk and commits {"stage": {"file", "size", "sha256"}, "mapped": Mapped.to_dict()}; returns the name
    under which."""
    partial = Path(task.directory)
    name = without_condemned(task, guard.limits) if guard.condemned else task.name
    if commit.find(partial / "commits", name) is not None:
        return name
    with temporary(partial / "stage") as (unfinished, descriptor):
        sink = HashingFile(descriptor, REGION_SIZE)
        mapped = map_chunk(encoder, task.chunk, sink, task.proof, guard)
        sha256, _ = sink.finish()
        file = f"{name}-{sha256[:16]}.arrow"
        place(partial / "stage", unfinished, descriptor, file, sha256)
    stage = {"file": file, "size": sink.position, "sha256": sha256}
    commit.commit(partial / "commits", name, {"stage": stage, "mapped": mapped.to_dict()})
    return name


def run_write(encoder: Encoder, task: WriteTask, guard: Guard) -> str:
    """Writes the shard and commits ShardRecord.to_dict(); returns the name under which."""
    partial = Path(task.directory)
    if commit.find(partial / "commits", task.name) is not None:
        return task.name
    tables = []
    for name, rows in task.shard.stages:
        with pa.memory_map(str(partial / "stage" / name)) as file:
            table = pa.ipc.open_file(file).read_all()
        tables.append(table if rows is None else table.take(plain_array(rows)))
    folder, documents = partial / task.folder, with_pairs(pa.concat_tables(tables), task.shard.pairs)
    record = write_shard(folder, task.number, documents, task.shard.pieces, **task.settings)
    commit.commit(partial / "commits", task.name, record.to_dict())
    return task.name
