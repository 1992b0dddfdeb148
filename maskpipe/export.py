"""export: a dataset in the form of trainers that know nothing of maskpipe.

    row of 8 tokens, two documents and padding        exported row
    input_ids   5 6 7 8 9 4 _ _                       input_ids     5 6 7 8 9 4
    loss        0 0 1 0 0 1 0 0                       labels        -100 -100 7 -100 -100 4
    documents   [5 6 7] [8 9 4]                       position_ids  0 1 2 0 1 2
                                                      seq_lengths   3 3

labels are not shifted: the trainer shifts. Padding is left out, so a row has sum(seq_lengths) tokens, as TRL's
padding-free path needs it (it derives position_ids from seq_lengths); who wants rows of one length pads them.
Parquet, one file per shard, written with pyarrow alone; `datasets.load_dataset(DEST)` finds it through the card.
Memory: one row group, about 1,000,000 tokens.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from maskpipe import card
from maskpipe.errors import MaskpipeError, UsageError
from maskpipe.shards.format import Branch
from maskpipe.shards.reader import Dataset, Sequence
from maskpipe.shards.reader import open as open_dataset
from maskpipe.shards.writer import create_directory

IGNORE = -100
"""The label of a token that is no target."""
GROUP_TOKENS = 1_000_000
_COLUMNS = ("input_ids", "labels", "position_ids", "seq_lengths")


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    files: tuple[str, ...]
    sequences: int
    tokens: int
    loss_tokens: int
    reweighted: int = 0
    """Targets whose source weight, neither 0 nor 1, was left out."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "files": list(self.files),
            "sequences": self.sequences,
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "reweighted": self.reweighted,
        }

    def __str__(self) -> str:
        weights = f"weights   {self.reweighted:,} targets have a source weight that labels do not say\n"
        return (
            f"exported  {self.sequences:,} sequences, {self.tokens:,} tokens, {self.loss_tokens:,} with loss, "
            f"to {self.path}\n"
            f"{weights if self.reweighted else ''}"
            f"next      datasets.load_dataset({str(self.path)!r}, split='train'), and in TRL "
            "SFTConfig(padding_free=True, max_length=None)\n"
            f"          less {shlex.quote(str(self.path))}/README.md"
        )


def export(
    out: str | Path, destination: str | Path, to: Literal["hf"] = "hf", *, ignore_weights: bool = False
) -> Exported:
    """Writes the dataset `out` as Parquet into the new directory `destination`, which appears when it is complete.

    UsageError when the destination is there already, or the labels cannot say what the dataset says: source weights
    other than 0 and 1 (unless `ignore_weights`, which counts them), or preference pairs. DatasetError when the dataset
    is damaged.
    """
    if to != "hf":
        raise UsageError(f"--to {to}: only hf is known")
    final = Path(os.path.abspath(destination))
    if final.exists() or final.is_symlink():
        raise UsageError(f"{destination} is already there; nothing is overwritten: choose a new directory")
    with open_dataset(out) as dataset:
        work = create_directory(final.parent / f"{final.name}.tmp-{os.getpid()}")
        try:
            made = _write(dataset, work, final, ignore_weights)
            os.rename(work, final)
        except BaseException:
            for file in work.iterdir():
                file.unlink()
            work.rmdir()
            raise
    return made


def _write(dataset: Dataset, work: Path, final: Path, ignore_weights: bool) -> Exported:
    manifest = dataset.manifest
    counted: Counter[str] = Counter()
    names = []
    first = 0
    for number, shard in enumerate(manifest.shards):
        names.append(f"train-{number:05d}-of-{len(manifest.shards):05d}.parquet")
        rows = (dataset[index] for index in range(first, first + shard.rows))
        columns = (_counted(row, counted, ignore_weights) for row in rows)
        _write_file(work / names[-1], columns, _schema(dataset))
        first += shard.rows
    if counted["loss"] != manifest.totals.n_loss or counted["tokens"] != manifest.totals.n_tokens:
        raise MaskpipeError(f"exported {dict(counted)}, but the manifest counts {manifest.totals}; please report this")
    _save(work / "README.md", _card(dataset).encode())
    _sync(work)
    return Exported(
        final, tuple(names), counted["sequences"], counted["tokens"], counted["loss"], counted["reweighted"]
    )


