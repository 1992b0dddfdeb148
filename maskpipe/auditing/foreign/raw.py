"""Stretch: some rows of a foreign dataset as its columns say them, before anything is understood of them.

input_ids [[5, 6, 7], [8, 9]]   ->   values 5 6 7 8 9, offsets 0 3 5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """One column: row r has values[offsets[r]:offsets[r + 1]]."""

    values: npt.NDArray[Any]  # [n] integers, booleans or floats
    offsets: Int64  # [rows + 1], from 0 to n

    @property
    def lengths(self) -> Int64:
        """[rows]"""
        return np.diff(self.offsets)

    def take(self, rows: Int64) -> Ragged:
        """Only these rows, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[at], offsets)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Rows first, first + 1, … of a dataset, all of one file."""

    file: str
    first: int
    """Number of the first row among all rows of the dataset."""
    columns: Mapping[str, Ragged]
    """Those that may say something; all have the same number of rows."""

    @property
    def rows(self) -> int:
        return len(self.columns["input_ids"].offsets) - 1
