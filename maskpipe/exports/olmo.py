"""export --to olmo: plain arrays, as NumpyPackedFSLDataset of OLMo-core 3.0.0 reads them.

    token_ids_part_00000.npy       uint8, 16, 32 or 64, the smallest that holds the vocabulary: documents, no padding
    labels_mask_part_00000.npy     bool, 1 where the token is a target: not shifted, OLMo-core shifts
    token_ids_part_00000.csv.gz    a line "start,end" per document

The arrays are raw bytes without a header: what numpy.memmap reads, not numpy.load. OLMo-core packs the documents anew,
whole. Their borders are in the csv.gz alone, so it must be told to read that (`use_array_if_local=False`); by default
it looks for eos tokens, and a chat has one after every turn.

With `across_documents` rows stay as they are packed, padded to the sequence length, for NumpyFSLDataset: it knows no
borders, so the model attends across documents.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskpipe.exports.hf import origin
from maskpipe.exports.rows import LOST, Options, rows_of
from maskpipe.shards.reader import Dataset

if TYPE_CHECKING:
    from maskpipe.exports.exporting import Exported

OPTIONS = ("ignore_weights", "across_documents")
DESCRIPTION = "dataset.json"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type that OLMo-core assumes for a vocabulary: the smallest unsigned one that holds its ids."""
    kinds = (np.uint8, np.uint16, np.uint32, np.uint64)
    return np.dtype(next(kind for kind in kinds if vocab_size - 1 <= np.iinfo(kind).max))


def names(dataset: Dataset, options: Options) -> list[str]:
    """Arrays per shard, and what says their type."""
    per_shard = [_names(number, options) for number in range(len(dataset.manifest.shards))]
    return [*itertools.chain.from_iterable(per_shard), DESCRIPTION]


def _names(number: int, options: Options) -> list[str]:
    ids = f"token_ids_part_{number:05d}"
    mask = f"labels_mask_part_{number:05d}.npy"
    return [f"{ids}.npy", mask] if options.across_documents else [f"{ids}.npy", mask, f"{ids}.csv.gz"]


def write(dataset: Dataset, work: Path, counted: Counter[str], options: Options) -> None:
    manifest = dataset.manifest
    dtype = token_dtype(manifest.vocab_size)
    for number in range(len(manifest.shards)):
        ids, mask, *borders = _names(number, options)
        with (work / ids).open("wb") as ids_file, (work / mask).open("wb") as mask_file:
            lines = []
            at = 0
            for row in rows_of(dataset, number, counted, options):
                ids_file.write(row.ids.astype(dtype).tobytes())
                mask_file.write(row.loss.tobytes())
                counted["written_tokens"] += len(row.ids)
                counted["written_loss"] += int(row.loss.sum())
                if options.across_documents:
                    padding = manifest.sequence_length - len(row.ids)
                    ids_file.write(np.full(padding, manifest.pad_id, dtype).tobytes())
                    mask_file.write(bytes(padding))
                else:
                    starts = row.starts + at
                    lines += [f"{start},{stop}\n" for start, stop in zip(starts, starts + row.lengths, strict=True)]
                    at += len(row.ids)
            for file in (ids_file, mask_file):
                file.flush()
                os.fsync(file.fileno())
        for name in borders:
            with (work / name).open("wb") as raw:
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                    packed.write("".join(lines).encode())
                raw.flush()
                os.fsync(raw.fileno())
    with (work / DESCRIPTION).open("w") as described:
        json.dump({**origin(dataset), "dtype": dtype.name, "vocab_size": manifest.vocab_size}, described, indent=1)
        described.flush()
        os.fsync(described.fileno())


def card(dataset: Dataset, made: Exported, options: Options) -> str:
    """README.md."""
    manifest, totals = dataset.manifest, dataset.manifest.totals
    dtype = token_dtype(manifest.vocab_size).name
    kind = "NumpyFSLDatasetConfig" if options.across_documents else "NumpyPackedFSLDatasetConfig"
    borders = (
        ""
        if options.across_documents
        else "    use_array_if_local=False,      # borders from the csv.gz, not from eos tokens\n"
        "    generate_doc_lengths=True,     # so that nothing attends across documents\n"
    )
    warning = (
        "**Rows have no document borders: the model attends across documents.**"
        if options.across_documents
        else "`token_ids_part_*.csv.gz` holds a line `start,end` per document; OLMo-core packs them anew, whole."
    )
    return f"""# {totals.n_tokens:,} tokens for OLMo-core, with a label mask

Exported by maskpipe from the dataset with fingerprint `{manifest.fingerprint}`: {totals.documents:,} documents,
{totals.n_tokens:,} tokens, {totals.n_loss:,} of them targets. What is not here: {LOST}.

`token_ids_part_*.npy` are raw {dtype} (numpy.memmap, no header), `labels_mask_part_*.npy` raw bool, 1 where the token
itself is a target (OLMo-core shifts). {warning}

```python
from olmo_core.data import {kind}

{kind}(
    tokenizer=...,                 # that of the dataset; pad id {manifest.pad_id}
    paths=sorted(glob("DEST/token_ids_part_*.npy")),
    label_mask_paths=sorted(glob("DEST/labels_mask_part_*.npy")),
    sequence_length={manifest.sequence_length},
    dtype="{dtype}",
{borders})
```

Checked with OLMo-core 3.0.0.
"""
