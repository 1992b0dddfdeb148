"""Packing by example, and what it refuses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from maskpipe import pack
from maskpipe.errors import UsageError


def test_the_picture_of_the_module() -> None:
    lengths = [4, 8, 2, 3]

    # Longest first: 8 opens bin 0. 4 does not fit, bin 1. 3 fits bin 1 alone (6 left). 2 fits both; bin 0 is fuller.
    best = pack.best_fit(lengths, 10)
    assert best.order.tolist() == [1, 2, 0, 3]
    assert best.offsets.tolist() == [0, 2, 4]
    assert len(best) == best.bins == 2

    # As given: 4 opens bin 0; 8 does not fit, bin 1; 2 and 3 fit bin 0.
    first = pack.first_fit(lengths, 10)
    assert (first.order.tolist(), first.offsets.tolist()) == ([0, 2, 3, 1], [0, 3, 4])

    alone = pack.none(lengths, 10)
    assert (alone.order.tolist(), alone.offsets.tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3, 4])

    # 17 tokens in a stream, cut at 10: the document of 8 becomes fragments of 6 and 2.
    pieces = pack.concat_split(lengths, 10)
    assert pieces.documents.tolist() == [0, 1, 1, 2, 3]
    assert pieces.starts.tolist() == [0, 0, 6, 0, 0]
    assert pieces.stops.tolist() == [4, 6, 8, 2, 3]
    assert pieces.row_offsets.tolist() == [0, 2, 5]
    assert (pieces.rows, len(pieces)) == (2, 5)


def test_equal_lengths_keep_the_order_of_the_documents() -> None:
    assert pack.best_fit([5, 5, 5, 5, 5], 10).order.tolist() == [0, 1, 2, 3, 4]


def test_of_equally_full_bins_the_longest_untouched_receives() -> None:
    # 6, 6 open two bins with 4 left each; 3 goes into bin 0, the next 3 into bin 1; the ones follow in that order.
    packing = pack.best_fit([6, 6, 3, 3, 1, 1], 10)
    assert packing.order.tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("method", ["best_fit", "first_fit", "concat_split", "none"])
def test_no_documents_give_no_rows(method: pack.Method) -> None:
    for empty in ([], (), np.zeros(0, np.int64), np.zeros(0)):
        pieces = pack.plan(empty, 8, method)
        assert (pieces.rows, len(pieces), pieces.row_offsets.tolist()) == (0, 0, [0])


def test_the_dtypes_are_those_of_the_core() -> None:
    pieces = pack.plan([3, 4], 8)
    assert [a.dtype for a in (pieces.documents, pieces.starts, pieces.stops, pieces.row_offsets)] == [
        np.int64, np.int32, np.int32, np.int64,
    ]  # fmt: skip
    split = pack.plan([3, 14], 8, "concat_split")
    assert [a.dtype for a in (split.documents, split.starts, split.stops, split.row_offsets)] == [
        np.int64, np.int32, np.int32, np.int64,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "lengths",
    [
        [4, 8, 2, 3],
        range(1, 5),
        np.array([4, 8, 2, 3], np.uint8),
        np.array([4, 8, 2, 3], np.uint64),
        np.array([4, 0, 8, 0, 2, 0, 3, 0], np.int64)[::2],
        np.array([4, 8, 2, 3], ">i4"),
        pa.array([4, 8, 2, 3], pa.int32()),
    ],
)
def test_any_integers_in_one_dimension_are_lengths(lengths: npt.ArrayLike) -> None:
    assert pack.best_fit(lengths, 10).bins == pack.best_fit([int(x) for x in np.asarray(lengths)], 10).bins


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([4, 11], 10, r"lengths\[1\] is 11, but must be in \[1, 10\]"),
        ([4, 0, 11], 10, r"lengths\[1\] is 0"),
        ([-1], 10, r"lengths\[0\] is -1"),
        ([2**31], 10, r"lengths\[0\] is 2147483648"),
        (np.array([2**63 + 5], np.uint64), 10, r"lengths\[0\] is 9223372036854775813"),
        ([2**70], 10, "must be integers, got dtype object"),
        ([4.0], 10, "must be integers, got dtype float64"),
        ([True], 10, "must be integers, got dtype bool"),
        (["4"], 10, "must be integers"),
        ([[4, 4]], 10, r"one dimension, got shape \(1, 2\)"),
        (7, 10, "one dimension"),
        ([4], 0, "capacity must be an integer in"),
        ([4], 2**31, "capacity must be an integer in"),
        ([4], 10.0, "capacity must be an integer in"),
        ([4], True, "capacity must be an integer in"),
        ([], -1, "capacity must be an integer in"),
    ],
)
@pytest.mark.parametrize("method", [pack.best_fit, pack.first_fit, pack.none])
def test_what_is_no_length_or_capacity_is_refused_by_name(method, lengths, capacity, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        method(lengths, capacity)


def test_concat_split_takes_documents_longer_than_a_row_but_no_empty_ones() -> None:
    assert pack.concat_split([25], 10).stops.tolist() == [10, 20, 25]
    with pytest.raises(UsageError, match=r"lengths\[1\] is 0"):
        pack.concat_split([3, 0], 10)
    with pytest.raises(UsageError, match="capacity"):
        pack.concat_split([3], 0)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match="best_fit, first_fit, none, concat_split; got 'worst_fit'"):
        pack.plan([3], 10, "worst_fit")  # type: ignore[arg-type]


def test_pieces_need_the_lengths_of_the_packing() -> None:
    with pytest.raises(UsageError, match="lengths has 1 documents, but the packing was made from 2"):
        pack.best_fit([3, 4], 10).pieces([3])


def test_a_large_capacity_costs_no_memory() -> None:
    packing = pack.best_fit([2**31 - 1, 5, 2**31 - 6], 2**31 - 1)
    assert (packing.order.tolist(), packing.offsets.tolist()) == ([0, 2, 1], [0, 1, 3])
