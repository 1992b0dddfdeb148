"""chunks.jsonl: which records were read together, and what was counted among them.

    {"counts": {"documents_truncated": 1, "tokens": 9120, …}, "records": 1201, "row": 0, "source": 0}

Documents are packed inside partitions, runs of chunks, so whoever packs them anew must know the chunks; and whether
text was cut or dropped for length decides what may be packed anew at all (F28b).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maskpipe.errors import DatasetError
from maskpipe.shards.format import CHUNKS
from maskpipe.shards.manifest import Manifest, json_lines

TRUNCATED, SPLIT, TOO_LONG = "documents_truncated", "documents_split", "tokens_dropped_too_long"
"""Counts of what was done to documents for being longer than a sequence."""
NOTHING = "tokens_dropped_nothing_to_train"


@dataclass(frozen=True)
class ChunkEntry:
    """Records [row, row + records) of a source, and what the map step counted among them."""

    source: int
    row: int
    records: int
    counts: Mapping[str, int] = field(default_factory=dict)


def chunk_lines(chunks: Iterable[ChunkEntry]) -> bytes:
    """The text of chunks.jsonl; counts of 0 are left out."""
    return json_lines([{**vars(chunk), "counts": {k: n for k, n in chunk.counts.items() if n}} for chunk in chunks])


def parse_chunks(data: bytes, manifest: Manifest, where: str = CHUNKS) -> list[ChunkEntry]:
    """The chunks, in the order they were read. DatasetError unless they hold every record of every source once, each
    source's in order, and the tokens made among them are those in the shards and those counted as cut or dropped."""
    out = chunks_of(data, manifest, where)
    check_tokens(out, manifest, where)
    return out


def chunks_of(data: bytes, manifest: Manifest, where: str = CHUNKS) -> list[ChunkEntry]:
    """As parse_chunks, without a look at the tokens."""
    out = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
            entry = ChunkEntry(**value)
            numbers = [entry.source, entry.row, entry.records, *entry.counts.values()]
            if any(type(n) is not int or n < 0 for n in numbers):
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise DatasetError(f"{where}:{number}: no chunk; the dataset was changed, prepare it anew") from None
        out.append(entry)
    read = [0] * len(manifest.sources)
    for number, entry in enumerate(out, 1):
        if entry.source >= len(read) or entry.row != read[entry.source]:
            raise DatasetError(f"{where}:{number}: its records do not follow those before; prepare the dataset anew")
        read[entry.source] += entry.records
    if read != [source.records for source in manifest.sources]:
        raise DatasetError(f"{where}: does not hold every record of every source; prepare the dataset anew")
    return out


def check_tokens(chunks: Iterable[ChunkEntry], manifest: Manifest, where: str = CHUNKS) -> None:
    """DatasetError unless the tokens made are those in the shards and those counted as cut or dropped."""
    counts = total_counts(chunks)
    gone = sum(n for name, n in counts.items() if name == "tokens_truncated" or name.startswith("tokens_dropped_"))
    if manifest.totals.n_tokens + gone != counts["tokens"] + counts["tokens_repeated"]:
        raise DatasetError(
            f"{where}: {counts['tokens']} tokens made, {manifest.totals.n_tokens} in the shards and {gone} cut or "
            "dropped; prepare the dataset anew"
        )


def total_counts(chunks: Iterable[ChunkEntry]) -> Counter[str]:
    """The counts of all chunks together."""
    return sum((Counter(chunk.counts) for chunk in chunks), Counter[str]())


def read_chunks(path: Path, manifest: Manifest) -> list[ChunkEntry] | None:
    """The chunks of a dataset; None where it was made without chunks.jsonl. DatasetError where the file is damaged."""
    from maskpipe.shards.verify import read_file

    entry = next((file for file in manifest.files if file.name == CHUNKS), None)
    return None if entry is None else parse_chunks(read_file(path, entry), manifest, str(path / CHUNKS))
