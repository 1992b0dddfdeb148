"""Packing equals its slow twin, loses nothing and overfills nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import pack
from tests.reference import pack as slow

INT32_MAX = 2**31 - 1


@st.composite
def packable(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths of up to 60 documents and a capacity that each of them fits; few different lengths as well as many."""
    capacity = draw(
        st.one_of(st.integers(1, 12), st.integers(1, 5000), st.integers(60_000, 140_000), st.just(INT32_MAX))
    )
    low = draw(st.sampled_from([1, max(1, capacity // 4), max(1, capacity // 2)]))
    return draw(st.lists(st.integers(low, capacity), max_size=60)), capacity


def bins_of(packing: pack.Packing) -> list[list[int]]:
    return [list(packing.order[a:b]) for a, b in zip(packing.offsets[:-1], packing.offsets[1:], strict=True)]


def rows_of(pieces: pack.Pieces) -> list[list[tuple[int, int, int]]]:
    flat = list(zip(pieces.documents.tolist(), pieces.starts.tolist(), pieces.stops.tolist(), strict=True))
    return [flat[a:b] for a, b in zip(pieces.row_offsets[:-1], pieces.row_offsets[1:], strict=True)]


@settings(deadline=None, max_examples=250)
@given(packable())
def test_best_fit_is_best_fit_decreasing_document_by_document(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    assert bins_of(pack.best_fit(lengths, capacity)) == slow.best_fit(lengths, capacity)


def test_best_fit_equals_the_naive_one_on_1000_random_cases() -> None:
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        capacity = int(generator.choice([1, 7, 64, 1000, 4096, 70_000, INT32_MAX]))
        lognormal = generator.lognormal(np.log(max(capacity / 6, 1)), 1.0, int(generator.integers(0, 80)))
        lengths = np.clip(lognormal, 1, capacity).astype(np.int64).tolist()
        assert bins_of(pack.best_fit(lengths, capacity)) == slow.best_fit(lengths, capacity), f"seed {seed}"


@pytest.mark.parametrize("capacity", [4096, 8192, 32768])
def test_best_fit_opens_as_many_bins_as_the_naive_one_on_many_documents(capacity: int) -> None:
    lengths = np.clip(np.random.default_rng(7).lognormal(6.4, 1.0, 5000), 1, capacity).astype(np.int32)
    room = np.full(len(lengths), capacity, np.int64)  # of every bin that could be needed
    opened = 0
    for length in np.sort(lengths)[::-1]:
        fitting = np.flatnonzero(room[:opened] >= length)
        if len(fitting) == 0:
            opened += 1
        room[fitting[np.argmin(room[fitting])] if len(fitting) else opened - 1] -= length
    assert pack.best_fit(lengths, capacity).bins == opened


@settings(deadline=None, max_examples=200)
@given(packable())
def test_first_fit_is_first_fit_document_by_document(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    assert bins_of(pack.first_fit(lengths, capacity)) == slow.first_fit(lengths, capacity)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 60))
def test_concat_split_is_the_stream_cut_at_every_capacity(lengths: list[int], capacity: int) -> None:
    assert rows_of(pack.concat_split(lengths, capacity)) == slow.concat_split(lengths, capacity)


@pytest.mark.parametrize("method", ["best_fit", "first_fit", "concat_split", "none"])
@settings(deadline=None, max_examples=100)
@given(case=packable())
def test_every_token_of_every_document_is_in_one_row_and_no_row_is_overfull(
    method: pack.Method, case: tuple[list[int], int]
) -> None:
    lengths, capacity = case
    pieces = pack.plan(lengths, capacity, method)
    pieces_of: dict[int, list[tuple[int, int]]] = {}
    for row in rows_of(pieces):
        assert row, "a row without documents"
        assert sum(stop - start for _, start, stop in row) <= capacity
        for document, start, stop in row:
            assert start < stop
            pieces_of.setdefault(document, []).append((start, stop))
    assert sorted(pieces_of) == list(range(len(lengths)))
    for document, parts in pieces_of.items():  # fragments of a document stand in order: each begins where one ended
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
        assert parts[-1][1] == lengths[document]
        assert len(parts) == 1 or method == "concat_split"


@settings(deadline=None, max_examples=50)
@given(packable())
def test_no_two_bins_of_best_fit_could_be_one(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    loads = sorted(sum(lengths[d] for d in members) for members in bins_of(pack.best_fit(lengths, capacity)))
    assert len(loads) < 2 or loads[0] + loads[1] > capacity
