"""Random documents and plans, in Python lists and as the core's flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from maskpipe import _core
from maskpipe.roles import Part, Role
from tests.reference.runs import Facts

Doc = tuple[list[int], list[Facts]]
Plan = list[list[tuple[int, int, int]]]

VOCABULARY = 1000

facts = st.tuples(
    st.sampled_from([int(role) for role in Role if role != Role.PADDING]),
    st.sampled_from([int(part) for part in Part if part != Part.NONE]),
    st.sampled_from([0, 1, 2, 3, 31]),
    st.integers(-1, 2),
)


@st.composite
def documents(draw: st.DrawFn, min_tokens: int = 0, max_tokens: int = 12) -> Doc:
    """Ids and facts of one document; neighbours are often equal."""
    tokens: list[Facts] = []
    for value, times in draw(st.lists(st.tuples(facts, st.integers(1, 5)), max_size=max_tokens)):
        tokens += [value] * times
    tokens = tokens[:max_tokens]
    while len(tokens) < min_tokens:
        tokens.append(draw(facts))
    ids = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=len(tokens), max_size=len(tokens)))
    return ids, tokens


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Doc], Plan, int]:
    """Documents, rows of arbitrary pieces of them (repeats and gaps included), and a sequence length they fit."""
    given = draw(st.lists(documents(), max_size=5))
    whole = [index for index, (ids, _) in enumerate(given) if ids]
    plan: Plan = []
    for _ in range(draw(st.integers(0, 4))):
        row = []
        for index in draw(st.lists(st.sampled_from(whole), max_size=4)) if whole else []:
            start = draw(st.integers(0, len(given[index][0]) - 1))
            row.append((index, start, draw(st.integers(start + 1, len(given[index][0])))))
        plan.append(row)
    filled = max((sum(stop - start for _, start, stop in row) for row in plan), default=0)
    return given, plan, max(1, filled + draw(st.integers(0, 3)))


def int32(values: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


def uint8(values: Sequence[int]) -> npt.NDArray[np.uint8]:
    return np.array(values, np.uint8)


def offsets(groups: Sequence[Sequence[Any]]) -> npt.NDArray[np.int64]:
    """[groups + 1] where the values of each group begin and end when all stand one after the other."""
    return np.array([0, *accumulate(len(group) for group in groups)], np.int64)


def encode(tokens: Sequence[Sequence[Facts]]) -> _core.Runs:
    """Runs of documents by the core."""
    flat = [value for document in tokens for value in document]
    roles, parts, flags, messages = zip(*flat, strict=True) if flat else ((), (), (), ())
    return _core.encode_runs(uint8(roles), uint8(parts), uint8(flags), int32(messages), offsets(tokens))


def arguments(given: Sequence[Doc], plan: Plan, sequence_length: int, pad_id: int = 0) -> dict[str, Any]:
    """Keyword arguments of `_core.lay_out`."""
    flat = [piece for row in plan for piece in row]
    return {
        "ids": int32([token for ids, _ in given for token in ids]),
        "id_offsets": offsets([ids for ids, _ in given]),
        **encode([tokens for _, tokens in given])._asdict(),
        "piece_documents": np.array([document for document, _, _ in flat], np.int64),
        "piece_starts": int32([start for _, start, _ in flat]),
        "piece_stops": int32([stop for _, _, stop in flat]),
        "row_offsets": offsets(plan),
        "sequence_length": sequence_length,
        "pad_id": pad_id,
    }


def row_facts(rows: _core.Rows, sequence_length: int) -> list[list[Facts]]:
    """The dense facts of each row, by expanding the runs in the core."""
    columns = [
        _core.expand_runs(rows.run_ends, values, rows.row_run_offsets, sequence_length).tolist()
        for values in (rows.run_roles, rows.run_parts, rows.run_flags, rows.run_messages)
    ]
    dense = list(zip(*columns, strict=True))
    return [dense[at : at + sequence_length] for at in range(0, len(dense), sequence_length)]


def row_runs(rows: _core.Rows) -> list[list[tuple[int, Facts]]]:
    values = zip(
        rows.run_roles.tolist(),
        rows.run_parts.tolist(),
        rows.run_flags.tolist(),
        rows.run_messages.tolist(),
        strict=True,
    )
    runs = list(zip(rows.run_ends.tolist(), values, strict=True))
    return [runs[a:b] for a, b in zip(rows.row_run_offsets[:-1], rows.row_run_offsets[1:], strict=True)]
