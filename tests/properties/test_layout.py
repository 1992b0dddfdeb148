"""Layout moves tokens and facts and changes nothing but one flag: no label crosses the border of a piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpipe import _core, pack
from maskpipe.roles import Flag, Part, Role
from tests.properties.strategies import Doc, Plan, arguments, documents, plans, row_facts, row_runs
from tests.reference import layout as slow
from tests.reference.runs import Facts

TRAINED: Facts = (Role.TEXT, Part.CONTENT, Flag.SAMPLED | Flag.LOSS, -1)


def text(*lengths: int) -> list[Doc]:
    """Pretraining documents: every token a target. Ids count up over all of them, from 1."""
    made: list[Doc] = []
    for length in lengths:
        start = sum(len(ids) for ids, _ in made) + 1
        made.append((list(range(start, start + length)), [TRAINED] * length))
    return made


def plan_of(pieces: pack.Pieces) -> Plan:
    flat = list(zip(pieces.documents.tolist(), pieces.starts.tolist(), pieces.stops.tolist(), strict=True))
    return [flat[a:b] for a, b in zip(pieces.row_offsets[:-1], pieces.row_offsets[1:], strict=True)]


@settings(deadline=None, max_examples=200)
@given(plans())
def test_lay_out_is_the_slow_twin(case: tuple[list[Doc], Plan, int]) -> None:
    given_documents, plan, length = case
    rows = _core.lay_out(**arguments(given_documents, plan, length, pad_id=999))
    expected = slow.lay_out(given_documents, plan, length, 999)
    assert rows.input_ids.tolist() == [token for row in expected for token in row.ids]
    assert row_runs(rows) == [row.runs for row in expected]
    assert row_facts(rows, length) == [row.facts for row in expected]
    assert rows.piece_ends.tolist() == [end for row in expected for end in row.ends]
    assert rows.n_loss.tolist() == [row.n_loss for row in expected]


@pytest.mark.parametrize("method", ["best_fit", "first_fit", "concat_split", "none"])
@settings(deadline=None, max_examples=100)
@given(given_documents=st.lists(documents(min_tokens=1), max_size=8), spare=st.integers(0, 5))
def test_pack_then_unpack_is_the_identity(method: pack.Method, given_documents: list[Doc], spare: int) -> None:
    lengths = [len(ids) for ids, _ in given_documents]
    capacity = max(lengths, default=1) + spare
    pieces = pack.plan(lengths, capacity, method)
    rows = _core.lay_out(**arguments(given_documents, plan_of(pieces), capacity))
    facts = row_facts(rows, capacity)

    found: dict[int, Doc] = {index: ([], []) for index in range(len(lengths))}
    for row in range(pieces.rows):
        start = 0
        for piece in range(int(pieces.row_offsets[row]), int(pieces.row_offsets[row + 1])):
            ids, tokens = found[int(pieces.documents[piece])]
            end = int(rows.piece_ends[piece])
            ids += rows.input_ids[row * capacity + start : row * capacity + end].tolist()
            # What a piece cannot predict is its first token: that flag, and nothing else, is taken away.
            source = given_documents[int(pieces.documents[piece])][1][int(pieces.starts[piece])]
            assert facts[row][start] == (source[0], source[1], source[2] & ~Flag.LOSS, source[3])
            tokens += [source, *facts[row][start + 1 : end]]
            start = end
        assert all(fact == slow.PADDING for fact in facts[row][start:])
    assert [found[index] for index in range(len(lengths))] == given_documents


@settings(deadline=None, max_examples=200)
@given(plans())
def test_no_label_crosses_a_border_and_padding_has_no_loss(case: tuple[list[Doc], Plan, int]) -> None:
    given_documents, plan, length = case
    everything = [
        (ids, [(role, part, 31, message) for role, part, _, message in facts]) for ids, facts in given_documents
    ]
    rows = _core.lay_out(**arguments(everything, plan, length))
    for facts, pieces, ends in zip(row_facts(rows, length), plan, split(rows.piece_ends.tolist(), plan), strict=True):
        starts = [0, *ends[:-1]] if pieces else []
        targets = [position for position, (_, _, flags, _) in enumerate(facts) if flags & Flag.LOSS]
        assert targets == [p for p in range(ends[-1] if ends else 0) if p not in starts]
    for runs, ends in zip(row_runs(rows), split(rows.piece_ends.tolist(), plan), strict=True):
        assert set(ends) <= {end for end, _ in runs}, "a run goes on over the border of a piece"


def split(values: list[int], like: Plan) -> list[list[int]]:
    iterator = iter(values)
    return [[next(iterator) for _ in row] for row in like]


def test_a_full_pretraining_row_has_8191_targets() -> None:
    rows = _core.lay_out(**arguments(text(8192), [[(0, 0, 8192)]], 8192))
    assert rows.n_loss.tolist() == [8191]
    assert rows.run_ends.tolist() == [1, 8192]
    assert rows.piece_ends.tolist() == [8192]


@pytest.mark.parametrize(
    ("lengths", "capacity", "ends", "n_loss"),
    [
        ([1, 1, 1, 5], 8, [[5, 6, 7, 8]], [4]),  # documents of one token stay apart and have no target
        ([8], 8, [[8]], [7]),
        ([7], 8, [[7]], [6]),
        ([1], 8, [[1]], [0]),
        ([8, 8], 8, [[8], [8]], [7, 7]),
        ([], 8, [], []),
    ],
)
def test_boundaries_come_from_the_lengths(
    lengths: list[int], capacity: int, ends: list[list[int]], n_loss: list[int]
) -> None:
    pieces = pack.plan(lengths, capacity)
    rows = _core.lay_out(**arguments(text(*lengths), plan_of(pieces), capacity))
    assert split(rows.piece_ends.tolist(), plan_of(pieces)) == ends
    assert rows.n_loss.tolist() == n_loss
    for row, facts in zip(ends, row_facts(rows, capacity), strict=True):
        assert [role for role, _, _, _ in facts] == [Role.TEXT] * row[-1] + [Role.PADDING] * (capacity - row[-1])


def test_a_fragment_does_not_predict_its_first_token() -> None:
    # One document of 5 in rows of 3: tokens 0 and 3 begin a fragment; the context of 3 stands in another row.
    pieces = pack.concat_split([5], 3)
    rows = _core.lay_out(**arguments(text(5), plan_of(pieces), 3))
    flags = _core.expand_runs(rows.run_ends, rows.run_flags, rows.row_run_offsets, 3)
    assert (flags & Flag.LOSS > 0).tolist() == [False, True, True, False, True, False]
    assert rows.n_loss.tolist() == [2, 1]


def test_runs_that_were_not_merged_are_merged() -> None:
    given_arguments = arguments(text(4), [[(0, 0, 4)]], 4)
    for name in ("run_roles", "run_parts", "run_flags", "run_messages"):
        given_arguments[name] = np.repeat(given_arguments[name], 4)
    given_arguments["run_ends"] = np.arange(1, 5, dtype=np.int32)
    given_arguments["run_offsets"] = np.array([0, 4])
    assert _core.lay_out(**given_arguments).run_ends.tolist() == [1, 4]


def test_pad_id_in_the_text_is_not_padding() -> None:
    rows = _core.lay_out(**arguments([([0, 0], [TRAINED] * 2)], [[(0, 0, 2)]], 3, pad_id=0))
    roles = _core.expand_runs(rows.run_ends, rows.run_roles, rows.row_run_offsets, 3)
    assert roles.tolist() == [Role.TEXT, Role.TEXT, Role.PADDING]


SOUND = arguments(text(4, 2), [[(0, 0, 4)], [(1, 0, 2), (0, 1, 3)]], 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id_offsets": np.array([0, 4])}, "id_offsets ends with 4, but there are 6 values"),
        ({"id_offsets": np.array([0, 6])}, "id_offsets and run_offsets must speak of the same documents, got 1 and 2"),
        ({"id_offsets": np.array([0, 5, 4, 6])}, r"id_offsets\[2\] is 4, less than the one before it, 5"),
        ({"id_offsets": np.array([0, 3, 6])}, r"run_ends\[0\] is 4 in group 0"),
        ({"run_ends": np.array([4, 1], np.int32)}, "the runs of group 1 end at 1, but its length is 2"),
        ({"run_roles": np.array([7], np.uint8)}, "run arrays must have one length, got run_ends 2, run_roles 1"),
        ({"run_offsets": np.array([0, 1])}, "run_offsets ends with 1, but there are 2 values"),
        ({"piece_documents": np.array([0, 2, 0])}, r"piece_documents\[1\] is 2, but there are 2 documents"),
        ({"piece_documents": np.array([0, -1, 0])}, r"piece_documents\[1\] is -1"),
        ({"piece_stops": np.array([5, 2, 3], np.int32)}, r"piece 0 is tokens \[0, 5\) of document 0, which has 4"),
        ({"piece_stops": np.array([4, 2, 1], np.int32)}, r"piece 2 is tokens \[1, 1\)"),
        ({"piece_starts": np.array([0, -1, 1], np.int32)}, r"piece 1 is tokens \[-1, 2\)"),
        (
            {"piece_starts": np.array([0, 0], np.int32)},
            "piece_documents, piece_starts and piece_stops must have one length",
        ),
        ({"row_offsets": np.array([0, 1, 2])}, "row_offsets ends with 2, but there are 3 values"),
        ({"row_offsets": np.zeros(0, np.int64)}, "row_offsets must start with 0"),
        ({"sequence_length": 3}, "row 0 holds more than sequence_length = 3 tokens at piece 0"),
        ({"row_offsets": np.array([0, 0, 3])}, "row 1 holds more than sequence_length = 5 tokens at piece 1"),
        ({"sequence_length": 0}, r"sequence_length must be in \[1, 2147483647\], got 0"),
        ({"sequence_length": 2**31}, "sequence_length must be in"),
        ({"pad_id": 2**31}, "pad_id does not fit 32 bits"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, Any], message: str) -> None:
    assert _core.lay_out(**SOUND).n_loss.tolist() == [3, 2]
    with pytest.raises(ValueError, match=message):
        _core.lay_out(**{**SOUND, **change})


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_random_arguments_are_laid_out_or_refused(data: st.DataObject) -> None:
    changed = dict(SOUND)
    for name in data.draw(st.sets(st.sampled_from(sorted(SOUND)), min_size=1, max_size=3)):
        if name in ("sequence_length", "pad_id"):
            changed[name] = data.draw(st.integers(-1, 9))
            continue
        dtype = SOUND[name].dtype
        values = data.draw(st.lists(st.integers(0 if dtype == np.uint8 else -1, 7), max_size=6))
        extreme = data.draw(st.sampled_from([None, int(np.iinfo(dtype).max), int(np.iinfo(dtype).min)]))
        changed[name] = np.array(values if extreme is None else [*values, extreme], dtype)
    try:
        rows = _core.lay_out(**changed)
    except ValueError:
        return
    length = changed["sequence_length"]
    assert len(rows.input_ids) == (len(changed["row_offsets"]) - 1) * length
    assert len(row_facts(rows, length)) == len(changed["row_offsets"]) - 1
