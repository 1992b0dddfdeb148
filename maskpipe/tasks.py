"""The two kinds of tasks: what a worker does, and how its result becomes a commit record.

    map      chunk ─▶ stage/map-<task>-<sha256>.arrow     what became of the records: lengths, counts, rejects, …
    write    rows of a plan ─▶ dataset/part-NNNNN-<sha256>.arrow     the manifest's entry of the shard

A task is a name that is a hash of all that decides its result, and arguments. Any process may run it, any number of
times: a finished one is found by its record and not done again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from maskpipe import commit
from maskpipe.durable import HashingFile, place, temporary
from maskpipe.encoder import Encoder
from maskpipe.partitions import ShardPlan
from maskpipe.records import map_chunk
from maskpipe.shards.format import REGION_SIZE
from maskpipe.shards.writer import write_shard
from maskpipe.sources import Chunk


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
    number: int
    """Of the shard."""
    shard: ShardPlan
    settings: dict[str, Any]
    """What write_shard takes beside the documents."""


def map_task(directory: Path, job: str, chunk: Chunk, proof: int | None) -> MapTask:
    name = commit.identify(
        job, "map", proof, chunk.source, chunk.name, chunk.first_row, chunk.count, chunk.kind, chunk.payload,
        chunk.first_line, chunk.ends, chunk.reason,
    )  # fmt: skip
    return MapTask(name, str(directory), chunk, proof)


def write_task(directory: Path, job: str, number: int, shard: ShardPlan, settings: dict[str, Any]) -> WriteTask:
    stages = [part for name, rows in shard.stages for part in (name, None if rows is None else rows.tobytes())]
    pieces = shard.pieces
    arrays = (pieces.documents, pieces.starts, pieces.stops, pieces.row_offsets)
    decided = repr(sorted(settings.items()))
    name = commit.identify(job, "write", number, decided, *stages, *(array.tobytes() for array in arrays))
    return WriteTask(name, str(directory), number, shard, settings)


def run_map(encoder: Encoder, task: MapTask) -> dict[str, Any]:
    """Maps the chunk and commits {"stage": {"file", "size", "sha256"}, "mapped": Mapped.to_dict()}."""
    partial = Path(task.directory)
    found = commit.find(partial / "commits", task.name)
    if found is not None:
        return dict(found)
    with temporary(partial / "stage") as (unfinished, descriptor):
        sink = HashingFile(descriptor, REGION_SIZE)
        mapped = map_chunk(encoder, task.chunk, sink, task.proof)
        sha256, _ = sink.finish()
        file = f"{task.name}-{sha256[:16]}.arrow"
        place(partial / "stage", unfinished, descriptor, file, sha256)
    stage = {"file": file, "size": sink.position, "sha256": sha256}
    return dict(commit.commit(partial / "commits", task.name, {"stage": stage, "mapped": mapped.to_dict()}))


def run_write(encoder: Encoder, task: WriteTask) -> dict[str, Any]:
    """Writes the shard and commits ShardRecord.to_dict()."""
    partial = Path(task.directory)
    found = commit.find(partial / "commits", task.name)
    if found is not None:
        return dict(found)
    tables = []
    for name, rows in task.shard.stages:
        with pa.memory_map(str(partial / "stage" / name)) as file:
            table = pa.ipc.open_file(file).read_all()
        tables.append(table if rows is None else table.take(pa.array(rows)))
    record = write_shard(partial / "dataset", task.number, pa.concat_tables(tables), task.shard.pieces, **task.settings)
    return dict(commit.commit(partial / "commits", task.name, record.to_dict()))


def check_mapped(partial: Path, result: dict[str, Any]) -> None:
    """DatasetError unless the stage file of a map task that was found finished is as it was written."""
    stage = result["stage"]
    commit.check_file(partial / "stage" / stage["file"], stage["size"], stage["sha256"])


def check_written(partial: Path, result: dict[str, Any]) -> None:
    """The same for a shard."""
    shard = result["shard"]
    commit.check_file(partial / "dataset" / shard["name"], shard["size"], shard["sha256"])
