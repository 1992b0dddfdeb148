"""The core finds the turns that the slow twin finds, in made and in random ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core
from tests.reference import turns as slow
from tests.reference.turns import ANY, ASSISTANT, END, START, Joint

VOCAB = 12
CONTROL = [1, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0]
"""0 and 2 tell turns apart, 1 and 3 end texts, others are words; 4 and 5 serve as white space."""
ALLOWED = [0, 0, 1 << ASSISTANT, 0, *[0] * 8]


@st.composite
def joints(draw: st.DrawFn) -> list[Joint]:
    out = []
    for _ in range(draw(st.integers(0, 9))):
        before = draw(st.sampled_from([START, START, 1, 2, ASSISTANT, ASSISTANT, ANY]))
        after = draw(st.sampled_from([1, 2, ASSISTANT, END] if before not in (START, ANY) else [1, 2, ASSISTANT]))
        body = draw(st.lists(st.integers(0, 7), min_size=0 if before == START else 1, max_size=4))
        if body:
            body[0] = draw(st.integers(0, 3))
        least = 0 if before == START else 1
        marks = draw(st.lists(st.sampled_from([0, 0, 3, 4, 8]), min_size=len(body), max_size=len(body)))
        roles = draw(st.lists(st.sampled_from([2, 3, 8]), min_size=len(body), max_size=len(body)))
        out.append(Joint(before, after, body, roles, marks, draw(st.integers(least, max(least, len(body))))))
    return sorted(out, key=lambda joint: (joint.before, -len(joint.ids), joint.after, joint.ids))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Joint], list[list[int]], int, list[list[int]]]:
    made = draw(joints())
    documents = []
    for _ in range(draw(st.integers(0, 3))):
        pieces: list[int] = []
        for _ in range(draw(st.integers(0, 7))):
            if made and draw(st.booleans()):
                joint = draw(st.sampled_from(made))
                pieces += list(joint.ids)[: draw(st.integers(0, 4))]
            else:
                pieces += draw(st.lists(st.integers(-1, VOCAB), max_size=3))
        documents.append(pieces)
    bos = draw(st.sampled_from([-1, 1, 3]))
    empty = draw(st.lists(st.lists(st.integers(4, 7), min_size=1, max_size=2), max_size=2))
    return made, documents, bos, empty


def arguments(made: list[Joint], empty: list[list[int]]) -> tuple[list[Any], list[Any]]:
    def offsets(lengths: list[int]) -> Any:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    flat = [
        np.array([id for joint in made for id in joint.ids], np.int32),
        np.array([role for joint in made for role in joint.roles], np.uint8),
        np.array([mark for joint in made for mark in joint.marks], np.uint8),
        offsets([len(joint.ids) for joint in made]),
        np.array([joint.before for joint in made], np.uint8),
        np.array([joint.after for joint in made], np.uint8),
        np.array([joint.needed for joint in made], np.int32),
        np.array(CONTROL, np.uint8),
        np.array(ALLOWED, np.uint16),
    ]
    return flat, [np.array([id for block in empty for id in block], np.int32), offsets([len(block) for block in empty])]


@settings(max_examples=400)
@given(cases())
def test_the_core_finds_the_turns_that_the_slow_twin_finds(
    case: tuple[list[Joint], list[list[int]], int, list[list[int]]],
) -> None:
    made, documents, bos, empty = case
    ids = np.array([id for document in documents for id in document], np.int32)
    bounds = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    flat, blocks = arguments(made, empty)
    found = _core.locate_turns(ids, bounds[:-1], bounds[1:], *flat, bos, *blocks)
    turns, openings, beginnings = [], [], []
    for number, document in enumerate(documents):
        begin = int(bounds[number])
        one = slow.locate(document, made, CONTROL, ALLOWED, bos, empty)
        part = slice(begin, begin + len(document))
        assert (found.roles[part].tolist(), found.marks[part].tolist()) == (one.roles, one.marks)
        assert (found.states[number], found.bos[number], found.from_start[number]) == (
            one.state,
            one.bos,
            one.from_start,
        )
        turns += [
            (number, begin + start, begin + end, -1 if stop < 0 else begin + stop) for start, end, stop in one.turns
        ]
        openings += [begin + at for at in one.openings]
        beginnings += [begin + at for at in one.beginnings]
    assert [tuple(turn) for turn in found.turns.reshape(-1, 4).tolist()] == turns
    assert (found.openings.tolist(), found.beginnings.tolist()) == (openings, beginnings)
