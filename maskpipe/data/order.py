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
from fractions import Fraction
from numbers import Rational, Real

import numpy as np
import numpy.typing as npt

from maskpipe.errors import UsageError

Int64 = npt.NDArray[np.int64]

MAX_RATES = 2**53
"""Largest sum of the rates of a mixture; shares that need more are rounded to it (relative error 10^-16)."""


MAX_SOURCES = 1024
"""Of a mixture."""


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


def shapes_of(rows: Sequence[int], window: int, block_rows: int) -> tuple[Int64, Int64, Int64]:
    """What the core takes, per source: rows, rows of a block, blocks of a window (0: all of an epoch)."""
    blocks = [min(block_rows, n) for n in rows]
    windows = [min(window, -(-n // block)) for n, block in zip(rows, blocks, strict=True)]
    return np.array(rows, np.int64), np.array(blocks, np.int64), np.array(windows, np.int64)


def shares_of(weights: Sequence[float | Fraction], rows: Sequence[int], units: Sequence[int]) -> list[Fraction]:
    """Shares of rows that give the sources `weights` of some unit, of which source s has units[s] in rows[s] rows.

    UsageError for a weight that is no number, negative or not finite, when all are 0, or when a source with a weight
    has none of the unit."""
    out = []
    for number, (weight, n, unit) in enumerate(zip(weights, rows, units, strict=True)):
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise UsageError(f"mixture: weight {weight!r} of source {number} is no number")
        if not isinstance(weight, Rational) and not math.isfinite(weight):
            raise UsageError(f"mixture: weight {weight} of source {number} is not finite")
        if weight < 0:
            raise UsageError(f"mixture: weight {weight} of source {number} is negative")
        if weight > 0 and unit < 1:
            raise UsageError(f"mixture: source {number} has none of the unit that the mixture counts in")
        exact = Fraction(weight if isinstance(weight, Rational) else str(weight))  # 0.1 is one tenth
        out.append(exact * n / unit if weight else Fraction(0))
    if not any(out):
        raise UsageError("mixture: every weight is 0")
    return out
