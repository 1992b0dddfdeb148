"""The order of rows: a permutation per epoch, random by every measure here, and mixtures exact at every prefix."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core
from tests.reference import order as slow

pytest.importorskip("torch")
from maskpipe.data.order import MAX_RATES, epoch_key, shapes_of, shares_of, whole_rates
from maskpipe.errors import UsageError

LONG = os.environ.get("MASKPIPE_LONG") == "1"
KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4)


def rows_at(n: int, key: list[int], counts: npt.ArrayLike, block: int = 1, window: int = 0) -> npt.NDArray[np.int64]:
    at = np.asarray(counts, np.int64)
    words, sources = np.array(key, np.uint64), np.zeros(len(at), np.int32)
    return _core.rows_at(np.array([n]), np.array([block]), np.array([window]), True, words, sources, at)


@given(KEYS, st.integers(1, 700), st.integers(0, 2**40))
def test_an_epoch_is_the_permutation_of_the_slow_twin(key: list[int], n: int, epoch: int) -> None:
    expected = slow.permutation(slow.epoch_key(key, epoch), n)
    assert sorted(expected) == list(range(n))
    assert rows_at(n, key, np.arange(n) + epoch * n).tolist() == expected


@given(KEYS, st.integers(1, 400), st.integers(1, 60), st.integers(1, 30), st.integers(0, 5))
def test_windows_are_those_of_the_slow_twin(key: list[int], n: int, block: int, window: int, epoch: int) -> None:
    block = min(block, n)
    window = min(window, -(-n // block))
    expected = slow.windows(slow.epoch_key(key, epoch), n, block, window)
    assert sorted(expected) == list(range(n))
    assert rows_at(n, key, np.arange(n) + epoch * n, block, window).tolist() == expected


def test_a_window_reads_in_few_places_at_a_time() -> None:
    n, block, window = 10_000, 100, 8
    rows = rows_at(n, epoch_key(0, "x"), np.arange(n), block, window)
    for first in range(0, n, block * window):
        blocks = set((rows[first : first + block * window] // block).tolist())
        assert len(blocks) <= window + 1
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.25


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_few_rows_are_about_as_frequent(n: int) -> None:
    draws = 6000
    seen = Counter(tuple(rows_at(n, epoch_key(seed, "x"), np.arange(n)).tolist()) for seed in range(draws))
    orders = list(itertools.permutations(range(n)))
    expected = draws / len(orders)
    chi2 = sum((seen[order] - expected) ** 2 / expected for order in orders)
    assert chi2 < len(orders) - 1 + 5 * (2 * (len(orders) - 1)) ** 0.5 + 5


SIZES = [10**3, 10**4, 10**5, 10**6, *([10**7, 10**8] if LONG else [])]


@pytest.mark.parametrize("n", SIZES)
def test_neighbours_and_batches_are_as_in_a_random_order(n: int) -> None:
    """Lag-1 correlation is normal with deviation 1 / sqrt(n); the rows of a batch fall into tenths of the dataset with
    chi² of 9 degrees of freedom. Means over seeds, within 4.5 standard deviations."""
    seeds, batch = max(4, min(100, 10**5 // n)), 250
    sampled = min(n, 1_000_000) // batch * batch
    lag, chi2 = [], []
    for seed in range(seeds):
        rows = rows_at(n, epoch_key(seed, "x"), np.arange(sampled))
        x = rows - rows.mean()
        lag.append(float((x[:-1] * x[1:]).sum() / (x * x).sum()) * sampled**0.5)
        tenths = (rows * 10 // n).reshape(-1, batch)
        counts = np.stack([(tenths == k).sum(1) for k in range(10)], 1)
        chi2.append((((counts - batch / 10) ** 2).sum(1) / (batch / 10)) / (1 - (batch - 1) / (n - 1)))
    values = np.concatenate(chi2)
    print(f"n = {n:,}: lag-1 {np.mean(lag):+.3f} / sqrt(n), batch chi² {values.mean():.3f} (random: 9)")
    assert abs(np.mean(lag)) < 4.5 / seeds**0.5
    assert abs(values.mean() - 9) < 4.5 * 18**0.5 / len(values) ** 0.5


def test_no_seed_and_epoch_share_an_order() -> None:
    n = 1000
    orders = {
        rows_at(n, epoch_key(seed, name), np.arange(n) + epoch * n).tobytes()
        for seed in range(8) for epoch in range(8) for name in "ab"
    }  # fmt: skip
    assert len(orders) == 8 * 8 * 2


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7).filter(any), st.integers(0, 300))
def test_a_mixture_is_that_of_the_slow_twin(rates: list[int], positions: int) -> None:
    zeros = np.zeros(len(rates), np.int64)
    out = _core.interleave(np.array(rates), zeros, zeros, positions)
    assert out.sources.tolist() == slow.interleave(rates, positions)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2**48), min_size=1, max_size=12).filter(any))
def test_every_prefix_of_a_mixture_is_within_one(rates: list[int]) -> None:
    positions = 500
    zeros = np.zeros(len(rates), np.int64)
    out = _core.interleave(np.array(rates), zeros, zeros, positions)
    got = np.zeros(len(rates), int).tolist()
    for p, source in enumerate(out.sources.tolist(), 1):
        assert out.counts_before[p - 1] == got[source]
        got[source] += 1
        assert max(abs(Fraction(rate * p, sum(rates)) - n) for rate, n in zip(rates, got, strict=True)) < 1
    assert out.counts.tolist() == got


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.lists(st.integers(0, 60), max_size=5))
def test_a_mixture_goes_on_from_its_credits(rates: list[int], steps: list[int]) -> None:
    zeros = np.zeros(len(rates), np.int64)
    whole = _core.interleave(np.array(rates), zeros, zeros, sum(steps)).sources.tolist()
    parts, credits, counts = [], zeros, zeros
    for step in steps:
        out = _core.interleave(np.array(rates), credits, counts, step)
        parts += out.sources.tolist()
        credits, counts = out.credits, out.counts
    assert parts == whole


def test_datasets_in_proportion_to_their_rows_end_together() -> None:
    rows = [1, 17, 100, 3, 12345]
    zeros = np.zeros(5, np.int64)
    out = _core.interleave(np.array(rows), zeros, zeros, sum(rows))
    assert out.counts.tolist() == rows
    assert not out.credits.any()


def test_what_does_not_fit_the_core_is_refused() -> None:
    zeros = np.zeros(2, np.int64)
    for rates, credits, message in (
        ([0, 0], [0, 0], "at least 1"),
        ([-1, 2], [0, 0], "at least 0"),
        ([2**53, 1], [0, 0], "at most 2"),
        ([1, 1], [5, 0], "out of range"),
        ([1, 1], [-2, -2], "another mixture"),
        ([1, 1, 1], [0, 0], "got 3, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.interleave(np.array(rates), np.array(credits), zeros, 4)
    with pytest.raises(ValueError, match="window in"):
        rows_at(10, [1, 2, 3, 4], [0], block=11)
    with pytest.raises(ValueError, match="out of range"):
        rows_at(10, [1, 2, 3, 4], [-1])


def test_shares_are_exact_and_in_the_unit_asked_for() -> None:
    assert shares_of([0.1, 0.2], [10, 10], [10, 10]) == [Fraction(1, 10), Fraction(1, 5)]
    # Half of the loss tokens each: the second has three times as many per row, so it gets a third of the rows.
    assert whole_rates(shares_of([1, 1], [10, 20], [100, 600])) == [3, 1]
    assert whole_rates([Fraction(1, 3), Fraction(2, 3), Fraction(0)]) == [1, 2, 0]
    rates = whole_rates([Fraction(1, 2**61 - 1), Fraction(1, 3)])
    assert sum(rates) <= MAX_RATES and min(rates) >= 1
    for weights, message in (([1, -1], "negative"), ([float("nan"), 1], "not finite"), ([0, 0], "every weight is 0")):
        with pytest.raises(UsageError, match=message):
            shares_of(weights, [10, 10], [10, 10])
    with pytest.raises(UsageError, match="none of the unit"):
        shares_of([1, 1], [10, 10], [10, 0])


def test_setting_up_costs_no_table() -> None:
    key = tuple(epoch_key(0, "x"))
    rows = (10**12, 10**9)
    fake = [("/", ["x"], np.array([1]), np.array([n]), ["0" * 16], ["0" * 16], n, 0) for n in rows]
    reader = _core.Reader(fake, 8, 0, "off", "pread", True, 0, 1, None, np.ones(256 * 8, np.float32))

    def plan(ranks: int, rank: int) -> tuple[list[int], list[int], object]:
        keys = np.array([key, key[::-1]], np.uint64).ravel()
        shapes = shapes_of(rows, 0, 1)
        stream = _core.Stream(
            reader, *shapes, True, keys, 64, ranks, rank, 64 // ranks, False, True, {"input_ids": 0}, 4096,
            _core.Pool(4096),
        )  # fmt: skip
        stream.stand(((0, 0), (0, 0), 0, 0), np.array([3, 1]), -1)
        planned = stream.plan(((10**11, 5), (0, 0), 10**11 + 5, 0))
        assert planned is not None
        return planned[0].tolist(), planned[1].tolist(), planned[2]

    sources, at, after = plan(1, 0)
    assert plan(4, 1) == (sources[16:32], at[16:32], after)
    assert after == ((10**11 + 48, 5 + 16), (0, 0), 10**11 + 5 + 64, 0)
