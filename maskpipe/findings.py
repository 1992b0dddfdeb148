"""Finding: one thing that a person should know before trusting a dataset, with the places where it was seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where something was seen. What does not apply is empty or -1."""

    file: str = ""
    """A shard's or file's name."""
    row: int = -1
    """Row of the dataset (own and foreign), or number of the batch's row among all rows that were looked at."""
    start: int = -1
    """Token position in the row; with `end` a range."""
    end: int = -1
    source: str = ""
    """The source's name, as the manifest gives it."""
    record: int = -1
    """0-based record number in that source."""
    message: int = -1
    field: str = ""


@dataclass(frozen=True)
class Finding:
    """What was found, under a code of rules.py."""

    code: str
    text: str
    count: int = 1
    """How often; of what, `text` says."""
    places: tuple[Place, ...] = ()
    """The first of them, in the order of the dataset."""

    def __str__(self) -> str:
        return f"{self.code} {self.text}"
