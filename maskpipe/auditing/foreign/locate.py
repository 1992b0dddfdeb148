"""Where the turns of rows stand: habits of a template, as tables for the core, and what it finds in ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.auditing.foreign.habits import START, Habits, bos_id
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
        self.knows_turns = bool(habits.joints)
        bos = habits.bos if self.knows_turns else bos_id(tokenizer)
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

    def locate(self, rows: Rows) -> Turns:
        """The turns of these rows."""
        starts, ends = rows.documents
        ids, roles_of, marks_of, offsets, before, after, needed = self._joints
        control, allowed = self._kinds
        blocks, block_offsets = self._empty
        found = _core.locate_turns(
            rows.ids, starts, ends, ids, roles_of, marks_of, offsets, before, after, needed, control, allowed, self.bos,
            blocks, block_offsets,
        )  # fmt: skip
        turns = found.turns.reshape(-1, 4)
        states = found.states
        roles, marks = found.roles, found.marks
        has_turn = np.zeros(len(states), np.bool_)
        has_turn[turns[:, 0]] = True
        trained = np.concatenate([[0], np.cumsum(rows.loss)])
        doubtful = ~has_turn & (states != NOT_LOCATED) & (self._starts_anywhere | (trained[ends] > trained[starts]))
        for number in np.flatnonzero(doubtful).tolist():  # something is trained that is no turn of this template
            roles[starts[number] : ends[number]] = Role.UNKNOWN
            marks[starts[number] : ends[number]] = 0
            states[number] = NOT_LOCATED
        return Turns(
            starts, ends, roles, marks, states, found.bos, found.from_start, turns, found.openings, found.beginnings
        )


def _offsets(sizes: list[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
