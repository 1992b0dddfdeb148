"""check_rows accepts what lay_out makes and finds the first token of anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core
from maskpipe.roles import Flag, Part, Role
from tests.properties.strategies import VOCABULARY, Doc, Plan, arguments, plans
from tests.reference import check as slow

MUTABLE = (
    "input_ids", "run_ends", "run_roles", "run_parts", "run_flags", "run_messages", "document_ends", "n_loss",
)  # fmt: skip


def laid_out(given_documents: list[Doc], plan: Plan, length: int) -> dict[str, Any]:
    """Keyword arguments of check_rows, true by construction."""
    made = arguments(given_documents, plan, length)
    rows = _core.lay_out(**made)._asdict()
    return {
        "document_ends": rows.pop("piece_ends"),
        "row_document_offsets": made["row_offsets"],
        "sequence_length": length,
        "vocab_size": VOCABULARY,
        **rows,
    }


def slow_first(rows: dict[str, Any]) -> tuple[int, int, str] | None:
    length = rows["sequence_length"]
    names = ("run_roles", "run_parts", "run_flags", "run_messages")
    facts = list(zip(*(rows[name].tolist() for name in names), strict=True))
    for row in range(len(rows["n_loss"])):
        a, b = rows["row_run_offsets"][row : row + 2]
        c, d = rows["row_document_offsets"][row : row + 2]
        found = slow.violations(
            rows["input_ids"][row * length : (row + 1) * length].tolist(),
            rows["run_ends"][a:b].tolist(),
            facts[a:b],
            rows["document_ends"][c:d].tolist(),
            int(rows["n_loss"][row]),
            length,
            rows["vocab_size"],
        )
        if found:
            return (row, *found[0])
    return None


@settings(deadline=None, max_examples=100)
@given(plans())
def test_rows_as_laid_out_are_sound(case: tuple[list[Doc], Plan, int]) -> None:
    assert _core.check_rows(**laid_out(*case)) is None


@settings(deadline=None, max_examples=250)
@given(plans(), st.data())
def test_the_first_violation_is_that_of_the_slow_twin(case: tuple[list[Doc], Plan, int], data: st.DataObject) -> None:
    rows = laid_out(*case)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(MUTABLE))
        if len(rows[name]) == 0:
            continue
        rows[name] = rows[name].copy()
        index = data.draw(st.integers(0, len(rows[name]) - 1))
        byte = rows[name].dtype == np.uint8
        near = st.sampled_from(
            [0, 1, 2, 3, 7, 8, 9, 31, 32, 254, 255] if byte else [-2, -1, 0, 1, 2, 3, 5, 8, 999, 1000]
        )
        rows[name][index] = data.draw(near | st.integers(*((0, 255) if byte else (-(2**31), 2**31 - 1))))
    found = _core.check_rows(**rows)
    assert (found and tuple(found[:3])) == slow_first(rows)
    assert found is None or found.message


def sound() -> dict[str, Any]:
    """Two rows of 6: documents of 3 and 2 tokens and padding of 1; one document of 6. All train but first ones."""
    trained = (int(Role.TEXT), int(Part.CONTENT), int(Flag.SAMPLED | Flag.LOSS), 0)
    documents: list[Doc] = [([1, 2, 3], [trained] * 3), ([4, 5], [trained] * 2), ([6] * 6, [trained] * 6)]
    return laid_out(documents, [[(0, 0, 3), (1, 0, 2)], [(2, 0, 6)]], 6)


def test_the_worked_example() -> None:
    # row 0: runs end at 1 3 | 4 5 | 6, documents at 3 5; row 1: runs end at 1 6, the document at 6.
    rows = sound()
    assert rows["run_ends"].tolist() == [1, 3, 4, 5, 6, 1, 6]
    assert rows["document_ends"].tolist() == [3, 5, 6]
    assert rows["n_loss"].tolist() == [3, 5]
    assert _core.check_rows(**rows) is None


@pytest.mark.parametrize(
    ("name", "index", "value", "row", "position", "code"),
    [
        ("document_ends", 1, 3, 0, 3, "document_ends"),
        ("document_ends", 0, 0, 0, 0, "document_ends"),
        ("document_ends", 2, 7, 1, 0, "document_ends"),
        ("document_ends", 0, 2, 0, 2, "run_crosses_document"),
        ("document_ends", 1, 6, 0, 5, "padding_in_document"),
        ("document_ends", 2, 5, 1, 5, "run_crosses_document"),
        ("run_ends", 4, 5, 0, 5, "run_ends"),
        ("run_ends", 4, 7, 0, 5, "run_ends"),
        ("run_ends", 6, 5, 1, 5, "run_ends"),
        ("run_ends", 1, 1, 0, 1, "run_ends"),
        ("run_ends", 0, 2, 0, 6, "n_loss"),
        ("run_roles", 2, 9, 0, 3, "role"),
        ("run_roles", 1, Role.PADDING, 0, 1, "padding_in_document"),
        ("run_roles", 4, Role.USER, 0, 5, "tokens_after_documents"),
        ("run_parts", 1, 7, 0, 1, "part"),
        ("run_parts", 1, Part.NONE, 0, 1, "padding_in_document"),
        ("run_parts", 4, Part.CONTENT, 0, 5, "padding_facts"),
        ("run_messages", 1, -2, 0, 1, "message"),
        ("run_messages", 4, 0, 0, 5, "padding_facts"),
        ("run_flags", 1, 32, 0, 1, "flags"),
        ("run_flags", 4, Flag.LOSS, 0, 5, "padding_facts"),
        ("run_flags", 4, Flag.SAMPLED, 0, 5, "padding_facts"),
        ("run_flags", 0, Flag.LOSS, 0, 0, "loss_on_first_token"),
        ("run_flags", 2, Flag.LOSS, 0, 3, "loss_on_first_token"),
        ("run_flags", 5, Flag.LOSS, 1, 0, "loss_on_first_token"),
        ("run_flags", 3, 0, 0, 6, "n_loss"),
        ("input_ids", 4, -1, 0, 4, "input_id"),
        ("input_ids", 5, VOCABULARY, 0, 5, "input_id"),
        ("input_ids", 11, VOCABULARY, 1, 5, "input_id"),
        ("n_loss", 1, 4, 1, 6, "n_loss"),
    ],
)
def test_one_broken_value_is_found_where_it_is(
    name: str, index: int, value: int, row: int, position: int, code: str
) -> None:
    rows = sound()
    rows[name][index] = value
    found = _core.check_rows(**rows)
    assert found is not None
    assert (found.row, found.position, found.code) == (row, position, code)
    assert (row, position, code) == slow_first(rows)


def test_the_first_of_several_is_reported() -> None:
    rows = sound()
    rows["n_loss"][0] = 9
    rows["input_ids"][1] = -1
    rows["run_flags"][2] = Flag.LOSS
    rows["run_roles"][6] = 9
    found = _core.check_rows(**rows)
    assert found == (0, 1, "input_id", "id -1 is outside the vocabulary of 1000")


def test_an_end_of_a_document_that_steps_back_hides_nothing_before_it() -> None:
    rows = sound()
    rows["document_ends"][:2] = [5, 3]  # tokens 3 and 4 are inside the first document, not after the last
    found = _core.check_rows(**rows)
    assert found == (0, 5, "document_ends", "a document that begins at 5 ends at 3; the row has 6 tokens")
    assert slow_first(rows) == found[:3]


def test_a_row_of_padding_alone_is_sound_and_a_text_of_unknown_part_too() -> None:
    assert _core.check_rows(**laid_out([], [[]], 4)) is None
    foreign: list[Doc] = [([1, 2], [(int(Role.UNKNOWN), int(Part.NONE), 0, -1)] * 2)]
    assert _core.check_rows(**laid_out(foreign, [[(0, 0, 2)]], 4)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": np.zeros(11, np.int32)}, "n_loss speaks of 2 rows.*input_ids holds 11 tokens of rows of 6"),
        ({"n_loss": np.zeros(3, np.int32)}, "n_loss speaks of 3 rows, row_run_offsets of 2"),
        ({"row_run_offsets": np.array([0, 8, 7])}, r"row_run_offsets\[2\] is 7, less than the one before it, 8"),
        ({"row_document_offsets": np.array([0, 2])}, "row_document_offsets ends with 2, but there are 3 values"),
        ({"run_parts": np.zeros(1, np.uint8)}, "run arrays must have one length"),
        ({"sequence_length": 0}, "sequence_length must be in"),
        ({"sequence_length": 2**40}, "sequence_length must be in"),
        ({"vocab_size": 0}, "vocab_size must be in"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_an_error_not_a_violation(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.check_rows(**{**sound(), **change})


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_random_arguments_are_checked_or_refused(data: st.DataObject) -> None:
    rows = sound()
    for name in data.draw(st.sets(st.sampled_from(sorted(rows)), min_size=1, max_size=3)):
        if name in ("sequence_length", "vocab_size"):
            rows[name] = data.draw(st.integers(-1, 13))
            continue
        dtype = rows[name].dtype
        values = data.draw(st.lists(st.integers(0 if dtype == np.uint8 else -1, 8), max_size=8))
        extreme = data.draw(st.sampled_from([None, int(np.iinfo(dtype).max), int(np.iinfo(dtype).min)]))
        rows[name] = np.array(values if extreme is None else [*values, extreme], dtype)
    try:
        found = _core.check_rows(**rows)
    except ValueError:
        return
    assert (found and tuple(found[:3])) == slow_first(rows)
