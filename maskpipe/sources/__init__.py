"""How files, datasets and iterables become chunks of raw records, and chunks become records.

    sources = open_sources(["chats.jsonl.zst", "more.parquet"], Recipe())
    for chunk in sources.chunks():              # in one process: reads, hashes, cuts; about 4 MiB each
        for row, record in chunk.records():     # in any process: parses; a bad record is a RecordError, not a crash
            ...
    sources.origins                             # name, SHA-256 and number of records of each file, after reading

Where a chunk ends depends on the bytes of its source alone, so any number of workers sees the same chunks. Every record
of a source has a row, 0-based; a record that cannot be read keeps its row, so records in = records out + RecordErrors.

JSON files are told apart by content, not by name: a .json file may hold JSON Lines, an array, or one object over many
lines. Lines end at \\n only: U+2028 inside a string is text. A .txt file is one record, {"text": ...}.
In Parquet, Arrow and HF datasets a struct has every key in every row, null where the record had none (C05): null struct
fields are taken away there and counted (`null_struct_fields_dropped`), except that an assistant message always has a
`content`. Nulls that come from JSON text, also from JSON columns of Arrow, are kept.
"""

from __future__ import annotations

from maskpipe.sources.chunk import Chunk, Origin
from maskpipe.sources.opening import Sources, open_sources

__all__ = ["Chunk", "Origin", "Sources", "open_sources"]
