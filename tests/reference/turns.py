"""Where turns stand in ids, one token at a time: the slow twin of csrc/turns.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

START, END, ANY, UNKNOWN, ASSISTANT, TEMPLATE = 252, 253, 254, 255, 3, 8
SAMPLED, STOP, HEADER, AFTER, OPEN, STRAY, EMPTY, JOINT = (1 << bit for bit in range(8))
NOT_LOCATED, WHOLE, CUT, TAIL_MISSING, MORE = range(5)


@dataclass(frozen=True)
class Joint:
    """As in maskpipe.auditing.foreign.habits."""

    before: int
    after: int
    ids: Sequence[int]
    roles: Sequence[int]
    marks: Sequence[int]
    needed: int


@dataclass
class Found:
    """What is known of the tokens of one document."""

    roles: list[int]
    marks: list[int]
    state: int = NOT_LOCATED
    bos: int = 0
    from_start: int = 0
    turns: list[tuple[int, int, int]] = field(default_factory=list)
    openings: list[int] = field(default_factory=list)
    beginnings: list[int] = field(default_factory=list)


def locate(
    ids: Sequence[int],
    joints: Sequence[Joint],
    control: Sequence[int],
    allowed: Sequence[int],
    bos: int,
    empty: Sequence[Sequence[int]],
) -> Found:
    """The turns of one document."""
    out = Found([UNKNOWN] * len(ids), [0] * len(ids))
    size = len(ids)

    def is_control(at: int) -> int:
        return control[ids[at]] if 0 <= ids[at] < len(control) else 0

    def common(joint: Joint, at: int) -> int:
        return next(
            (k for k, id in enumerate(joint.ids) if at + k >= size or ids[at + k] != id),
            len(joint.ids),
        )

    def longest(role: int, at: int) -> tuple[Joint, int] | None:
        fitting = [
            (joint, common(joint, at))
            for joint in joints
            if joint.before == role
            and common(joint, at) >= joint.needed
            and (joint.after != END or at + common(joint, at) == size)
        ]
        return max(fitting, key=lambda fit: fit[1]) if fitting else None  # the first of equals

    def bos_from(at: int) -> int:
        while bos >= 0 and at < size and ids[at] == bos:
            at += 1
        return at

    def put(at: int, role: int, mark: int) -> None:
        out.roles[at], out.marks[at] = role, mark

    turn: int | None = None
    stop: int | None = None

    def write(joint: Joint, length: int, at: int) -> None:
        nonlocal stop
        for k in range(length):
            put(at + k, joint.roles[k], joint.marks[k] | JOINT)
            if joint.marks[k] & STOP:
                stop = at + k

    def close(at: int) -> None:
        nonlocal turn, stop
        if turn is not None:
            out.turns.append((turn, at if stop is None else stop + 1, -1 if stop is None else stop))
        turn = stop = None

    def content(at: int, mark: int) -> None:
        put(at, role, mark | (SAMPLED if role == ASSISTANT and not mark & OPEN else 0))

    def take(joint: Joint, length: int, at: int) -> int:
        nonlocal role, turn
        write(joint, length, at)
        close(at)
        role = joint.after
        behind = after = at + length
        if role == ASSISTANT:
            turn = after
            for block in empty:
                if block and list(ids[after : after + len(block)]) == list(block):
                    for k in range(len(block)):
                        put(after + k, ASSISTANT, SAMPLED | EMPTY)
                    after += len(block)
                    break
        if length < len(joint.ids) and after < size and after == behind:
            content(after, 0)
            out.marks[after] |= OPEN
            after += 1
        return after

    at = out.bos = bos_from(0)
    role = UNKNOWN
    begin = longest(START, at)
    out.from_start = int(begin is not None)
    while begin is None and at < size:
        begin = longest(ANY, at) if is_control(at) else None
        at += begin is None
    if begin is None:
        return out
    for k in range(out.bos):
        put(k, TEMPLATE, JOINT)
    at = take(*begin, at)
    ended = False
    out.state = CUT
    while at < size:
        if not is_control(at):
            content(at, OPEN if ended else 0)
            at += 1
            continue
        own = [joint for joint in joints if joint.before == role]
        found = longest(role, at)
        if found is None:
            for joint in own:
                k = common(joint, at)
                rest = range(at + k, size)
                if joint.after == END and k >= joint.needed and rest and all(is_control(i) == 2 for i in rest):
                    found = (joint, k)
                    break
        if found is None:
            cut = [joint for joint in own if joint.after != END and common(joint, at) == size - at]
            if cut:
                write(cut[0], size - at, at)
                close(at)
                return out
        if found is not None and found[0].after == END:
            joint, k = found
            write(joint, k, at)
            close(at)
            for i in range(at + k, size):
                put(i, TEMPLATE, STRAY)
            out.state = MORE if at + k < size else TAIL_MISSING if k < len(joint.ids) else WHOLE
            return out
        if found is not None:
            at, ended = take(*found, at), False
            continue
        beginning = _beginning(ids, at, own, joints, bos, common, longest, bos_from)
        if beginning is not None:
            end, k, start = beginning
            if end is not None:
                write(end, k, at)
            close(at + k)
            out.beginnings.append(at + k)
            after_bos = bos_from(at + k)
            for i in range(at + k, after_bos):
                put(i, TEMPLATE, JOINT)
            at, ended = take(*start, after_bos), False
            continue
        found = longest(ANY, at)
        if found is not None:
            out.openings.append(at)
            close(at)
            at, ended = take(*found, at), False
            continue
        fine = role <= TEMPLATE and allowed[ids[at]] >> role & 1
        content(at, 0 if fine else STRAY)
        ended = ended or (not fine and role == ASSISTANT and is_control(at) == 2)
        at += 1
    close(size)
    return out


def _beginning(ids, at, own, joints, bos, common, longest, bos_from):  # type: ignore[no-untyped-def]
    """(joint of the end or None, its length there, (joint of the beginning, its length)) at a place, or None."""
    ends = [(joint, common(joint, at)) for joint in own if joint.after == END]
    ends = [(joint, k) for joint, k in ends if k >= joint.needed and at + k < len(ids)]
    if bos < 0:
        for joint, k in ends:
            start = longest(START, at + k)
            if k < len(joint.ids) and start is not None and start[1]:
                return joint, k, start
        return None
    end, k = next(((joint, k) for joint, k in ends if ids[at + k] == bos), (None, 0))
    if ids[at + k] != bos:
        return None
    start = longest(START, bos_from(at + k))
    return None if start is None else (end, k, start)
