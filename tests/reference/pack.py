"""Packing, one document at a time."""

from __future__ import annotations

from collections.abc import Sequence

Bins = list[list[int]]


def best_fit(lengths: Sequence[int], capacity: int) -> Bins:
    """Longest first, each in the fullest bin with room; of equally full ones that with the oldest last placement."""
    bins: Bins = []
    room: list[int] = []
    touched: list[int] = []
    for step, document in enumerate(sorted(range(len(lengths)), key=lambda d: (-lengths[d], d))):
        fitting = [b for b in range(len(bins)) if room[b] >= lengths[document]]
        if not fitting:
            bins.append([])
            room.append(capacity)
            touched.append(step)
            fitting = [len(bins) - 1]
        chosen = min(fitting, key=lambda b: (room[b], touched[b]))
        bins[chosen].append(document)
        room[chosen] -= lengths[document]
        touched[chosen] = step
    return bins


def first_fit(lengths: Sequence[int], capacity: int) -> Bins:
    """In the order given, each in the oldest bin with room."""
    bins: Bins = []
    for document, length in enumerate(lengths):
        for members in bins:
            if sum(lengths[d] for d in members) + length <= capacity:
                members.append(document)
                break
        else:
            bins.append([document])
    return bins


def concat_split(lengths: Sequence[int], capacity: int) -> list[list[tuple[int, int, int]]]:
    """Rows of (document, start, stop): the stream of all tokens, `capacity` to a row."""
    stream = [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    rows: list[list[tuple[int, int, int]]] = []
    for begin in range(0, len(stream), capacity):
        row: list[tuple[int, int, int]] = []
        for document, token in stream[begin : begin + capacity]:
            if row and row[-1][0] == document:
                row[-1] = (document, row[-1][1], token + 1)
            else:
                row.append((document, token, token + 1))
        rows.append(row)
    return rows
