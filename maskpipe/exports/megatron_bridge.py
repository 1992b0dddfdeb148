"""export --to megatron-bridge: its packed Parquet, as GPTSFTPackedParquetDataset of Megatron-Bridge 0.6.2 reads it.

    documents      [5 6 7] [8 9 4]        input_ids     5 6 7 8 9 4        list<int32>
    loss            0 0 1   0 0 1         loss_mask     0 1 0 0 1 0        list<int8>, moved to the token before
                                          seq_start_id  0 3                list<int32>

The reader takes tokens [start, end - 1) of each document as inputs and [start + 1, end) as labels, so a mask stands
where its target is predicted from, and a document's last is 0. It then sets the mask to 0 wherever the *input* is the
tokenizer's eos: a target right behind an eos loses its loss. Those are counted, and refused without
`allow_lost_targets`. A document of one token holds nothing to predict and is left out.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from maskpipe.errors import UsageError
from maskpipe.exports.hf import origin
from maskpipe.exports.parquet import Columns, list_schema, write_parquet
from maskpipe.exports.rows import LOST, Options, Row, rows_of
from maskpipe.shards.reader import Dataset
from maskpipe.tokenizer import Tokenizer

if TYPE_CHECKING:
    from maskpipe.exports.exporting import Exported

OPTIONS = ("ignore_weights", "allow_lost_targets")
METADATA = "packing_metadata.json"
_COLUMNS = {"input_ids": pa.int32(), "loss_mask": pa.int8(), "seq_start_id": pa.int32()}


def names(dataset: Dataset, options: Options) -> list[str]:
    """One Parquet file per shard, and the metadata of the packing."""
    count = len(dataset.manifest.shards)
    return [*(f"train-{number:05d}-of-{count:05d}.idx.parquet" for number in range(count)), METADATA]


def write(dataset: Dataset, work: Path, counted: Counter[str], options: Options) -> None:
    schema = list_schema(_COLUMNS, {"maskpipe": json.dumps(origin(dataset))})
    eos = eos_id(Tokenizer.load(dataset.path))
    shape = _Shape()
    for number, name in enumerate(names(dataset, options)[:-1]):
        write_parquet(work / name, _rows(dataset, number, counted, options, eos, shape), schema)
    with (work / METADATA).open("w") as file:
        json.dump([shape.to_dict(dataset.manifest.sequence_length)], file)
        file.flush()
        os.fsync(file.fileno())


def eos_id(tokenizer: Tokenizer) -> int | None:
    """The id of the tokenizer's eos token, which the reader takes from the same tokenizer."""
    if not tokenizer.eos_token:
        return None
    ids = tokenizer.encode(tokenizer.eos_token).input_ids.tolist()
    return ids[0] if len(ids) == 1 else None


def _rows(
    dataset: Dataset, shard: int, counted: Counter[str], options: Options, eos: int | None, shape: _Shape
) -> Iterator[Columns]:
    for whole in rows_of(dataset, shard, counted, options):
        row = _without_single_tokens(whole)
        counted["skipped_tokens"] += len(whole.ids) - len(row.ids)
        if not len(row.ids):
            continue
        mask = np.zeros(len(row.ids), np.int8)
        mask[:-1] = row.loss[1:]  # no document's first token is a target, so none moves into the document before
        lost = int(mask[row.ids == eos].sum()) if eos is not None else 0
        if lost and not options.allow_lost_targets:
            raise UsageError(
                f"row {counted['sequences'] - 1}: {lost} target{'s' * (lost != 1)} right behind the eos token (id "
                f"{eos}), from which this reader takes the loss; --allow-lost-targets goes on and counts them"
            )
        counted["lost_targets"] += lost
        counted["written_tokens"] += len(row.ids)
        counted["written_loss"] += int(mask.sum())
        shape.add(row)
        yield row.ids.astype(np.int32), mask, row.starts.astype(np.int32)


def _without_single_tokens(row: Row) -> Row:
    keep = row.lengths > 1
    if keep.all():
        return row
    tokens = np.repeat(keep, row.lengths)
    return Row(row.ids[tokens], row.loss[tokens], row.lengths[keep])


class _Shape:
    """What Megatron-Bridge notes of a packing: lengths are those of inputs, one less than tokens."""

    def __init__(self) -> None:
        self.longest = self.most = self.documents = self.rows = self.tokens = 0
        self.least: int | None = None

    def add(self, row: Row) -> None:
        size = int((row.lengths - 1).sum())
        self.longest = max(self.longest, int(row.lengths.max()) - 1)
        self.most = max(self.most, len(row.lengths))
        self.least = size if self.least is None else min(self.least, size)
        self.documents += len(row.lengths)
        self.rows += 1
        self.tokens += size

    def to_dict(self, sequence_length: int) -> dict[str, float | int]:
        rows = max(1, self.rows)
        return {
            "dataset_max_seqlen": self.longest,
            "max_samples_per_bin": self.most,
            "packing_factor": round(self.documents / rows, 2),
            "packing_efficiency": round(100 * self.tokens / rows / sequence_length, 2),
            "pack_size": sequence_length,
            "min_packed_seqlen": self.least or 0,
        }


def card(dataset: Dataset, made: Exported, options: Options) -> str:
    """README.md."""
    manifest, totals = dataset.manifest, dataset.manifest.totals
    lost = made.counted.get("lost_targets", 0)
    return f"""# {totals.sequences:,} packed rows of up to {manifest.sequence_length:,} tokens for Megatron-Bridge

Exported by maskpipe from the dataset with fingerprint `{manifest.fingerprint}`: {totals.n_tokens:,} tokens,
{totals.n_loss:,} of them targets. What is not here: {LOST}.

| column | what it is |
| --- | --- |
| input_ids | list<int32>, documents one after another, no padding |
| loss_mask | list<int8>, 1 where the *next* token of the document is a target |
| seq_start_id | list<int32>, where each document begins |

Give the directory (or `train-*.idx.parquet`) as the packed training data, with sequence length
{manifest.sequence_length:,}, `answer_only_loss=True` (without it the reader ignores loss_mask) and the tokenizer that
the dataset was made with. `pad_cu_seqlens` reads `{METADATA}`. Written for GPTSFTPackedParquetDataset of
Megatron-Bridge 0.6.2.

The reader takes the loss from targets right behind an eos token: {lost:,} here. With `pad_seq_to_mult` above 1 it also
takes trailing eos tokens of a document for padding.
"""
