"""view: rows of a dataset token by token, in a terminal as explain shows a record, or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maskpipe.auditing.gallery import Gallery, of_dataset
from maskpipe.auditing.report import Report
from maskpipe.auditing.specimens import bounds, documents
from maskpipe.errors import UsageError
from maskpipe.explain import Explanation
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.shards.reader import Dataset
from maskpipe.tokenizer import Tokenizer


def explanation(dataset: Dataset, row: int) -> Explanation:
    """Why each token of a packed row is trained, or not. UsageError when there is no such row, or no tokenizer
    inside; DatasetError when it cannot be read."""
    check_rows(dataset, [row])
    sequence, manifest = dataset[row], dataset.manifest
    return Explanation(
        place=f"{dataset.path} row {row}",
        row=row,
        conversation=None,
        tokenizer=Tokenizer.load(dataset.path),
        policy=Policy.of(Recipe.from_dict(manifest.recipe)),
        documents=documents(sequence),
        origins=[
            ", ".join([each.title, *each.notes])
            for each in bounds(sequence, [source.name for source in manifest.sources])
        ],
    )


def with_rows(report: Report, dataset: Dataset, rows: Sequence[int]) -> Report:
    """The report, showing these rows and no others. UsageError when there is no such row."""
    check_rows(dataset, rows)
    return replace(report, gallery=Gallery(lambda *_: dict.fromkeys(rows, ("asked for",)), of_dataset(dataset).look))


def check_rows(dataset: Dataset, rows: Sequence[int]) -> None:
    """UsageError for a row that is not there."""
    for row in rows:
        if not 0 <= row < len(dataset):
            raise UsageError(f"{dataset.path} has no row {row}; it has {len(dataset):,}, the first is --row 0")
