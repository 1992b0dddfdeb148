"""csrc/align equals its slow twin."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from maskpipe import _core
from tests.reference import align

NO_TOKENS = np.zeros(0, np.int32)
few_bytes = st.lists(st.sampled_from(b"ab <"), max_size=12).map(bytes)


def int64(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


@given(st.sets(few_bytes.filter(bool), max_size=8), few_bytes)
def test_every_hit_is_found_and_longer_ones_come_first(strings: set[bytes], text: bytes) -> None:
    patterns = sorted(strings)
    starts, found = _core.Strings(patterns).find(text)
    assert list(zip(starts.tolist(), found.tolist(), strict=True)) == align.find(patterns, text)


@pytest.mark.parametrize("strings", [[b""], [b"a", b""], [b"a", b"b", b"a"]])
def test_empty_and_equal_strings_are_refused(strings: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"empty|equal"):
        _core.Strings(strings)


TABLE = [b"", b" ", b"a", b"b", b" a", b"ab", b"\xc3", b"\xa9", b"  ", b"<x>", b"\xe2\x96\x81"]
X = TABLE.index(b"<x>")
MARK = "▁".encode()


def core_table() -> _core.TokenTable:
    control = np.zeros(len(TABLE), np.uint8)
    control[X] = 1
    offsets = int64([0, *accumulate(map(len, TABLE))])
    return _core.TokenTable(offsets, np.frombuffer(b"".join(TABLE), np.uint8), control)


CORE_TABLE = core_table()


def ends_of(
    ids: list[int], text: bytes, occurrences: list[tuple[int, int]], known: list[int], prefix: bool, mark: bytes
) -> _core.TokenEnds:
    return _core.token_ends(
        np.array(ids, np.int32),
        CORE_TABLE,
        text,
        int64([start for start, _ in occurrences]),
        int64([end for _, end in occurrences]),
        np.full(len(occurrences), X, np.int32),
        np.array(known, np.int32),
        prefix,
        mark,
    )


ordinary = st.sampled_from([i for i in range(len(TABLE)) if i != X])
piece_ids = st.lists(ordinary, max_size=6)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[list[int]], list[bytes], list[bytes], bool, bytes]:
    """Ids and text of each piece, and the text each control token between them covers."""
    prefix = draw(st.booleans())
    mark = draw(st.sampled_from([b"", MARK]))
    pieces = draw(st.lists(piece_ids, min_size=1, max_size=4))
    written = []
    for ids in pieces:
        text = b"".join(draw(st.sampled_from(align.spellings(TABLE[i], mark))) for i in ids)
        if prefix and text.startswith(b" ") and draw(st.booleans()):
            text = text[1:]
        if draw(st.integers(0, 9)) == 0:
            text = draw(few_bytes)
        written.append(text)
    covers = [draw(st.sampled_from([b"<x>", b" <x>\n", b""])) for _ in pieces[1:]]
    return pieces, written, covers, prefix, mark


@given(texts(), st.booleans())
def test_spans_are_those_of_the_pieces_one_by_one(
    case: tuple[list[list[int]], list[bytes], list[bytes], bool, bytes], tell: bool
) -> None:
    pieces, written, covers, prefix, mark = case
    ids: list[int] = []
    text = b""
    occurrences, known, expected, failed = [], [], [], []
    for i, (piece, part) in enumerate(zip(pieces, written, strict=True)):
        ends = align.piece_ends([TABLE[k] for k in piece], part, prefix, mark)
        if ends is None:
            failed += [len(ids), len(ids) + len(piece), len(text), len(text) + len(part)]
            ends = [len(part)] * len(piece)
        expected += [len(text) + end for end in ends]
        ids += piece
        text += part
        if i < len(covers):
            known.append(len(ids))
            occurrences.append((len(text), len(text) + len(covers[i])))
            ids.append(X)
            text += covers[i]
            expected.append(len(text))
    placed = ends_of(ids, text, occurrences, known if tell else [], prefix, mark)
    assert placed.in_step
    assert placed.ends.tolist() == expected
    assert placed.occurrence_tokens.tolist() == known
    assert placed.failed.tolist() == failed
    assert placed.stray.tolist() == []


def test_control_ids_at_no_occurrence_are_told() -> None:
    placed = ends_of([2, X, 3], b"a<x>b", [], [], False, b"")
    assert placed.ends.tolist() == [1, 4, 5]
    assert placed.stray.tolist() == [1]


def test_an_occurrence_that_the_ids_do_not_have_is_told() -> None:
    assert not ends_of([2, 3], b"a<x>b", [(1, 4)], [], False, b"").in_step


@pytest.mark.parametrize(
    ("ids", "text", "occurrences", "known", "message"),
    [
        ([len(TABLE)], b"a", [], [], "outside the table"),
        ([-1], b"a", [], [], "outside the table"),
        ([X], b"<x>", [(0, 4)], [], "outside the text"),
        ([X], b"<x>", [(2, 1)], [], "out of order"),
        ([X, X], b"<x><x>", [(3, 6), (0, 3)], [], "out of order"),
        ([2, X], b"a<x>", [(1, 4)], [0], "another id"),
        ([X], b"<x>", [(0, 3)], [1], "out of order"),
        ([X], b"<x>", [(0, 3)], [0, 0], "differ in length"),
    ],
)
def test_impossible_arguments_are_refused(
    ids: list[int], text: bytes, occurrences: list[tuple[int, int]], known: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ends_of(ids, text, occurrences, known, False, b"")


@pytest.mark.parametrize(("offsets", "size"), [([0, 2, 1], 2), ([0, 3], 1), ([], 0), ([-1, 1], 1)])
def test_broken_tables_are_refused(offsets: list[int], size: int) -> None:
    with pytest.raises(ValueError, match="table"):
        _core.TokenTable(int64(offsets), np.zeros(2, np.uint8), np.zeros(size, np.uint8))


widths = st.lists(st.integers(0, 3), max_size=8)


@given(widths, widths)
def test_tokens_touch_the_spans_of_their_bytes(tokens: list[int], spans: list[int]) -> None:
    token_ends, span_ends = list(accumulate(tokens)), list(accumulate(spans))
    assume(not tokens or (spans and token_ends[-1] <= span_ends[-1]))
    first, last = _core.align_facts(int64(token_ends), int64(span_ends))
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == align.touched(token_ends, span_ends)


@pytest.mark.parametrize(
    ("tokens", "spans", "message"),
    [([2], [1], "past the spans"), ([2, 1], [2], "descend"), ([1], [2, 1], "descend"), ([0], [], "no spans")],
)
def test_ends_that_make_no_sense_are_refused(tokens: list[int], spans: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.align_facts(int64(tokens), int64(spans))


@given(st.text(max_size=8), st.data())
def test_characters_lie_where_the_bytes_before_them_end(text: str, data: st.DataObject) -> None:
    positions = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    assert _core.char_to_byte(text.encode(), int64(positions)).tolist() == align.char_to_byte(text, positions)


@pytest.mark.parametrize("positions", [[-1], [1, 0], [3]])
def test_characters_outside_the_text_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="character position"):
        _core.char_to_byte("é!".encode(), int64(positions))
