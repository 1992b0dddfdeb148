"""Where the turns of rows stand: habits of a template, as tables for the core, and what it finds in ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.auditing.foreign.habits import ANY, EMPTY, OPEN, SAMPLED, START, STRAY, Habits, bos_id
from maskpipe.auditing.foreign.raw import Int64
from maskpipe.auditing.foreign.rows import Ids, Rows
from maskpipe.roles import Role
from maskpipe.tokenizer import Tokenizer

NOT_LOCATED, WHOLE, CUT, TAIL_MISSING, MORE = range(5)
"""DocumentState of csrc/turns.h."""

_SYSTEM = 1 << Role.SYSTEM | 1 << Role.CONTEXT | 1 << Role.TEMPLATE
"""Roles that templates write into one turn, so that nothing tells whose of them a text in it is."""

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Turns:
    """What is known of n tokens in d documents."""

    starts: Int64  # [d]
    ends: Int64  # [d] without padding
    roles: UInt8  # [n] 255 where not located
    marks: UInt8  # [n] bits of Mark
    states: UInt8  # [d] DocumentState
    bos: npt.NDArray[np.int32]  # [d] BOS tokens it begins with
    from_start: UInt8  # [d] 1: begins with a joint of the beginning
    turns: Int64  # [turns, 4] document, start, end, stop or -1, of sampled tokens
    openings: Int64  # where a turn begins to which no joint leads
    beginnings: Int64  # where a conversation begins inside a document


class Locator:
    """Locates turns in rows of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, habits: Habits, about: Ids) -> None:
        self.habits = habits
        self.why = habits.why
        """Why turns are not located, in words; "" where they are."""
        bos = habits.bos if habits.joints else bos_id(tokenizer)
        self.bos = -1 if bos is None or bos == about.pad else bos
        control = np.zeros(tokenizer.vocab_size, np.uint8)
        allowed = np.zeros(tokenizer.vocab_size, np.uint16)
        controls = [tokenizer.added_tokens[text] for text in sorted(tokenizer.control)]
        control[controls] = 1
        structure = {id for joint in habits.joints for id in joint.ids if control[id]}
        final = set(habits.stops) | set(about.ends) | {id for id in (about.pad, bos_id(tokenizer)) if id is not None}
        control[sorted(final)] = 2
        for id in controls:  # what an assistant writes in its turns is its own, but for what tells turns apart
            if id not in structure | final:
                allowed[id] |= 1 << Role.ASSISTANT
        for id, roles in habits.allowed.items():
            allowed[id] |= roles | (_SYSTEM if roles & _SYSTEM else 0)
        joints = habits.joints
        self._joints: list[Any] = [
            np.array([id for joint in joints for id in joint.ids], np.int32),
            np.array([role for joint in joints for role in joint.roles], np.uint8),
            np.array([mark for joint in joints for mark in joint.marks], np.uint8),
            _offsets([len(joint.ids) for joint in joints]),
            np.array([joint.before for joint in joints], np.uint8),
            np.array([joint.after for joint in joints], np.uint8),
            np.array([joint.needed for joint in joints], np.int32),
        ]
        self._kinds = (control, allowed)
        self._empty = (
            np.array([id for block in habits.empty for id in block], np.int32),
            _offsets([len(block) for block in habits.empty]),
        )
        self._starts_anywhere = any(joint.before == START and not joint.ids for joint in joints)
        self._begins = {joint.ids[:1] for joint in joints if joint.before == ANY}
        self._out = {joint.before: set[tuple[int, ...]]() for joint in joints}
        for joint in joints:
            self._out[joint.before].add(joint.ids[:1])
        self._odd: set[int] = set()
        if joints:
            self._verify()
        self._odd_table = table_of(self._odd)

    @property
    def knows_turns(self) -> bool:
        """Are turns located at all?"""
        return not self.why

    def ends_with_a_mark(self, role: int) -> bool:
        """Does the template always write something between content of this role and the next turn's beginning?"""
        return role in self._out and not self._out[role] & self._begins

    def _verify(self) -> None:
        """Locates the turns of the probes themselves and compares them with what the tracker knows. Control tokens that
        stand only in probes of which it finds something else are odd: nothing is claimed of documents with them."""
        good: set[int] = set()
        bad: set[int] = set()
        control = self._kinds[0]
        for shape, document in self.habits.probes:
            ids = document.input_ids
            found = self._found(ids, np.zeros(1, np.int64), np.array([len(ids)]))
            claimed = found.marks & (OPEN | EMPTY) == 0
            differs = claimed & ((found.marks & SAMPLED > 0) != (document.sampled > 0))
            right = found.states[0] != NOT_LOCATED and not (differs.any() or (found.marks & STRAY).any())
            if not right and shape in ("ua", "uaua"):
                self.why = "turns of plain conversations are not found where the template's own rendering has them"
                return
            (good if right else bad).update(ids[control[ids] > 0].tolist())
        self._odd = bad - good

    def _found(self, ids: npt.NDArray[np.int32], starts: Int64, ends: Int64) -> _core.Located:
        joints, roles, marks, offsets, before, after, needed = self._joints
        control, allowed = self._kinds
        blocks, block_offsets = self._empty
        return _core.locate_turns(
            ids, starts, ends, joints, roles, marks, offsets, before, after, needed, control, allowed, self.bos, blocks,
            block_offsets,
        )  # fmt: skip

    def locate(self, rows: Rows) -> Turns:
        """The turns of these rows."""
        starts, ends = rows.documents
        found = self._found(rows.ids, starts, ends)
        turns = found.turns.reshape(-1, 4)
        states = found.states
        roles, marks = found.roles, found.marks
        has_turn = np.zeros(len(states), np.bool_)
        has_turn[turns[:, 0]] = True
        doubtful = ~has_turn & (self._starts_anywhere | (_core.count_marked(rows.loss, starts, ends) > 0))
        doubtful |= self._hold_odd(rows.ids, starts, ends)
        doubtful &= states != NOT_LOCATED
        for number in np.flatnonzero(doubtful).tolist():  # something is trained that is no turn of this template
            roles[starts[number] : ends[number]] = Role.UNKNOWN
            marks[starts[number] : ends[number]] = 0
            states[number] = NOT_LOCATED
        from_start = found.from_start * (states != NOT_LOCATED)
        openings, beginnings = (
            at[~doubtful[np.searchsorted(starts, at, "right") - 1]] for at in (found.openings, found.beginnings)
        )
        turns = turns[~doubtful[turns[:, 0]]]
        return Turns(starts, ends, roles, marks, states, found.bos, from_start, turns, openings, beginnings)

    def _hold_odd(self, ids: npt.NDArray[np.int32], starts: Int64, ends: Int64) -> npt.NDArray[np.bool_]:
        """[documents] which hold a token of which the probes say nothing certain."""
        if not self._odd or self.why:
            return np.full(len(starts), bool(self.why))
        held: npt.NDArray[np.bool_] = _core.count_marked(_core.listed(ids, self._odd_table), starts, ends) > 0
        return held


def table_of(ids: Iterable[int]) -> npt.NDArray[np.bool_]:
    """For _core.listed: which ids these are."""
    held = [id for id in ids if id >= 0]
    out = np.zeros(max(held, default=-1) + 1, np.bool_)
    out[held] = True
    return out


def _offsets(sizes: list[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
