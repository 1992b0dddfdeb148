"""The slow twin of csrc/scan.cpp: the same with numpy, as passes over numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


def count_marked(marked: Bool, starts: Int64, ends: Int64) -> list[int]:
    total = np.concatenate([[0], np.cumsum(marked)])
    return list((total[np.maximum(ends, starts)] - total[starts]).tolist())


def count_values(values: npt.NDArray[np.uint8], marked: Bool) -> list[int]:
    return list(np.bincount(values[marked], minlength=256).tolist())


def listed(ids: npt.NDArray[np.int32], table: Bool) -> list[bool]:
    return list(np.isin(ids, np.flatnonzero(table)).tolist())


def marked_at_ends(marked: Bool, offsets: Int64) -> list[bool]:
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    free = np.concatenate([[0], np.cumsum(~marked)])
    before = free[:-1] - free[offsets[row]]
    after = free[offsets[row + 1]] - free[1:]
    return list((marked & ((before == 0) | (after == 0))).tolist())


def first_marked(marked: Bool, offsets: Int64) -> list[bool]:
    count = np.concatenate([[0], np.cumsum(marked)])
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return list((marked & (count[:-1] == count[offsets[row]])).tolist())


def behind_last_marked(marked: Bool, starts: Int64, ends: Int64) -> list[int]:
    last = np.maximum.accumulate(np.append(-1, np.where(marked, np.arange(len(marked)), -1)))
    return list(np.maximum(last[np.maximum(ends, starts)] + 1, starts).tolist())


def mark_ranges(size: int, starts: Int64, ends: Int64) -> list[bool]:
    at = np.arange(size)
    return list(np.any([(at >= s) & (at < e) for s, e in zip(starts, ends, strict=True)] + [at < 0], axis=0).tolist())


def starts_of_positions(values: Int64, real: Bool, alone: Bool, offsets: Int64) -> tuple[list[bool], list[int]]:
    row_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    previous = np.concatenate([[0], values[:-1]])
    starts = real & ((values == 0) | alone)
    bad = real & np.where(alone, values != 0, (values != 0) & (values != previous + 1))
    return starts.tolist(), np.unique(row_of[bad]).tolist()


def starts_of_numbers(values: Int64, real: Bool, alone: Bool, offsets: Int64) -> tuple[list[bool], list[int]]:
    row_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    previous = np.concatenate([[0], values[:-1]])
    starts = real & (alone | (values != previous))
    bad = real & starts & ~alone & (values < previous)
    return starts.tolist(), np.unique(row_of[bad]).tolist()
