"""Runs keep every fact of every token, in as few runs as there are changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core
from tests.properties.strategies import Doc, documents, encode, int32, offsets, uint8
from tests.reference import runs as slow


@settings(deadline=None, max_examples=200)
@given(st.lists(documents(), max_size=5))
def test_encode_is_the_slow_twin(given_documents: list[Doc]) -> None:
    tokens = [facts for _, facts in given_documents]
    runs = encode(tokens)
    values = zip(
        *(a.tolist() for a in (runs.run_roles, runs.run_parts, runs.run_flags, runs.run_messages)), strict=True
    )
    flat = list(zip(runs.run_ends.tolist(), values, strict=True))
    expected = slow.encode(tokens)
    assert flat == [run for document in expected for run in document]
    assert runs.run_offsets.tolist() == offsets(expected).tolist()


@settings(deadline=None, max_examples=200)
@given(st.lists(documents(), max_size=5))
def test_expanding_what_was_encoded_gives_every_fact_of_every_token(given_documents: list[Doc]) -> None:
    tokens = [facts for _, facts in given_documents]
    runs = encode(tokens)
    lengths = np.array([len(document) for document in tokens], np.int64)
    columns = [
        _core.expand_runs(runs.run_ends, values, runs.run_offsets, lengths).tolist()
        for values in (runs.run_roles, runs.run_parts, runs.run_flags, runs.run_messages)
    ]
    assert list(zip(*columns, strict=True)) == [value for document in tokens for value in document]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 255)), max_size=5), max_size=4), st.booleans())
def test_expand_is_the_slow_twin(groups: list[list[tuple[int, int]]], as_bytes: bool) -> None:
    runs = [
        [(sum(size for size, _ in group[: i + 1]), value) for i, (_, value) in enumerate(group)] for group in groups
    ]
    ends = int32([end for group in runs for end, _ in group])
    values = (uint8 if as_bytes else int32)([value for group in runs for _, value in group])
    lengths = np.array([group[-1][0] if group else 0 for group in runs], np.int64)
    dense = _core.expand_runs(ends, values, offsets(runs), lengths)
    assert dense.dtype == values.dtype
    assert dense.tolist() == [value for group in runs for value in slow.expand(group)]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(-2, 6), max_size=6),
    st.lists(st.integers(-2, 7), max_size=5),
    st.one_of(st.integers(-2, 8), st.lists(st.integers(-2, 8), max_size=4)),
)
def test_runs_that_do_not_tile_are_refused_never_expanded(
    ends: list[int], run_offsets: list[int], lengths: int | list[int]
) -> None:
    groups = len(run_offsets) - 1
    each = (
        [lengths] * max(groups, 0) if isinstance(lengths, int) else lengths * groups if len(lengths) == 1 else lengths
    )
    sound = (
        groups >= 0
        and run_offsets[0] == 0
        and run_offsets[-1] == len(ends)
        and run_offsets == sorted(run_offsets)
        and len(each) == groups
        and all(
            [0, *ends[a:b]] == sorted({0, *ends[a:b]}) and ([0, *ends[a:b]])[-1] == length
            for a, b, length in zip(run_offsets[:-1], run_offsets[1:], each, strict=True)
        )
    )
    arguments = (
        int32(ends), uint8([1] * len(ends)), np.array(run_offsets, np.int64),
        lengths if isinstance(lengths, int) else np.array(lengths, np.int64),
    )  # fmt: skip
    if sound:
        assert len(_core.expand_runs(*arguments)) == sum(each)
    else:
        with pytest.raises(ValueError):
            _core.expand_runs(*arguments)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([2, 2, 5], r"run_ends\[1\] is 2 in group 0; it must be above 2 and at most the length 5"),
        ([2, 6], r"run_ends\[1\] is 6 in group 0"),
        ([0, 5], r"run_ends\[0\] is 0"),
        ([2, 4], "the runs of group 0 end at 4, but its length is 5"),
        ([], "the runs of group 0 end at 0, but its length is 5"),
    ],
)
def test_a_tiling_that_is_not_one_is_named(ends: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.expand_runs(int32(ends), uint8([0] * len(ends)), np.array([0, len(ends)]), 5)


def test_encode_refuses_offsets_and_lengths_that_do_not_fit() -> None:
    two = uint8([1, 1])
    with pytest.raises(ValueError, match=r"offsets ends with 3, but there are 2 values"):
        _core.encode_runs(two, two, two, int32([0, 0]), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"offsets\[2\] is 1, less than the one before it, 2"):
        _core.encode_runs(two, two, two, int32([0, 0]), np.array([0, 2, 1]))
    with pytest.raises(ValueError, match="offsets must start with 0"):
        _core.encode_runs(two, two, two, int32([0, 0]), np.array([1, 2]))
    with pytest.raises(ValueError, match="offsets must start with 0"):
        _core.encode_runs(two, two, two, int32([0, 0]), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="must have one length, got 2, 2, 2, 1"):
        _core.encode_runs(two, two, two, int32([0]), np.array([0, 2]))
