"""Shard format v1: versions, schemas, limits. docs/FORMAT.md is the specification; rule numbers (F1 …) point
there.

A dataset is a directory of Arrow IPC files whose rows are sequences, and a manifest that covers every byte of them.
The same few struct types stand here twice: as Arrow types, how files keep them, and as packed numpy dtypes, how the
code handles them. Numpy has no null, so what may be null has a sentinel there (`DOCUMENT`).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from maskpipe.roles import Branch as Branch

FORMAT_VERSION = (1, 0)
"""(major, minor). Readers refuse an unknown major version; a minor version only adds what a reader may ignore."""
LABEL_VERSION = 2
"""Grows whenever the same recipe and input give other labels."""

REGION_SIZE = 1 << 20
"""Bytes per hashed region of a shard; the last region of a file is shorter."""
BATCH_TOKENS = 1 << 18
"""Tokens per record batch at most (1 MiB of ids), but at least one row: what a reader loads to look at one row."""

FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)
"""Names that a manifest may list, matched in full: no separator, no leading dot, so nothing outside the directory."""
SHARD_NAME = re.compile(r"part-([0-9]{5,})-([0-9a-f]{16})\.arrow", re.ASCII)
"""Shard names: index in the dataset, first 16 hex digits of the file's SHA-256."""
MANIFEST, MANIFEST_HASH = "manifest.json", "manifest.sha256"
RECIPE, REJECTS, DROPPED = "recipe.yaml", "rejects.jsonl", "dropped.jsonl"
CHUNKS = "chunks.jsonl"
DUPLICATES = "duplicates.jsonl"
CARD_FILE, RUN_FILE = "README.md", "run.json"


RUN_DTYPE = np.dtype([("end", "<i4"), ("role", "u1"), ("part", "u1"), ("flags", "u1"), ("message", "<i4")])
VERDICT_DTYPE = np.dtype([("message", "<i4"), ("verdict", "u1")])
WEIGHT_DTYPE = np.dtype([("start", "<i4"), ("end", "<i4"), ("weight", "<f4")])
DOCUMENT_DTYPE = np.dtype(
    [
        ("end", "<i4"),  # tokens of the row up to here belong to this document or an earlier one
        ("source", "<i4"),
        ("row", "<i8"),
        ("turn", "<i4"),  # -1: not split
        ("start", "<i4"),  # this is tokens [start, start + n) of a document of `length` tokens
        ("length", "<i4"),
        ("pair", "<i8"),  # null: -1
        ("branch", "u1"),
        ("parent", "<i4"),  # null: 0; else so many documents back stands the prompt that this branch continues
        ("score", "<f4"),  # null: NaN
        ("label", "i1"),  # null: -1
    ]
)
NULLS: dict[str, Any] = {"pair": -1, "parent": 0, "score": np.float32("nan"), "label": -1}
"""The sentinel that stands for null, per nullable field of DOCUMENT_DTYPE."""


def _field(name: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, nullable=False)


def _list(dtype: pa.DataType) -> pa.DataType:
    return pa.list_(_field("item", dtype))


def _large_list(dtype: pa.DataType) -> pa.DataType:
    return pa.large_list(_field("item", dtype))


RUN = pa.struct(
    [
        _field("end", pa.int32()),
        _field("role", pa.uint8()),
        _field("part", pa.uint8()),
        _field("flags", pa.uint8()),
        _field("message", pa.int32()),
    ]
)
VERDICT = pa.struct([_field("message", pa.int32()), _field("verdict", pa.uint8())])
WEIGHT = pa.struct([_field("start", pa.int32()), _field("end", pa.int32()), _field("weight", pa.float32())])
_ORIGIN = [_field("source", pa.int32()), _field("row", pa.int64()), _field("turn", pa.int32())]
_PAIR = [
    pa.field("pair", pa.int64()),
    _field("branch", pa.uint8()),
    pa.field("parent", pa.int32()),
    pa.field("score", pa.float32()),
    pa.field("label", pa.bool_()),
]
DOCUMENT = pa.struct(
    [
        _field("end", pa.int32()),
        *_ORIGIN,
        _field("start", pa.int32()),
        _field("length", pa.int32()),
        _field("verdicts", _list(VERDICT)),
        *_PAIR,
    ]
)

DOCUMENT_SCHEMA = pa.schema(
    [
        _field("input_ids", _large_list(pa.int32())),
        _field("runs", _large_list(RUN)),
        _field("weights", _list(WEIGHT)),
        *_ORIGIN,
        _field("verdicts", _list(VERDICT)),
        *_PAIR,
    ]
)
"""One row per Document, for tables on their way from encode to the shards. Run and weight positions count from the
document's first token. Lists of tokens have 64-bit offsets, so that no table of documents is too large for them."""


def sequence_schema(sequence_length: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """One row per Sequence of `sequence_length` tokens: the schema of every shard (F10)."""
    return pa.schema(
        [
            _field("input_ids", pa.list_(_field("item", pa.int32()), sequence_length)),
            _field("runs", _list(RUN)),
            _field("documents", _list(DOCUMENT)),
            _field("weights", _list(WEIGHT)),
            _field("n_loss", pa.int32()),
            _field("ids_xxh3", pa.uint64()),
        ],
        metadata,
    )


def shard_metadata(
    *,
    recipe_fingerprint: str,
    sequence_length: int,
    vocab_size: int,
    pad_id: int,
    version: tuple[int, int] = FORMAT_VERSION,
    label_version: int = LABEL_VERSION,
) -> dict[str, str]:
    """What every shard says of itself in its schema's custom metadata."""
    return {
        "maskpipe.format": ".".join(map(str, version)),
        "maskpipe.label_version": str(label_version),
        "maskpipe.recipe": recipe_fingerprint,
        "maskpipe.sequence_length": str(sequence_length),
        "maskpipe.vocab_size": str(vocab_size),
        "maskpipe.pad_id": str(pad_id),
    }


def batch_rows(sequence_length: int) -> int:
    """Rows of every record batch of a shard but the last one (F11)."""
    return max(1, BATCH_TOKENS // sequence_length)
