"""export --to trl-dpo: pairs as the collator of TRL's DPOTrainer takes them: prompt_ids, chosen_ids, rejected_ids.

    chosen    p p p h a a stop \\n        prompt_ids    p p p h
    rejected  p p p h b stop \\n          chosen_ids    a a stop          rejected_ids  b stop

TRL gives loss to every token behind the prompt. So a pair is written only where that is what the dataset says: the
prompt is the same tokens on both sides, and each answer is one stretch of tokens with loss. What follows an answer is
left out (no token with loss sees it) and counted. Checked with TRL 1.16.0, whose trainer tokenizes every dataset anew
unless its _prepare_dataset is overridden, as the card shows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from maskpipe import card as cards
from maskpipe.document import Document, Int32
from maskpipe.errors import UsageError
from maskpipe.exports.hf import names as names
from maskpipe.exports.hf import origin
from maskpipe.exports.parquet import Columns, list_schema, write_parquet
from maskpipe.exports.rows import LOST, Options
from maskpipe.roles import Branch
from maskpipe.shards.reader import Dataset

if TYPE_CHECKING:
    from maskpipe.exports.exporting import Exported

OPTIONS = ("ignore_weights",)
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def write(dataset: Dataset, work: Path, counted: Counter[str], options: Options) -> None:
    if dataset.manifest.recipe["objective"] != "preference":
        raise UsageError(
            f"--to trl-dpo writes preference pairs, and {dataset.path} was prepared with objective "
            f"{dataset.manifest.recipe['objective']!r}"
        )
    schema = list_schema(dict.fromkeys(COLUMNS, pa.int64()), {"maskpipe": json.dumps(origin(dataset))})
    first = 0
    for name, shard in zip(names(dataset, options), dataset.manifest.shards, strict=True):
        write_parquet(work / name, _pairs(dataset, first, first + shard.rows, counted, options), schema)
        first += shard.rows


def _pairs(dataset: Dataset, first: int, stop: int, counted: Counter[str], options: Options) -> Iterator[Columns]:
    for index in range(first, stop):
        documents = list(dataset.documents_of(index))
        counted["sequences"] += 1
        counted["documents"] += len(documents)
        counted["tokens"] += sum(map(len, documents))
        counted["loss"] += sum(int(document.loss_mask.sum()) for document in documents)
        for number, document in enumerate(documents):
            if document.pair is None:
                raise UsageError(
                    f"record {document.row} of source {document.source} is an answer without a rival, which a pair "
                    "cannot say; train on it with maskpipe"
                )
            if document.branch is Branch.REJECTED:
                shared = document.parent is not None
                prompt = documents[number - 2 : number - 1] if shared else []
                yield _columns(prompt, documents[number - 1], document, counted, options)


def _columns(
    prompt: list[Document], chosen: Document, rejected: Document, counted: Counter[str], options: Options
) -> Columns:
    sides = [_split(document, counted, options) for document in (chosen, rejected)]
    (before, one), (same, two) = sides
    if not np.array_equal(before, same):
        raise UsageError(
            f"record {chosen.row} of source {chosen.source}: the prompt is other tokens on each side, which TRL cannot "
            "say; train on it with maskpipe"
        )
    head = [document.input_ids for document in prompt]
    counted["written_tokens"] += sum(map(len, head)) + len(before) + len(same) + len(one) + len(two)
    counted["written_loss"] += len(one) + len(two)
    counted["pairs"] += 1
    return tuple(array.astype(np.int64) for array in (np.concatenate([*head, before]), one, two))


def _split(document: Document, counted: Counter[str], options: Options) -> tuple[Int32, Int32]:
    """The tokens before the answer, and the answer: one stretch of tokens with loss."""
    places = np.flatnonzero(document.loss_mask)
    start, stop = int(places[0]), int(places[-1]) + 1
    if stop - start != len(places):
        raise UsageError(
            f"record {document.row} of source {document.source}: the {document.branch.name.lower()} answer has tokens "
            "without loss inside, such as tool outputs or a user's turn, and TRL would train them; train on it with "
            "maskpipe"
        )
    weights = document.weights
    if weights is not None and np.any(weights[start:stop] != 1):
        if not options.ignore_weights:
            raise UsageError(
                f"record {document.row} of source {document.source} has a source weight other than 0 and 1, which TRL "
                "cannot say; leave it out with --ignore-weights, or train on it with maskpipe"
            )
        counted["reweighted"] += int(np.count_nonzero(weights[start:stop] != 1))
    counted["behind_answers"] += len(document) - stop
    return document.input_ids[:start], document.input_ids[start:stop]


def card(dataset: Dataset, made: Exported, options: Options) -> str:
    """README.md."""
    manifest, totals = dataset.manifest, dataset.manifest.totals
    pairs = made.counted["pairs"]
    return f"""{cards.header(pairs, ("maskpipe", "preference"), "parquet", "train-*.parquet")}
# {pairs:,} preference pairs for TRL's DPOTrainer

Exported by maskpipe from the dataset with fingerprint `{manifest.fingerprint}`: {totals.n_tokens:,} tokens,
{totals.n_loss:,} of them targets. What is not here: {LOST}; scores.

| column | what it is |
| --- | --- |
| prompt_ids | int64, the tokens before both answers |
| chosen_ids | int64, the tokens of the chosen answer, its stop token with it |
| rejected_ids | the same of the rejected answer |

```python
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

class Tokenized(DPOTrainer):
    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # TRL would tokenize it anew

args = DPOConfig(max_length=None)
Tokenized(model=..., args=args, train_dataset=load_dataset("DEST", split="train"), processing_class=...).train()
```

Checked with TRL 1.16.0.
"""
