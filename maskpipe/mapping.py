"""P1 of prepare: chunks through the pool, and what came of them, in the order of the chunks."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskpipe import commit
from maskpipe.backends import Backend
from maskpipe.errors import RecordError
from maskpipe.partial import Partial
from maskpipe.partitions import Stage
from maskpipe.pool import Pool
from maskpipe.progress import Seen
from maskpipe.records import Mapped
from maskpipe.selection import NOTHING_LEFT, ChunkKeys, Selection
from maskpipe.sources import Chunk, Sources
from maskpipe.tasks import BackendTask, find_map, map_task, run_backend, run_map

EXAMPLES = 20
"""Rejected records that a summary shows at least."""

Progress = Callable[[Seen], None]
"""Called after each task."""


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


def map_chunks(
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


def settle_backend(pool: Pool, chunks: Iterator[Chunk]) -> tuple[Iterator[Chunk], Backend]:
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


def nothing_left(tally: Tally) -> RecordError:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in (tally.rejected + tally.left_out).most_common())
    first = f". The first: {tally.examples()[0]['message']}" if tally.rejected else ""
    return RecordError(
        f"no record is left of {tally.records:,} ({reasons}); no dataset was made{first}",
        reason=NOTHING_LEFT,
    )
