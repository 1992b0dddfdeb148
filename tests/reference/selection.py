"""The slow twin of maskpipe/selection.py: one conversation after the other, in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from maskpipe.selection import ChunkDocuments, ChunkKeys


@dataclass
class Expected:
    documents: list[tuple[str, int]] = field(default_factory=list)
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    duplicates: list[tuple[int, int, int, int]] = field(default_factory=list)


def mixed(number: int) -> int:
    """64 bits of which each depends on every bit of the number."""
    for _ in range(2):
        number = (number ^ number >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return number ^ number >> 32


def expected_sides(
    chunks: Sequence[ChunkKeys],
    documents: Sequence[ChunkDocuments],
    weights: Sequence[float],
    deduplicate: bool,
    validation: float,
) -> dict[str, Expected]:
    """What goes where. A conversation is (chunk, number in it); a record is (chunk, row in it)."""
    keys = {(c, k): tuple(map(int, key)) for c, chunk in enumerate(chunks) for k, key in enumerate(chunk.keys)}
    record = {(c, k): (c, int(row)) for c, chunk in enumerate(chunks) for k, row in enumerate(chunk.rows)}
    of_record: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for conversation, owner in record.items():
        of_record.setdefault(owner, []).append(conversation)
    first: dict[tuple[int, ...], tuple[int, int]] = {}
    for conversation, key in keys.items():
        first.setdefault(key, conversation)
    fresh = {conversation for conversation, key in keys.items() if not deduplicate or first[key] == conversation}

    def connected(owner: tuple[int, int]) -> set[tuple[int, int]]:
        found, todo = {owner}, [owner]
        while todo:
            said = {keys[conversation][0] for conversation in of_record[todo.pop()]}
            for other, conversations in of_record.items():
                if other not in found and said & {keys[conversation][0] for conversation in conversations}:
                    found.add(other)
                    todo.append(other)
        return found

    def least(owners: set[tuple[int, int]], column: int) -> float:
        return mixed(min(keys[c][column] for owner in owners for c in of_record[owner])) / 2.0**64

    names = ["train", "validation"] if validation else [""]
    out = {name: Expected() for name in names}
    side = {
        owner: ("validation" if least(connected(owner), 0) < validation else "train") if validation else ""
        for owner in of_record
    }
    times: dict[tuple[int, int], int] = {}
    for owner, conversations in of_record.items():
        kept = [conversation for conversation in conversations if conversation in fresh]
        if not kept:
            chunk, row = owner
            there = first[keys[conversations[0]]]
            origin = chunks[there[0]]
            for name in names:
                out[name].left_out["duplicate"] += 1
            out[names[0]].duplicates.append(
                (
                    chunks[chunk].source,
                    chunks[chunk].first_row + row,
                    origin.source,
                    origin.first_row + int(origin.rows[there[1]]),
                )
            )
            continue
        weight = max(1.0, weights[chunks[owner[0]].source])
        times[owner] = int(weight) + (least({owner}, 1) < weight - int(weight))
        for name in names:
            if side[owner] == name:
                out[name].kept += 1
            else:
                out[name].left_out["other_side"] += 1
    for name in names:
        for turn in range(max([1, *times.values()]) if name != "validation" else 1):
            for c, made in enumerate(documents):
                for number, conversation in enumerate(made.conversations.tolist()):
                    owner = record[c, conversation]
                    if (c, conversation) in fresh and side[owner] == name and times[owner] > turn:
                        out[name].documents.append((made.file, number))
    return out
