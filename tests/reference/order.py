"""Slow twins of csrc/order: the same order, from whole lists and fractions."""

from __future__ import annotations

from fractions import Fraction

MASK = 2**64 - 1


def mix(x: int) -> int:
    for _ in range(2):
        x ^= x >> 32
        x = x * 0xD6E8FEB86659FD93 & MASK
    return x ^ x >> 32


def round_word(x: int) -> int:
    x = x * 0xD6E8FEB86659FD93 & MASK
    return (x ^ x >> 32) * 0xD6E8FEB86659FD93 & MASK


def epoch_key(key: list[int], epoch: int) -> list[int]:
    state, out = mix((epoch + 0x9E3779B97F4A7C15) & MASK), []
    for k in range(4):
        state = mix((state + key[k] + (k + 1) * 0x9E3779B97F4A7C15) & MASK)
        out.append(state ^ mix((key[3 - k] + epoch * 0xD1342543DE82EF95) & MASK))
    return out


def permutation(key: list[int], size: int) -> list[int]:
    """The images of 0, 1, …: the network over all of [0, 2^bits), cycles cut down to [0, size)."""
    bits = max(2, (size - 1).bit_length())
    high, low = bits // 2, bits - bits // 2
    rounds = 24 if bits <= 8 else 6 if bits <= 12 else 4

    def network(x: int) -> int:
        left, right = x >> low, x & (1 << low) - 1
        for k in range(0, rounds, 2):
            left ^= round_word(right + key[k % 4] + k // 4) >> 64 - high
            right ^= round_word(left + key[(k + 1) % 4] + k // 4) >> 64 - low
        return left << low | right

    out = []
    for x in range(size):
        y = network(x)
        while y >= size:
            y = network(y)
        out.append(y)
    return out


def windows(key: list[int], rows: int, block: int, window: int) -> list[int]:
    """Blocks in random order, one after the other; then so many positions as a window of blocks has, shuffled."""
    blocks = -(-rows // block)
    line = [
        row
        for number in permutation(epoch_key(key, 0), blocks)
        for row in range(number * block, min((number + 1) * block, rows))
    ]
    span, out = rows if window > blocks else window * block, []
    for number, first in enumerate(range(0, rows, span)):
        part = line[first : first + span]
        out += [part[k] for k in permutation(epoch_key(key, number + 1), len(part))]
    return out


def interleave(rates: list[int], positions: int) -> list[int]:
    """Tijdeman's rule as he states it: of the sources that may come, the one that must come first."""
    total = sum(rates)
    shares = {s: Fraction(rate, total) for s, rate in enumerate(rates) if rate}
    if len(shares) == 1:
        return [next(iter(shares))] * positions
    slack = Fraction(1, 2 * len(shares) - 2)
    got, out = dict.fromkeys(shares, 0), []
    for p in range(1, positions + 1):
        owed = {s: share * p - got[s] for s, share in shares.items()}
        may = [s for s in shares if owed[s] >= slack]
        best = min(may, key=lambda s: ((1 - slack - owed[s]) / shares[s], s))
        got[best] += 1
        out.append(best)
    return out
