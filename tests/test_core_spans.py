"""csrc/spans.h: the spans of a trace are those of template/spans.py, and tokens take their facts from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpipe import _core
from maskpipe.encoder import span_table
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.template.render import Leaf, Trace
from maskpipe.template.spans import Span, spans_of
from maskpipe.template.turn import Turn
from tests.reference import align

LEAVES = [
    Leaf(("messages", 0, "role"), "user", 0, Role.USER, Part.SCAFFOLD),
    Leaf(("messages", 0, "content"), "é" * 40, 0, Role.USER, Part.CONTENT),
    Leaf(("messages", 1, "content"), "why</think>" + "x" * 40, 1, Role.ASSISTANT, Part.CONTENT),
    Leaf(("messages", 1, "tool_calls", 0), "y" * 40, 1, Role.ASSISTANT, Part.TOOL_CALL),
    Leaf(("tools", 0), "z" * 40, -1, Role.CONTEXT, Part.TOOL_SCHEMA),
]
ROLES = (Role.USER, Role.ASSISTANT)


@st.composite
def traces(draw: st.DrawFn) -> tuple[Trace, list[Turn]]:
    """A text of one to four bytes per character, its origins, and turns that do not overlap."""
    origins: list[Any] = []
    size = 0
    for _ in range(draw(st.integers(0, 8))):
        length = draw(st.integers(0, 9))
        source = draw(st.integers(-4, len(LEAVES) - 1))
        first = draw(st.integers(0, 14)) if source >= 0 else 0
        last = first + (length if draw(st.integers(0, 3)) else draw(st.integers(0, 20)))
        if source >= 0 and not draw(st.integers(0, 3)):  # half an escape, or text that a filter built anew
            first = last = draw(st.sampled_from([-1, first]))
        origins.append((size, size + length, source, first, last if source >= 0 else length))
        size += length
    text = draw(st.text("aé漢🎉", min_size=size, max_size=size))
    borders = sorted(draw(st.lists(st.integers(0, size), max_size=6)))
    turns = []
    for start, stop in zip(borders[::2], borders[1::2], strict=False):
        inner = sorted((draw(st.integers(start, stop)), draw(st.integers(start, stop))))
        stop_token = (inner[1], stop) if draw(st.booleans()) else None
        empty = (start, inner[0]) if draw(st.booleans()) else None
        turns.append(Turn(1, Verdict.EXACT, start, stop, stop_token, empty, start))
    return Trace(text, tuple(origins), LEAVES, [], ROLES), turns


def in_bytes(text: str, position: int) -> int:
    return len(text[:position].encode())


def content_of(spans: list[Span], text: str) -> list[tuple[int, int, int]]:
    """(start, end, role) in bytes of the characters that came from data; neighbours of one field are one range."""
    out: list[tuple[int, int, int]] = []
    field: Any = None
    for span in spans:
        if span.source is None or span.part is Part.SCAFFOLD:
            field = None
        elif span.start < span.end:
            if field == span.source[0]:
                out[-1] = (out[-1][0], span.end, out[-1][2])
            else:
                out.append((span.start, span.end, int(span.role)))
            field = span.source[0]
    return [(in_bytes(text, start), in_bytes(text, end), role) for start, end, role in out]


@given(traces())
def test_spans_are_those_of_the_public_form(case: tuple[Trace, list[Turn]]) -> None:
    trace, turns = case
    expected = list(spans_of(trace, turns))
    table = span_table(trace, turns, trace.text.encode())
    columns = table.columns()
    assert columns.ends.tolist() == [in_bytes(trace.text, span.end) for span in expected]
    assert columns.roles.tolist() == [span.role for span in expected]
    assert columns.parts.tolist() == [span.part for span in expected]
    assert columns.messages.tolist() == [span.message for span in expected]
    assert (columns.flags & Flag.SAMPLED > 0).tolist() == [span.sampled for span in expected]
    assert (columns.flags & Flag.EMPTY_REASONING > 0).tolist() == [span.empty_reasoning for span in expected]
    assert list(zip(*(column.tolist() for column in table.content()), strict=True)) == content_of(expected, trace.text)


@given(traces(), st.data())
def test_a_token_takes_its_facts_from_its_first_span_and_is_sampled_when_all_of_them_are(
    case: tuple[Trace, list[Turn]], data: st.DataObject
) -> None:
    trace, turns = case
    raw = trace.text.encode()
    spans = list(spans_of(trace, turns))
    places = data.draw(st.lists(st.integers(0, len(raw)), max_size=12)) if spans else []
    ends = [*sorted(places), len(raw)] if spans else []
    cuts = data.draw(st.lists(st.integers(0, len(ends) - 1), max_size=2)) if ends else []
    facts = _core.token_facts(np.array(ends, np.int64), span_table(trace, turns, raw), np.array(cuts, np.int32))
    expected = []
    straddling = mixed = 0
    for k, (first, last) in enumerate(align.touched(ends, [in_bytes(trace.text, span.end) for span in spans])):
        inside = [span.sampled for span in spans[first : last + 1]]
        flags = Flag.SAMPLED if all(inside) else Flag.STRADDLES if any(inside) else Flag(0)
        if all(inside) and spans[first].empty_reasoning:
            flags |= Flag.EMPTY_REASONING
        straddling += any(inside) and not all(inside)
        here, there = spans[first], spans[last]
        mixed += all(inside) and (here.role, here.part) != (there.role, there.part)
        expected.append((here.role, here.part, flags | (Flag.CUT_BEFORE if k in cuts else 0), here.message))
    found = zip(facts.roles.tolist(), facts.parts.tolist(), facts.flags.tolist(), facts.messages.tolist(), strict=True)
    assert list(found) == expected
    assert (facts.straddling, facts.straddling_parts) == (straddling, mixed)


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ([(1, 3, -1, 0, 2)], "not contiguous"),
        ([(0, 2, -1, 0, 2), (1, 3, -1, 0, 2)], "not contiguous"),
        ([(0, 3, 5, 0, 3)], "leaf 5 is outside the table of 5"),
        ([(0, 2, -1, 0, 2)], "do not cover the text"),
        ([(0, 9, -1, 0, 9)], "leave the text"),
    ],
)
def test_origins_that_make_no_sense_are_refused(origins: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        span_table(Trace("abc", tuple(origins), LEAVES, [], ROLES), [], b"abc")


def test_a_cut_outside_the_tokens_is_refused() -> None:
    table = span_table(Trace("abc", ((0, 3, -1, 0, 3),), LEAVES, [], ROLES), [], b"abc")
    with pytest.raises(ValueError, match="cut before token 1 of 1"):
        _core.token_facts(np.array([3]), table, np.array([1], np.int32))
