"""Datasets as other tools write them, made here from maskpipe's own documents: the clean data of the foreign audit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

IGNORE = -100


@dataclass
class Chat:
    """One document on its way into a foreign dataset; ids and loss may be changed by whoever plants a defect."""

    ids: list[int]
    loss: list[int]
    roles: list[int]
    sampled: list[int]
    parts: list[int]

    @property
    def labels(self) -> list[int]:
        return [id if loss else IGNORE for id, loss in zip(self.ids, self.loss, strict=True)]


Columns = dict[str, list[list[int]]]


def unpacked(chats: Sequence[Chat]) -> Columns:
    """input_ids and labels, one chat per row."""
    return {"input_ids": [list(chat.ids) for chat in chats], "labels": [chat.labels for chat in chats]}


def with_mask(name: str) -> Callable[[Sequence[Chat]], Columns]:
    def make(chats: Sequence[Chat]) -> Columns:
        return {"input_ids": [list(chat.ids) for chat in chats], name: [list(chat.loss) for chat in chats]}

    return make


def packed(chats: Sequence[Chat], per_row: int = 3) -> Columns:
    """input_ids, labels, position_ids and seq_lengths, some chats per row."""
    groups = [chats[at : at + per_row] for at in range(0, len(chats), per_row)]
    return {
        "input_ids": [[id for chat in group for id in chat.ids] for group in groups],
        "labels": [[label for chat in group for label in chat.labels] for group in groups],
        "position_ids": [[at for chat in group for at in range(len(chat.ids))] for group in groups],
        "seq_lengths": [[len(chat.ids) for chat in group] for group in groups],
    }


def padded(chats: Sequence[Chat], pad: int) -> Columns:
    """Rows of one length with an attention mask, as a collator makes them."""
    longest = max(len(chat.ids) for chat in chats)
    columns: Columns = {"input_ids": [], "labels": [], "attention_mask": []}
    for chat in chats:
        more = longest - len(chat.ids)
        columns["input_ids"].append([*chat.ids, *[pad] * more])
        columns["labels"].append([*chat.labels, *[IGNORE] * more])
        columns["attention_mask"].append([1] * len(chat.ids) + [0] * more)
    return columns


def megatron(chats: Sequence[Chat], per_row: int = 3) -> Columns:
    """Packed rows whose mask stands at the token that predicts."""
    out = packed(chats, per_row)
    masks, starts = [], []
    for labels, lengths in zip(out["labels"], out["seq_lengths"], strict=True):
        masks.append([int(label != IGNORE) for label in [*labels[1:], IGNORE]])
        starts.append([int(at) for at in np.cumsum([0, *lengths[:-1]])])
    return {"input_ids": out["input_ids"], "loss_mask": masks, "seq_start_id": starts}


def table(columns: Columns) -> pa.Table:
    return pa.table({name: pa.array(rows, pa.list_(pa.int64())) for name, rows in columns.items()})


def write_parquet(path: Path, columns: Columns) -> Path:
    path.mkdir()
    pq.write_table(table(columns), path / "train-00000-of-00001.parquet", row_group_size=7)
    return path


def write_saved(path: Path, columns: Columns, files: int = 2) -> Path:
    """What `Dataset.save_to_disk` writes."""
    path.mkdir(parents=True)
    rows = table(columns)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    each = -(-len(rows) // files)
    for number, name in enumerate(names):
        with pa.OSFile(str(path / name), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows.slice(number * each, each), max_chunksize=3)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (path / "dataset_info.json").write_text("{}")
    return path


def write_olmo(path: Path, chats: Sequence[Chat], dtype: Any, described: Mapping[str, Any] | None = None) -> Path:
    """OLMo-core's raw arrays with a label mask and borders."""
    path.mkdir()
    ends = np.cumsum([len(chat.ids) for chat in chats]).tolist()
    np.concatenate([np.array(chat.ids) for chat in chats]).astype(dtype).tofile(path / "token_ids_part_00000.npy")
    masks: npt.NDArray[np.bool_] = np.concatenate([np.array(chat.loss, np.bool_) for chat in chats])
    masks.tofile(path / "labels_mask_part_00000.npy")
    lines = "".join(f"{start},{end}\n" for start, end in zip([0, *ends[:-1]], ends, strict=True))
    (path / "token_ids_part_00000.csv.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    if described is not None:
        (path / "dataset.json").write_text(json.dumps(described))
    return path
