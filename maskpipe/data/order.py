"""Which row stands at which position: a pure function of seed, datasets, mixture and position. No table, no buffer.

    position ─interleave─▶ source, count of that source ─epoch, index─▶ keyed permutation ─▶ row

Every rank computes the same order and takes its slice of it, so ranks, threads and accumulation never change it. The
order inside a source does not depend on the mixture: with other weights, or one source more, each source goes on at its
own count and repeats nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.errors import UsageError

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

MAX_RATES = 2**53
"""Largest sum of the rates of a mixture; shares that need more are rounded to it (relative error 10^-16)."""


def epoch_key(seed: int, fingerprint: str) -> list[int]:
    """Four words of 64 bits from the seed and the content of the dataset; the core mixes in the epoch."""
    digest = hashlib.sha256(f"maskpipe order 1\n{seed}\n{fingerprint}".encode()).digest()
    return [int.from_bytes(digest[8 * k : 8 * k + 8], "little") for k in range(4)]


def whole_rates(shares: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers in the proportion of `shares` (at least one above 0); exact when their sum is at most
    MAX_RATES, else the nearest that are."""
    scale = math.lcm(*(share.denominator for share in shares))
    whole = [int(share * scale) for share in shares]
    divisor = math.gcd(*whole)
    rates = [value // divisor for value in whole]
    total = sum(rates)
    if total > MAX_RATES:
        limit = MAX_RATES - len(rates)
        rates = [max(1, rate * limit // total) if rate else 0 for rate in rates]
    return rates


@dataclass(frozen=True)
class Place:
    """Where the order stands. One counter and one credit per source say all of it."""

    counts: tuple[int, ...]
    """Rows delivered of each source, over all epochs."""
    credits: tuple[int, ...]
    """What the mixture owes to each source, in units of 1 / sum of the rates; all 0 where a mixture begins."""


@dataclass(frozen=True)
class Order:
    """The order of one run over some sources."""

    rows: tuple[int, ...]
    """Rows of each source, at least 1."""
    rates: tuple[int, ...]
    """Parts of the mixture, at least 0; the sum is above 0."""
    keys: tuple[tuple[int, ...], ...]
    shuffle: bool
    window: int = 0
    """0 shuffles an epoch as a whole; else so many neighbouring blocks of `block_rows` rows at a time."""
    block_rows: int = 1

    def take(self, place: Place, positions: int, begin: int, end: int) -> tuple[Int32, Int64, Place]:
        """Source [end - begin] and row [end - begin] of the positions `begin` to `end` of the next `positions`, and the
        place after all of them."""
        sources, counts, after = self.schedule(place, positions)
        of = sources[begin:end]
        rows, blocks, windows, keys = self._shapes
        return of, _core.rows_at(rows, blocks, windows, self.shuffle, keys, of, counts[begin:end]), after

    def schedule(self, place: Place, positions: int) -> tuple[Int32, Int64, Place]:
        """Source and count of that source of the next positions, and the place after them."""
        if len(self.rows) == 1:
            first = place.counts[0]
            counts = np.arange(first, first + positions, dtype=np.int64)
            return np.zeros(positions, np.int32), counts, replace(place, counts=(first + positions,))
        out = _core.interleave(
            np.array(self.rates, np.int64),
            np.array(place.credits, np.int64),
            np.array(place.counts, np.int64),
            positions,
        )
        return out.sources, out.counts_before, Place(tuple(out.counts.tolist()), tuple(out.credits.tolist()))

    def __post_init__(self) -> None:
        block = [min(self.block_rows, rows) for rows in self.rows]
        window = [min(self.window, -(-rows // b)) for rows, b in zip(self.rows, block, strict=True)]
        words = [word for key in self.keys for word in key]
        shapes = (np.array(self.rows, np.int64), np.array(block, np.int64), np.array(window, np.int64))
        object.__setattr__(self, "_shapes", (*shapes, np.array(words, np.uint64)))

    _shapes: tuple[Int64, Int64, Int64, npt.NDArray[np.uint64]] = None  # type: ignore[assignment]


def shares_of(weights: Sequence[float | Fraction], rows: Sequence[int], units: Sequence[int]) -> list[Fraction]:
    """Shares of rows that give the sources `weights` of some unit, of which source s has units[s] in rows[s] rows.

    UsageError for a weight that is negative or not finite, when all are 0, or when a source with a weight has none of
    the unit."""
    out = []
    for number, (weight, n, unit) in enumerate(zip(weights, rows, units, strict=True)):
        if not isinstance(weight, Fraction) and not math.isfinite(weight):
            raise UsageError(f"mixture: weight {weight} of source {number} is not finite")
        if weight < 0:
            raise UsageError(f"mixture: weight {weight} of source {number} is negative")
        if weight > 0 and unit < 1:
            raise UsageError(f"mixture: source {number} has none of the unit that the mixture counts in")
        exact = weight if isinstance(weight, Fraction) else Fraction(str(weight))  # 0.1 is one tenth
        out.append(exact * n / unit if weight else Fraction(0))
    if not any(out):
        raise UsageError("mixture: every weight is 0")
    return out
