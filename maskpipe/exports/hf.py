"""export --to hf: Parquet that any trainer with labels reads.

    row of 8 tokens, two documents and padding        exported row
    input_ids   5 6 7 8 9 4 _ _                       input_ids     5 6 7 8 9 4
    loss        0 0 1 0 0 1 0 0                       labels        -100 -100 7 -100 -100 4
    documents   [5 6 7] [8 9 4]                       position_ids  0 1 2 0 1 2
                                                      seq_lengths   3 3

labels are not shifted: the trainer shifts. Padding is left out, so a row has sum(seq_lengths) tokens; who wants rows of
one length pads them. One file per shard; `datasets.load_dataset(DEST)` finds them through the card.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskpipe import card as cards
from maskpipe.exports.parquet import Columns, list_schema, write_parquet
from maskpipe.exports.rows import IGNORE, LOST, Options, Row, rows_of
from maskpipe.shards.reader import Dataset

if TYPE_CHECKING:
    from maskpipe.exports.exporting import Exported

OPTIONS = ("ignore_weights", "unpack")
_COLUMNS = {name: pa.int64() for name in ("input_ids", "labels", "position_ids", "seq_lengths")}


def names(dataset: Dataset, options: Options) -> list[str]:
    """One Parquet file per shard."""
    count = len(dataset.manifest.shards)
    return [f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def write(dataset: Dataset, work: Path, counted: Counter[str], options: Options) -> None:
    write_labelled(dataset, work, counted, options, _COLUMNS)


def write_labelled(
    dataset: Dataset, work: Path, counted: Counter[str], options: Options, columns: dict[str, pa.DataType]
) -> None:
    """The same with these of Row's columns."""
    schema = list_schema(columns, {"maskpipe": json.dumps(origin(dataset))})
    for number, name in enumerate(names(dataset, options)):
        write_parquet(work / name, _rows(dataset, number, counted, options, list(columns)), schema)


def origin(dataset: Dataset) -> dict[str, Any]:
    """What says where an export comes from."""
    manifest = dataset.manifest
    return {
        "fingerprint": manifest.fingerprint,
        "recipe_sha256": manifest.recipe_sha256,
        "sequence_length": manifest.sequence_length,
        "pad_id": manifest.pad_id,
    }


def _rows(
    dataset: Dataset, shard: int, counted: Counter[str], options: Options, columns: list[str]
) -> Iterator[Columns]:
    for whole in rows_of(dataset, shard, counted, options):
        for row in whole.documents() if options.unpack else (whole,):
            out = _columns(row)
            counted["written_tokens"] += len(out["input_ids"])
            counted["written_loss"] += int(np.count_nonzero(out["labels"] != IGNORE))
            yield tuple(out[name] for name in columns)


def _columns(row: Row) -> dict[str, Any]:
    return {
        "input_ids": row.ids.astype(np.int64),
        "labels": row.labels,
        "position_ids": row.position_ids,
        "seq_lengths": row.lengths,
    }


def card(dataset: Dataset, made: Exported, options: Options) -> str:
    """README.md."""
    manifest, totals = dataset.manifest, dataset.manifest.totals
    rows = made.counted["documents"] if options.unpack else totals.sequences
    what = "rows of one document each" if options.unpack else "packed rows of"
    return f"""{cards.header(rows, ("maskpipe", manifest.recipe["objective"]), "parquet", "train-*.parquet")}
# {rows:,} {what} up to {manifest.sequence_length:,} tokens, with labels

Exported by maskpipe from the dataset with fingerprint `{manifest.fingerprint}`: {totals.n_tokens:,} tokens,
{totals.n_loss:,} of them targets. What is not here: {LOST}.

| column | what it is |
| --- | --- |
| input_ids | int64, the tokens of one row, documents one after another, no padding |
| labels | int64, the token where it is a target, else {IGNORE}; not shifted; every document's first token is {IGNORE} |
| position_ids | int64, from 0 in each document |
| seq_lengths | int64, the length of each document; their sum is the length of the row |

A model must not attend across documents: use a trainer's padding-free path, which reads seq_lengths or position_ids.
For TRL, `maskpipe export --to trl` says how.
"""
