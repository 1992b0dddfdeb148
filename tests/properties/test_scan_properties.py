"""csrc/scan.cpp does what its slow twin does, and refuses shapes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core
from tests.reference import scan as slow


@st.composite
def columns(draw: st.DrawFn) -> dict[str, Any]:
    """Rows of tokens with marks and numbers, and ranges among them; some longer than a word, or than 255 words."""
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 8, 9, 40, 2100]), min_size=1, max_size=5))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    size = int(offsets[-1])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    real = rng.random(size) < share
    numbers = np.where(rng.random(size) < 0.9, np.arange(size) % 13, rng.integers(-3, 4, size))
    starts, ends = (np.sort(rng.integers(0, size + 1, 6)) for _ in range(2))
    return {
        "offsets": offsets,
        "marked": rng.random(size) < draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0])),
        "real": real,
        "alone": _core.first_marked(real, offsets),
        "numbers": numbers.astype(np.int64),
        "bytes": rng.integers(0, 256, size).astype(np.uint8),
        "ids": rng.integers(-2, 40, size).astype(np.int32),
        "table": rng.random(rng.integers(0, 50)) < 0.2,
        "starts": starts.astype(np.int64),
        "ends": rng.permutation(ends).astype(np.int64),
    }


@given(columns())
@settings(max_examples=150, deadline=None)
def test_every_pass_is_that_of_its_twin(c: dict[str, Any]) -> None:
    marked, offsets, starts, ends = c["marked"], c["offsets"], c["starts"], c["ends"]
    size = len(marked)
    for name, arguments in {
        "count_marked": (marked, starts, ends),
        "count_values": (c["bytes"], marked),
        "listed": (c["ids"], c["table"]),
        "marked_at_ends": (marked, offsets),
        "first_marked": (marked, offsets),
        "behind_last_marked": (marked, np.minimum(starts, ends), np.maximum(starts, ends)),
        "mark_ranges": (size, starts, ends),
    }.items():
        found = getattr(_core, name)(*arguments)
        assert found.tolist() == getattr(slow, name)(*arguments), name
    for name in ("starts_of_positions", "starts_of_numbers"):
        arguments = (c["numbers"], c["real"], c["alone"], offsets)
        found = getattr(_core, name)(*arguments)
        assert (found.starts.tolist(), found.wrong.tolist()) == getattr(slow, name)(*arguments), name


def test_shapes_that_do_not_fit_are_refused() -> None:
    marked, two = np.zeros(3, np.bool_), np.array([0, 2])
    with pytest.raises(ValueError, match="range 0 is outside the tokens"):
        _core.count_marked(marked, np.array([0]), np.array([4]))
    with pytest.raises(ValueError, match="starts and ends must have one length"):
        _core.behind_last_marked(marked, np.array([0]), two)
    with pytest.raises(ValueError, match="offsets"):
        _core.marked_at_ends(marked, two)
    with pytest.raises(ValueError, match="one length"):
        _core.count_values(np.zeros(2, np.uint8), marked)
    with pytest.raises(ValueError, match="one mark per token"):
        _core.starts_of_numbers(np.zeros(3, np.int64), marked, marked[:2], np.array([0, 3]))
    with pytest.raises(ValueError, match="at least 0"):
        _core.mark_ranges(-1, two, two)
    with pytest.raises(TypeError, match="marked must be a numpy array of bool"):
        _core.first_marked(np.zeros(3, np.uint8), np.array([0, 3]))