def _schema(dataset: Dataset) -> pa.Schema:
    manifest = dataset.manifest
    origin = {
        "fingerprint": manifest.fingerprint,
        "recipe_sha256": manifest.recipe_sha256,
        "sequence_length": manifest.sequence_length,
        "pad_id": manifest.pad_id,
    }
    item = pa.field("element", pa.int64(), nullable=False)
    fields = [pa.field(name, pa.list_(item), nullable=False) for name in _COLUMNS]
    return pa.schema(fields, metadata={"maskpipe": json.dumps(origin)})


def _write_file(path: Path, rows: Iterator[tuple[npt.NDArray[np.int64], ...]], schema: pa.Schema) -> None:
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            group: list[tuple[npt.NDArray[np.int64], ...]] = []
            size = 0
            for columns in rows:
                group.append(columns)
                size += len(columns[0])
                if size >= GROUP_TOKENS:
                    writer.write_table(_table(group, schema), row_group_size=len(group))
                    group, size = [], 0
            if group:
                writer.write_table(_table(group, schema), row_group_size=len(group))
        file.flush()
        os.fsync(file.fileno())


def _counted(row: Sequence, counted: Counter[str], ignore_weights: bool) -> tuple[npt.NDArray[np.int64], ...]:
    """The row's columns. UsageError where labels cannot say what the row says."""
    columns = exported_row(row)
    counted.update(sequences=1, tokens=len(columns[0]), loss=int(np.count_nonzero(columns[1] != IGNORE)))
    if np.any(row.documents["branch"] != Branch.NONE):
        raise UsageError("the dataset holds preference pairs, which labels cannot express; train on it with maskpipe")
    weights = row.weights[row.loss_mask > 0]
    partial = weights[(weights != 0) & (weights != 1)]
    if len(partial) and not ignore_weights:
        raise UsageError(
            f"the dataset has source weights other than 0 and 1 (such as {partial[0]:g}), which labels cannot express; "
            "leave them out with --ignore-weights, or train on it with maskpipe"
        )
    counted["reweighted"] += len(partial)
    return columns


def exported_row(row: Sequence) -> tuple[npt.NDArray[np.int64], ...]:
    """input_ids, labels, position_ids, seq_lengths of a row, without its padding."""
    filled = int(row.cu_seqlens[-1])
    loss = row.loss_mask[:filled] > 0
    ids = row.input_ids[:filled].astype(np.int64)
    labels = np.where(loss, ids, IGNORE)
    labels[row.cu_seqlens[:-1]] = IGNORE
    return ids, labels, row.position_ids[:filled].astype(np.int64), np.diff(row.cu_seqlens).astype(np.int64)


def _table(group: list[tuple[npt.NDArray[np.int64], ...]], schema: pa.Schema) -> pa.Table:
    columns = []
    for k, field in enumerate(schema):
        offsets = np.concatenate(([0], np.cumsum([len(row[k]) for row in group]))).astype(np.int32)
        values = pa.array(np.concatenate([row[k] for row in group]))
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _card(dataset: Dataset) -> str:
    manifest = dataset.manifest
    totals = manifest.totals
    return f"""{card.header(totals.sequences, ("maskpipe", manifest.recipe["objective"]), "parquet", "train-*.parquet")}
# {totals.sequences:,} packed rows of up to {manifest.sequence_length:,} tokens, with labels

Exported by maskpipe from the dataset with fingerprint `{manifest.fingerprint}`: {totals.n_tokens:,} tokens,
{totals.n_loss:,} of them targets.

| column | what it is |
| --- | --- |
| input_ids | int64, the tokens of one row, several documents one after another, no padding |
| labels | int64, the token where it is a target, else {IGNORE}; not shifted; every document's first token is {IGNORE} |
| position_ids | int64, from 0 in each document |
| seq_lengths | int64, the length of each document; their sum is the length of the row |

A model must not attend across documents: use a trainer's padding-free path, which reads seq_lengths or position_ids.
In TRL:

```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

args = SFTConfig(padding_free=True, max_length=None, per_device_train_batch_size=1)
SFTTrainer(model=..., args=args, train_dataset=load_dataset("DEST", split="train")).train()
```
"""


def _save(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
