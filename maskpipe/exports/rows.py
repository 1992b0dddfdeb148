"""A row as a trainer sees it: tokens without padding, which of them have loss, and how long each document is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from maskpipe.errors import UsageError
from maskpipe.shards.format import Branch
from maskpipe.shards.reader import Dataset, Sequence

IGNORE = -100
"""The label of a token that is no target."""
LOST = (
    "roles, parts, the sampled flag, which message a token is of, verdicts, and which record a document comes from: "
    "nothing but the loss of each token is kept, so it cannot be decided again"
)
"""What no target keeps."""


@dataclass(frozen=True)
class Options:
    """What to do with what a target cannot say; each is counted."""

    ignore_weights: bool = False
    """Leave out source weights other than 0 and 1."""
    unpack: bool = False
    """One document per row (hf, trl)."""
    across_documents: bool = False
    """Rows of fixed length without borders: the model attends across documents (olmo)."""
    allow_lost_targets: bool = False
    """Go on where the target's reader takes the loss from some tokens (megatron-bridge)."""


@dataclass(frozen=True, eq=False)
class Row:
    """n tokens: documents one after another, no padding."""

    ids: npt.NDArray[np.int32]  # [n]
    loss: npt.NDArray[np.bool_]  # [n] a target, predicted from the token before it; never the first of a document
    lengths: npt.NDArray[np.int64]  # [documents], their sum is n

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """[documents] where each begins."""
        starts: npt.NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[n] the token's own id where it is a target, else IGNORE: not shifted."""
        return np.where(self.loss, self.ids, IGNORE).astype(np.int64)

    @property
    def position_ids(self) -> npt.NDArray[np.int64]:
        """[n] from 0 in each document."""
        positions: npt.NDArray[np.int64] = np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)
        return positions

    def documents(self) -> Iterator[Row]:
        """Each document as a row of its own."""
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            part = slice(start, start + length)
            yield replace(self, ids=self.ids[part], loss=self.loss[part], lengths=np.array([length], np.int64))


def of_sequence(sequence: Sequence) -> Row:
    """The row of a packed sequence."""
    filled = int(sequence.cu_seqlens[-1])
    loss = sequence.loss_mask[:filled] > 0
    loss[sequence.cu_seqlens[:-1]] = False  # the format says so already (F17)
    return Row(sequence.input_ids[:filled], loss, np.diff(sequence.cu_seqlens).astype(np.int64))


def rows_of(dataset: Dataset, shard: int, counted: Counter[str], options: Options) -> Iterator[Row]:
    """The rows of a shard, in order. Counts sequences, documents, tokens, loss and reweighted. UsageError where a loss
    mask cannot say what a row says."""
    first = sum(entry.rows for entry in dataset.manifest.shards[:shard])
    for index in range(first, first + dataset.manifest.shards[shard].rows):
        sequence = dataset[index]
        if np.any((sequence.documents["branch"] != Branch.NONE) | (sequence.documents["label"] >= 0)):
            raise UsageError(
                "the dataset holds preference pairs or labelled answers, which a loss mask cannot express; train on it "
                "with maskpipe, or export pairs with --to trl-dpo"
            )
        weights = sequence.weights[sequence.loss_mask > 0]
        partial = weights[(weights != 0) & (weights != 1)]
        if len(partial) and not options.ignore_weights:
            raise UsageError(
                f"the dataset has source weights other than 0 and 1 (such as {partial[0]:g}), which a loss mask cannot "
                "express; leave them out with --ignore-weights, or train on it with maskpipe"
            )
        row = of_sequence(sequence)
        counted.update(
            sequences=1,
            documents=len(row.lengths),
            tokens=len(row.ids),
            loss=int(row.loss.sum()),
            reweighted=len(partial),
        )
        yield row
