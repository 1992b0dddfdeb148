"""Layout, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskpipe.roles import Flag, Part, Role
from tests.reference import runs
from tests.reference.runs import Facts

PADDING: Facts = (Role.PADDING, Part.NONE, 0, -1)


@dataclass
class Row:
    ids: list[int]
    facts: list[Facts]
    runs: list[tuple[int, Facts]]
    ends: list[int]
    n_loss: int


def lay_out(
    documents: Sequence[tuple[Sequence[int], Sequence[Facts]]],
    plan: Sequence[Sequence[tuple[int, int, int]]],
    sequence_length: int,
    pad_id: int,
) -> list[Row]:
    """Rows of the plan's (document, start, stop), then padding; the first token of a piece is never a target."""
    rows = []
    for pieces in plan:
        row = Row([], [], [], [], 0)
        for document, start, stop in pieces:
            ids, facts = documents[document]
            role, part, flags, message = facts[start]
            piece = [(role, part, flags & ~int(Flag.LOSS), message), *facts[start + 1 : stop]]
            row.runs += [(len(row.ids) + end, value) for end, value in runs.encode([piece])[0]]
            row.ids += ids[start:stop]
            row.facts += piece
            row.ends.append(len(row.ids))
        if len(row.ids) < sequence_length:
            row.runs.append((sequence_length, PADDING))
        missing = sequence_length - len(row.ids)
        row.ids += [pad_id] * missing
        row.facts += [PADDING] * missing
        row.n_loss = sum(1 for _, _, flags, _ in row.facts if flags & Flag.LOSS)
        rows.append(row)
    return rows
