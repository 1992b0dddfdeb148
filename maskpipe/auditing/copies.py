"""Identical documents, exactly and in bounded memory: hashes go to unnamed temporary files, split by their first bits.

32 bytes per document; 64 files, each sorted on its own
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

HELD = 1 << 21
"""Documents that are kept in memory before they are written out."""
PARTS = 64
_DTYPE = np.dtype([("hash", "<u8"), ("origin", "<u8"), ("row", "<i8"), ("tokens", "<i8")])


@dataclass(frozen=True)
class Found:
    """What is there more than once."""

    copies: int = 0
    """Documents that equal one before them, of another record."""
    originals: int = 0
    """Documents of which there is a copy."""
    tokens: int = 0
    """Tokens of the copies."""
    repeats: int = 0
    """Documents that equal one before them, of the same place of the same record, beyond what the recipe repeats."""
    repeat_rows: tuple[int, ...] = ()
    """Rows of the first of them."""
    copy_rows: tuple[int, ...] = ()


class Copies:
    """Collects documents; `find` says which are alike."""

    def __init__(self, held: int = HELD) -> None:
        self._stack = ExitStack()
        self._held: list[npt.NDArray[np.void]] = []
        self._n_held = 0
        self._limit = held
        self._files: list[IO[bytes]] = []

    def add(
        self,
        hashes: npt.NDArray[np.uint64],
        origins: npt.NDArray[np.uint64],
        rows: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int32],
    ) -> None:
        """Documents in the order of the dataset: hash of their ids, hash of where they come from, row, length."""
        entries = np.empty(len(hashes), _DTYPE)
        entries["hash"], entries["origin"], entries["row"], entries["tokens"] = hashes, origins, rows, tokens
        self._held.append(entries)
        self._n_held += len(entries)
        if self._n_held >= self._limit:
            self._spill()

    def find(self, *, repeats: int = 1, max_rows: int = 20) -> Found:
        """What is alike. `repeats`: how often the recipe takes a record."""
        total = Found()
        for part in self._parts():
            total = _joined(total, _alike(part, repeats), max_rows)
        return total

    def close(self) -> None:
        """Gives the temporary files back."""
        self._stack.close()

    def _spill(self) -> None:
        if not self._files:
            make = tempfile.TemporaryFile
            self._files = [self._stack.enter_context(make()) for _ in range(PARTS)]
        entries = np.concatenate(self._held)
        part = (entries["hash"] >> np.uint64(58)).astype(np.int64)
        for number, file in enumerate(self._files):
            file.write(entries[part == number].tobytes())
        self._held, self._n_held = [], 0

    def _parts(self) -> Iterator[npt.NDArray[np.void]]:
        if not self._files:
            yield np.concatenate([np.empty(0, _DTYPE), *self._held])
            return
        self._spill_rest()
        for file in self._files:
            file.seek(0)
            yield np.frombuffer(file.read(), _DTYPE)

    def _spill_rest(self) -> None:
        if self._held:
            self._spill()


def _alike(entries: npt.NDArray[np.void], repeats: int) -> Found:
    if not len(entries):
        return Found()
    order = np.lexsort((entries["row"], entries["origin"], entries["hash"]))
    entries = entries[order]
    new_hash = np.append(True, entries["hash"][1:] != entries["hash"][:-1])
    new_origin = new_hash | np.append(True, entries["origin"][1:] != entries["origin"][:-1])
    place = np.arange(len(entries)) - np.maximum.accumulate(np.where(new_origin, np.arange(len(entries)), 0))
    again = place >= repeats
    copy = new_origin & ~new_hash
    group = np.cumsum(new_hash) - 1
    originals = int(np.count_nonzero(np.bincount(group[copy], minlength=1)))
    return Found(
        copies=int(copy.sum()),
        originals=originals,
        tokens=int(entries["tokens"][copy].sum()),
        repeats=int(again.sum()),
        repeat_rows=tuple(np.sort(entries["row"][again]).tolist()),
        copy_rows=tuple(np.sort(entries["row"][copy]).tolist()),
    )


def _joined(one: Found, two: Found, max_rows: int) -> Found:
    return Found(
        one.copies + two.copies,
        one.originals + two.originals,
        one.tokens + two.tokens,
        one.repeats + two.repeats,
        tuple(sorted(one.repeat_rows + two.repeat_rows)[:max_rows]),
        tuple(sorted(one.copy_rows + two.copy_rows)[:max_rows]),
    )
