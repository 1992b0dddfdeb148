"""csrc/loss.h says the same as its slow twin, for any facts and any selectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpipe import _core
from maskpipe.roles import Flag, Part, Role
from tests.reference import loss as twin

ROLES = [Role.USER, Role.ASSISTANT, Role.TOOL, Role.TEMPLATE]
PARTS = [Part.CONTENT, Part.REASONING, Part.TOOL_CALL, Part.SCAFFOLD, Part.STOP]
FACT = st.tuples(
    st.sampled_from([int(role) for role in ROLES]),
    st.sampled_from([int(part) for part in PARTS]),
    st.sampled_from([0, 1, 1, 4, 1 | 16, 1 | 8, 1 | 2, 2]),
    st.integers(-1, 3),
)
FACTS = st.lists(st.tuples(FACT, st.integers(1, 3)), max_size=12).map(
    lambda runs: [fact for fact, times in runs for _ in range(times)]
)
SELECTORS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-1, *map(int, ROLES)]), st.sampled_from([-1, -1, *map(int, PARTS)])),
    max_size=4,
)


def columns(facts: list[twin.Fact]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    roles, parts, flags, messages = zip(*facts, strict=True) if facts else ((), (), (), ())
    return np.array(roles, np.uint8), np.array(parts, np.uint8), np.array(flags, np.uint8), np.array(messages, np.int32)


@given(facts=FACTS)
def test_wrappers_go_with_what_they_wrap(facts: list[twin.Fact]) -> None:
    _, parts, flags, messages = columns(facts)
    assert _core.kinds(parts, flags, messages).tolist() == twin.kinds(facts)


@given(
    facts=FACTS,
    selectors=SELECTORS,
    everything=st.booleans(),
    empty=st.booleans(),
    weigh=st.booleans(),
    none=st.booleans(),
    own=st.sampled_from([-1, -1, 0, 2]),
    trainable=st.lists(st.integers(0, 3), max_size=3),
)
def test_loss_is_what_the_twin_says_and_no_other_flag_changes(
    facts: list[twin.Fact],
    selectors: list[tuple[int, int, int]],
    everything: bool,
    empty: bool,
    weigh: bool,
    none: bool,
    own: int,
    trainable: list[int],
) -> None:
    roles, parts, flags, messages = columns(facts)
    weights = np.array([k % 3 * 0.5 for k in range(len(facts))], np.float32) if weigh else None
    rule = _core.LossRule(selectors, everything, empty)
    marked = _core.mark_loss(rule, roles, parts, flags, messages, weights, none, own, trainable)
    expected = twin.loss(
        facts, selectors, everything, empty, None if weights is None else weights.tolist(), none, own, trainable
    )
    assert (marked & Flag.LOSS > 0).tolist() == expected
    assert (marked & ~np.uint8(Flag.LOSS)).tolist() == (flags & ~np.uint8(Flag.LOSS)).tolist()


def test_facts_of_different_lengths_are_refused() -> None:
    one, two = np.zeros(1, np.uint8), np.zeros(2, np.uint8)
    rule = _core.LossRule([(1, -1, -1)], True, True)
    with pytest.raises(ValueError, match="one length"):
        _core.mark_loss(rule, one, two, one, np.zeros(1, np.int32), None, False, -1, [])
    with pytest.raises(ValueError, match="one length"):
        _core.mark_loss(rule, one, one, one, np.zeros(1, np.int32), np.ones(2, np.float32), False, -1, [])
