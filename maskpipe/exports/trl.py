"""export --to trl: what SFTTrainer of TRL takes as it is: Parquet with input_ids, labels and seq_lengths.

Checked with TRL 1.16.0, whose trainer builds no labels where the column is there, keeps seq_lengths, and whose collator
with padding_free makes position_ids and cu_seq_lens from them and the first label of every document -100, which it is
already. labels are not shifted: the model does. With `unpack` a row is one document without seq_lengths, for a trainer
that pads, or packs by itself.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from maskpipe import card as cards
from maskpipe.exports.hf import names as names
from maskpipe.exports.hf import write_labelled
from maskpipe.exports.rows import IGNORE, LOST, Options
from maskpipe.shards.reader import Dataset

if TYPE_CHECKING:
    from maskpipe.exports.exporting import Exported

OPTIONS = ("ignore_weights", "unpack")


def write(dataset: Dataset, work: Path, counted: Counter[str], options: Options) -> None:
    columns = ("input_ids", "labels") if options.unpack else ("input_ids", "labels", "seq_lengths")
    write_labelled(dataset, work, counted, options, {name: pa.int64() for name in columns})


def card(dataset: Dataset, made: Exported, options: Options) -> str:
    """README.md."""
    manifest, totals = dataset.manifest, dataset.manifest.totals
    rows = made.counted["documents"] if options.unpack else totals.sequences
    packed = "| seq_lengths | int64, the length of each document; their sum is the length of the row |\n"
    settings = "max_length=None" if options.unpack else "padding_free=True, max_length=None"
    advice = (
        "Rows are single documents, padded by the collator, so nothing attends across them."
        if options.unpack
        else "Without `padding_free=True` (which needs an attention that reads borders, such as Flash Attention) "
        "documents of a row attend\nto each other: export with `--unpack` instead."
    )
    return f"""{cards.header(rows, ("maskpipe", manifest.recipe["objective"]), "parquet", "train-*.parquet")}
# {rows:,} rows of up to {manifest.sequence_length:,} tokens for TRL's SFTTrainer

Exported by maskpipe from the dataset with fingerprint `{manifest.fingerprint}`: {totals.n_tokens:,} tokens,
{totals.n_loss:,} of them targets. What is not here: {LOST}.

| column | what it is |
| --- | --- |
| input_ids | int64, the tokens of one row, no padding |
| labels | int64, the token where it is a target, else {IGNORE}; not shifted; every document's first token is {IGNORE} |
{"" if options.unpack else packed}
```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

args = SFTConfig({settings}, packing=False, per_device_train_batch_size=1)
SFTTrainer(model=..., args=args, train_dataset=load_dataset("DEST", split="train")).train()
```

`max_length=None` matters: its default, 1,024, would cut every row. {advice}
Checked with TRL 1.16.0.
"""
