"""The border between Python and the core: exact dtypes, named arguments, no copies, no GIL."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from maskpipe import _core

LENGTHS = np.array([4, 8, 2, 3], np.int32)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([4, 8], TypeError, "lengths must be a numpy array of int32, got list"),
        (None, TypeError, "lengths must be a numpy array of int32, got NoneType"),
        (np.array([4, 8]), TypeError, "lengths must be a numpy array of int32, got dtype int64"),
        (np.array([4, 8], np.uint32), TypeError, "got dtype uint32"),
        (np.array([4, 8], ">i4"), TypeError, "lengths must be a numpy array of int32, got dtype >i4"),
        (np.array([[4, 8]], np.int32), ValueError, "lengths must have one dimension, got 2"),
        (np.array(4, np.int32), ValueError, "lengths must have one dimension, got 0"),
        (LENGTHS[::2], ValueError, "lengths must be contiguous and aligned"),
        (LENGTHS[::-1], ValueError, "lengths must be contiguous and aligned"),
        (np.frombuffer(bytes(9), np.int32, count=2, offset=1), ValueError, "lengths must be contiguous and aligned"),
    ],
)
def test_a_wrong_array_is_named(lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _core.best_fit(lengths, 10)


@pytest.mark.parametrize(
    ("capacity", "error", "message"),
    [
        (10.0, TypeError, "capacity must be an integer, got float"),
        ("10", TypeError, "capacity must be an integer, got str"),
        (2**70, ValueError, "capacity does not fit 64 bits, got 1180591620717411303424"),
        (0, ValueError, r"capacity must be in \[1, 2147483647\], got 0"),
        (2**31, ValueError, r"capacity must be in \[1, 2147483647\], got 2147483648"),
        (7, ValueError, r"lengths\[1\] is 8; every length must be in \[1, capacity = 7\]"),
    ],
)
@pytest.mark.parametrize("function", [_core.best_fit, _core.first_fit])
def test_a_wrong_capacity_is_named(function: Any, capacity: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(LENGTHS, capacity)


def test_expand_runs_takes_bytes_or_int32_and_one_length_or_many() -> None:
    ends, offsets = np.array([2, 2], np.int32), np.array([0, 1, 2])
    for values in (np.array([1, 2], np.uint8), np.array([1, 2], np.int32)):
        for lengths in (2, np.int64(2), np.array(2), np.array([2, 2]), np.array([2])):
            dense = _core.expand_runs(ends, values, offsets, lengths)
            assert (dense.dtype, dense.tolist()) == (values.dtype, [1, 1, 2, 2])
    with pytest.raises(TypeError, match="values must be a numpy array of uint8 or int32"):
        _core.expand_runs(ends, np.array([1.0, 2.0]), offsets, 2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="lengths must be an integer, got list"):
        _core.expand_runs(ends, values, offsets, [2, 2])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="lengths must be a numpy array of int64, got dtype int32"):
        _core.expand_runs(ends, values, offsets, np.array([2, 2], np.int32))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="lengths must hold one length, or one for each of the 2 groups, got 3"):
        _core.expand_runs(ends, values, offsets, np.array([2, 2, 2]))


def test_results_are_views_of_what_the_core_made_and_outlive_each_other() -> None:
    order, offsets = _core.best_fit(LENGTHS, 10)
    assert not order.flags.owndata and order.base is not None
    assert order.flags.writeable
    del offsets
    assert order.tolist() == [1, 2, 0, 3]


def test_arguments_may_be_read_only() -> None:
    lengths = LENGTHS.copy()
    lengths.flags.writeable = False
    assert _core.best_fit(lengths, 10)[0].tolist() == [1, 2, 0, 3]


def test_other_threads_run_while_the_core_works() -> None:
    lengths = np.random.default_rng(0).integers(1, 4096, 1_000_000).astype(np.int32)
    span = []

    def work() -> None:
        begin = time.perf_counter()
        _core.first_fit(lengths, 4096)
        span.extend([begin, time.perf_counter()])

    thread = threading.Thread(target=work)
    thread.start()
    seen = []
    while thread.is_alive():
        seen.append(time.perf_counter())
        time.sleep(0.001)
    begin, end = span
    inside = [moment for moment in seen if begin + (end - begin) / 10 < moment < end - (end - begin) / 10]
    assert inside, f"this thread stood still for the {end - begin:.3f} s that the core worked"
