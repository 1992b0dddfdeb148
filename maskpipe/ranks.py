"""One preparation on several machines that share a file system: each rank maps its share of the chunks, then the same
command without a rank finds their commits, maps what is missing, writes the shards and publishes.

    maskpipe prepare chats.jsonl out --tokenizer T --rank 0 --world 8        … 7, at the same time or not
    maskpipe prepare chats.jsonl out --tokenizer T                           when they are done

A rank does the chunks rank, rank + world_size, …: their tasks are those of any other run, so the bytes are the same. A
rank that dies costs its unfinished chunks: run it again, or let the last command do them.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskpipe import summary
from maskpipe.errors import MaskpipeError, UsageError
from maskpipe.guard import Limits
from maskpipe.job import describe, published_names
from maskpipe.mapping import Progress, Tally, map_chunks, settle_backend
from maskpipe.partial import join, refuse_taken
from maskpipe.pool import Pool, count_workers
from maskpipe.recipe import Recipe
from maskpipe.tokenizer import Tokenizer


@dataclass
class Share:
    """What one rank did. `print(share)` is what the command line shows."""

    path: Path
    """Where the work lies: OUT.partial."""
    rank: int
    world_size: int
    chunks: int
    """Of this rank; `found` of them were finished before."""
    found: int
    records: int
    kept: int
    tokens: int
    rejected: Counter[str]
    rejects: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return summary.of_share(self)


def prepare_share(
    source: Any,
    out: str | Path,
    *,
    rank: int,
    world_size: int,
    tokenizer: Tokenizer | str | Path,
    recipe: Recipe | None = None,
    split: str | None = None,
    workers: int | None = None,
    proof: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Share:
    """Maps the share of `rank` (0 ≤ rank < world_size) into `out`.partial; publishes nothing. The other arguments are
    those of `prepare`, and must be the same for all ranks and for the command that finishes.

    Raises what `prepare` raises; UsageError too when another job, or a run without rank, has `out`.partial.
    """
    if not 0 <= rank < world_size:
        raise UsageError(f"rank must be at least 0 and below the number of ranks; got rank {rank} of {world_size}")
    begun = time.monotonic()
    refuse_taken(out)
    job = describe(source, tokenizer, recipe, split)
    final = Path(os.path.abspath(out))
    partial = join(final, job.name, job.identity, published_names(job.tokenizer, job.recipe))
    tally = Tally()
    try:
        with Pool(count_workers(workers), job.tokenizer, job.worker_recipe, limits) as pool:
            chunks, backend = settle_backend(pool, job.sources.chunks())
            own = itertools.islice(chunks, rank, None, world_size)
            map_chunks(pool, job.sources, own, backend, partial, job.name, proof, tally, progress)
            found = pool.found["map"]
    except OSError as error:
        if isinstance(error, MaskpipeError):
            raise
        raise MaskpipeError(
            f"{error.filename or 'input or output'}: {error.strerror or error}. What is finished is kept in "
            f"{partial.path}: run the same rank again to go on"
        ) from None
    finally:
        partial.close()
    return Share(
        partial.path, rank, world_size, len(tally.tasks), found, tally.records, tally.kept, tally.tokens,
        tally.rejected, tally.examples(), time.monotonic() - begun,
    )  # fmt: skip
