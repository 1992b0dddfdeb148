"""What is wrong with rows that another tool made: of their borders and, where turns were located, of their loss.

A trained turn  [header] [content …] [stop] [behind]      loss on content and stop, on nothing else
Checker.add() takes rows as they come; Checker.finish() says what only all rows together say.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.auditing.foreign.habits import AFTER, EMPTY, HEADER, JOINT, OPEN, SAMPLED, STOP, STRAY
from maskpipe.auditing.foreign.locate import CUT, MORE, NOT_LOCATED, TAIL_MISSING, WHOLE, Locator, Turns, table_of
from maskpipe.auditing.foreign.rows import Bool, Ids, Rows
from maskpipe.auditing.foreign.tally import PLACES, Tally
from maskpipe.findings import Place
from maskpipe.roles import Role
from maskpipe.tokenizer import Tokenizer

Int64 = npt.NDArray[np.int64]
FULL = 3
"""So many documents as long as the longest say that something cut them there."""


@dataclass
class _Ends:
    """Documents that end in one way: how many of which length, and the first of each."""

    lengths: Counter[int] = field(default_factory=Counter)
    places: dict[int, list[Place]] = field(default_factory=dict)

    def add(self, length: int, place: Place) -> None:
        self.lengths[length] += 1
        kept = self.places.setdefault(length, [])
        if len(kept) < PLACES:
            kept.append(place)


@dataclass
class Checker:
    """Findings and numbers of one dataset, or of some batches."""

    tokenizer: Tokenizer
    about: Ids
    locator: Locator
    tally: Tally = field(default_factory=Tally)
    numbers: Counter[str] = field(default_factory=Counter)
    role_tokens: Counter[int] = field(default_factory=Counter)
    role_loss: Counter[int] = field(default_factory=Counter)
    longest_row: int = 0
    _longest: int = 0
    """Tokens of the longest document."""
    _stopped: _Ends = field(default_factory=_Ends)
    """Documents that end with a stop token and nothing behind it."""
    _misplaced: _Ends = field(default_factory=_Ends)
    """Documents that end with a token that ends texts where the template writes none."""
    _open: _Ends = field(default_factory=_Ends)
    """Documents that end inside a trained turn."""
    _tailless: Counter[int] = field(default_factory=Counter)
    """Documents by length that end with a stop token where the template writes white space behind it."""
    _tails: int = 0
    """Documents that end with white space behind the stop token."""
    _by_value: list[int] = field(default_factory=lambda: [0, 0])
    """Stop tokens of trained turns that are the pad token: without loss, with."""

    def __post_init__(self) -> None:
        self._final, self._control = table_of(self._finals()), table_of(self._control_ids())

    def add(self, rows: Rows) -> Turns:
        """Checks these rows; their turns."""
        turns = self.locator.locate(rows)
        self._count(rows, turns)
        self._check_nothing_trained(rows, turns)
        self._check_borders(rows, turns)
        self._check_bos(rows, turns)
        if self.locator.knows_turns:
            self._check_control(rows, turns)
            self._check_loss(rows, turns)
            self._note_ends(rows, turns)
        return turns

    # -- numbers

    def _count(self, rows: Rows, turns: Turns) -> None:
        real = ~rows.padding
        numbers = self.numbers
        numbers["rows"] += len(rows.offsets) - 1
        numbers["tokens"] += int(np.count_nonzero(real))
        numbers["padding"] += int(np.count_nonzero(rows.padding))
        numbers["loss"] += int(np.count_nonzero(rows.loss))
        numbers["documents"] += len(turns.starts)
        numbers["located"] += int(np.count_nonzero(turns.states != NOT_LOCATED))
        numbers["turns"] += len(turns.turns)
        self.longest_row = max(self.longest_row, int(np.diff(rows.offsets).max()))
        self.role_tokens.update(_histogram(turns.roles, real))
        self.role_loss.update(_histogram(turns.roles, rows.loss))

    # -- any rows

    def _check_nothing_trained(self, rows: Rows, turns: Turns) -> None:
        per_row = _core.count_marked(rows.loss, rows.offsets[:-1], rows.offsets[1:])
        empty = np.flatnonzero(per_row == 0)
        self.numbers["rows_without_loss"] += len(empty)
        text = "{count} rows without a token that has loss"
        self.tally.add("MP304", text, len(empty), [rows.where.row(int(row)) for row in empty[:PLACES]])
        per_document = _core.count_marked(rows.loss, turns.starts, turns.ends)
        of_row = np.searchsorted(rows.offsets, turns.starts, "right") - 1
        without = np.flatnonzero((per_document == 0) & (per_row[of_row] > 0) & (turns.ends - turns.starts > 1))
        self.tally.add(
            "MP304", "{count} documents of packed rows without a token that has loss", len(without),
            [rows.where.place(int(turns.starts[d]), int(turns.ends[d])) for d in without[:PLACES]],
        )  # fmt: skip

    def _check_borders(self, rows: Rows, turns: Turns) -> None:
        count, places = rows.where.runs(rows.loss & rows.document_starts)
        self.tally.add("MP204", "{count} documents whose first token has loss", count, places)
        at = turns.beginnings
        self.tally.add(
            "MP203", "{count} conversations begin inside what the columns say is one document", len(at),
            [rows.where.place(int(start), int(start) + 1) for start in at[:PLACES]],
        )  # fmt: skip
        trained = at[rows.loss[at]]
        self.tally.add(
            "MP204", "{count} conversations inside a row whose first token has loss", len(trained),
            [rows.where.place(int(start), int(start) + 1) for start in trained[:PLACES]],
        )  # fmt: skip

    def _check_bos(self, rows: Rows, turns: Turns) -> None:
        if self.locator.bos < 0 or not len(turns.bos):
            if self.tokenizer.bos_token and self.locator.knows_turns:
                self._check_unwanted_bos(rows, turns)
            return
        bos = repr(self.tokenizer.bos_token)
        if self.locator.knows_turns:
            sure = turns.from_start > 0
            wanted = self.locator.habits.bos_counts
            missing = np.flatnonzero(sure & (turns.bos < min(wanted)))
            self._at_documents("MP402", f"{{count}} documents do not begin with {bos}", missing, rows, turns)
            more = np.flatnonzero(sure & (turns.bos > max(wanted)))
        else:
            more = np.flatnonzero(turns.bos > 1)
        self._at_documents("MP403", f"{{count}} documents begin with {bos} more than once", more, rows, turns)

    def _check_unwanted_bos(self, rows: Rows, turns: Turns) -> None:
        id = self.tokenizer.added_tokens.get(self.tokenizer.bos_token, -1)
        structure = any(id in joint.ids for joint in self.locator.habits.joints)
        if id >= 0 and not structure and id not in self.about.ends and id != self.about.pad and len(turns.starts):
            begins = np.flatnonzero(rows.ids[np.minimum(turns.starts, len(rows.ids) - 1)] == id)
            text = f"{{count}} documents begin with {self.tokenizer.bos_token!r}, which the template does not write"
            self._at_documents("MP403", text, begins, rows, turns)

    def _at_documents(self, code: str, text: str, which: Int64, rows: Rows, turns: Turns) -> None:
        places = [rows.where.place(int(turns.starts[d]), int(turns.starts[d]) + 1) for d in which[:PLACES]]
        self.tally.add(code, text, len(which), places)

    # -- tokens of conversations

    def _check_control(self, rows: Rows, turns: Turns) -> None:
        stray = turns.marks & STRAY > 0
        if stray.any():
            stray = self._check_stray(rows, turns, stray)
        at = turns.openings[~self._explained(turns, stray)]
        self.tally.add(
            "MP404", "{count} turns begin inside another one, without what ends it", len(at),
            [rows.where.place(int(start), int(start) + 1) for start in at[:PLACES]],
        )  # fmt: skip
        self._check_forged(rows, turns)

    def _check_stray(self, rows: Rows, turns: Turns, stray: Bool) -> Bool:
        """Control tokens where the template writes none; those that are left when padding is taken away."""
        final = _core.listed(rows.ids, self._final) & stray
        last = np.zeros(len(stray), np.bool_)
        last[turns.ends[turns.ends > turns.starts] - 1] = True
        behind = np.zeros(len(stray), np.bool_)
        more = np.flatnonzero(turns.states == MORE)
        joint = turns.marks & JOINT > 0
        for number in more.tolist():
            part = slice(turns.starts[number], turns.ends[number])
            behind[part] = ~np.logical_or.accumulate(joint[part][::-1])[::-1] & stray[part]
        assistant = turns.roles == Role.ASSISTANT
        after_stop = np.zeros(len(stray), np.bool_)
        after_stop[1:] = final[1:] & ((final[:-1]) | (turns.marks[:-1] & STOP > 0))
        before_stop = np.zeros(len(stray), np.bool_)
        before_stop[:-1] = final[:-1] & assistant[:-1] & (turns.marks[1:] & STOP > 0)
        into_padding = np.append(rows.padding[1:], False) & ~rows.loss
        behind &= ~into_padding  # padding with the stop token begins one earlier than rows.py can tell
        stray &= ~(into_padding & final)
        doubled = behind | (final & (after_stop | before_stop))
        count, places = rows.where.runs(doubled)
        self.tally.add("MP405", "{count} tokens that end texts stand beside a stop token", count, places)
        cut = final & ~doubled & last
        count, places = rows.where.runs(cut & assistant)
        text = (
            "{count} documents end inside an assistant turn with a token that ends texts and that is not its stop token"
        )
        self.tally.add("MP315", text, count, places)
        instead = final & ~doubled & ~last & assistant & self._before_turn(turns)
        count, places = rows.where.runs(instead)
        self.tally.add("MP316", "{count} turns end with a token that is not the template's stop token", count, places)
        injected = stray & ~doubled & ~(cut & assistant) & ~instead
        count, places = rows.where.runs(injected)
        self.tally.add("MP404", "{count} control tokens stand where the template writes none", count, places)
        return stray

    def _finals(self) -> list[int]:
        ids = set(self.about.ends) | set(self.locator.habits.stops)
        return sorted(ids | {id for id in (self.about.pad, self.tokenizer.added_tokens.get(self.tokenizer.bos_token))
                             if id is not None})  # fmt: skip

    def _before_turn(self, turns: Turns) -> Bool:
        """Tokens behind which nothing but unclaimed white space stands before the next joint."""
        out = np.zeros(len(turns.marks), np.bool_)
        for opening in turns.openings.tolist():
            at = opening - 1
            while at >= 0 and turns.marks[at] & OPEN:
                at -= 1
            if at >= 0:
                out[at] = True
        return out

    def _explained(self, turns: Turns, stray: Bool) -> Bool:
        """Turns that begin right behind a token that is a finding already, or behind content that the template ends
        with nothing."""
        return np.array(
            [
                bool(stray[max(0, at - 3) : at].any())
                or not self.locator.ends_with_a_mark(int(turns.roles[at - 1]) if at else -1)
                for at in turns.openings.tolist()
            ],
            np.bool_,
        )

    def _check_forged(self, rows: Rows, turns: Turns) -> None:
        """An assistant turn without loss, at once followed by another, where all other turns of the document are
        trained: text of a user that a tool took for a turn, but its mask did not."""
        table = turns.turns
        if len(table) < 2:
            return
        trained = _trained(rows.loss, table)
        user = turns.roles == Role.USER
        same = table[1:, 0] == table[:-1, 0]
        no_user = _sum(user & (turns.marks & JOINT == 0), table[:-1, 2], table[1:, 1]) == 0
        candidates = np.flatnonzero(same & no_user & (trained[:-1] == 0) & (trained[1:] > 0))
        if not len(candidates):
            return
        control = _core.listed(rows.ids, self._control)
        plain = _sum(control, table[:, 1], np.maximum(table[:, 2] - 1, table[:, 1])) == 0
        for number in candidates[plain[candidates]].tolist():
            of_document = table[:, 0] == table[number, 0]
            if np.count_nonzero(trained[of_document] == 0) == 1 and not self._between(turns, table, number):
                place = rows.where.place(int(table[number, 1]), int(table[number, 2]))
                text = "{count} assistant turns have no loss and another one follows them: they may come from content"
                self.tally.add("MP404", text, 1, [place])

    def _between(self, turns: Turns, table: Int64, number: int) -> bool:
        """Is there content of others (a tool's answer) between a turn and the next one?"""
        part = slice(table[number, 2], table[number + 1, 1])
        return bool(((turns.marks[part] & JOINT == 0) & (turns.roles[part] != Role.ASSISTANT)).any())

    # -- loss of conversations

    def _check_loss(self, rows: Rows, turns: Turns) -> None:
        loss = rows.loss
        marks, roles = turns.marks, turns.roles
        known = (roles != Role.UNKNOWN) & ~rows.padding
        first = np.zeros(len(loss), np.bool_)
        first[turns.starts] = True
        everything = self._check_everything(rows, turns, known, first)
        if everything.any():
            loss = loss & ~everything
        table = turns.turns
        trained = _trained(loss, table)
        shifted = self._check_shift(rows, turns, loss, trained)
        if shifted.any():
            loss = loss & ~shifted
            keep = ~shifted[np.minimum(table[:, 1], len(loss) - 1)]
            table, trained = table[keep], trained[keep]
        claimed = loss & known & (marks & (SAMPLED | OPEN | STRAY) == 0) & ~first
        if claimed.any():
            self._runs("MP302", "{count} tokens of assistant headers have loss", claimed & (marks & HEADER > 0), rows)
            self._runs("MP312", "{count} tokens behind stop tokens have loss", claimed & (marks & AFTER > 0), rows)
            prompts = claimed & (marks & (HEADER | AFTER) == 0) & (roles != Role.ASSISTANT)
            self._runs("MP301", "{count} tokens of prompts have loss", prompts, rows)
        self._runs("MP309", "{count} tokens of empty reasoning blocks have loss", loss & (marks & EMPTY > 0), rows)
        self._check_stops(rows, turns, loss, table, trained)
        self._check_answers(rows, turns, loss, table, trained)

    def _runs(self, code: str, text: str, wrong: Bool, rows: Rows) -> None:
        count, places = rows.where.runs(wrong)
        self.tally.add(code, text, count, places)

    def _check_everything(self, rows: Rows, turns: Turns, known: Bool, first: Bool) -> Bool:
        """The tokens of documents in which everything has loss though not everything is the assistant's."""
        out = np.zeros(len(known), np.bool_)
        untrained = _sum(~rows.loss & ~first, turns.starts, turns.ends)
        others = _sum(known & (turns.marks & (SAMPLED | OPEN) == 0), turns.starts, turns.ends)
        full = (untrained == 0) & (turns.ends - turns.starts > 1)
        wrong = np.flatnonzero(full & (others > 1) & (turns.states != NOT_LOCATED))
        for number in wrong.tolist():
            out[turns.starts[number] : turns.ends[number]] = True
        places = [rows.where.place(int(turns.starts[d]), int(turns.ends[d])) for d in wrong[:PLACES]]
        self.tally.add("MP305", "{count} conversations in which every token has loss", len(wrong), places)
        return out

    def _check_shift(self, rows: Rows, turns: Turns, loss: Bool, trained: Int64) -> Bool:
        """The tokens of rows in which the mask of every trained turn is moved by a token the same way."""
        out = np.zeros(len(loss), np.bool_)
        table = turns.turns
        if not len(table):
            return out
        padded = np.concatenate([loss, [False]])
        document_start, document_end = turns.starts[table[:, 0]], turns.ends[table[:, 0]]
        empty = _sum(turns.marks & EMPTY > 0, table[:, 1], table[:, 2])  # at its head, and not trained
        start, end = table[:, 1] + empty, table[:, 2]
        has_before = start - 1 > document_start
        before = padded[start - 1] & has_before
        has_behind = end < document_end
        behind = padded[end] & has_behind
        size = end - start
        first, last = padded[np.minimum(start, len(loss))] & (size > 0), padded[np.maximum(end - 1, 0)] & (size > 0)
        inner = _sum(loss, start, end)
        touched = (trained > 0) | before | behind
        complete = table[:, 3] >= 0
        earlier = before & ~last & (inner == size - 1) & complete & (size > 0)
        later = ~first & behind & (inner == size - 1) & complete & (size > 0)
        maybe_later = ~first & ~has_behind & (inner == size - 1) & complete & (size > 1)
        row = np.searchsorted(rows.offsets, document_start, "right") - 1
        for direction, sure, also in (("before", earlier, earlier), ("behind", later, later | maybe_later)):
            good = _per_row(sure, row, rows) > 0
            bad = _per_row(touched & ~also, row, rows) > 0
            wrong = np.flatnonzero(good & ~bad)
            for number in wrong.tolist():
                out[rows.offsets[number] : rows.offsets[number + 1]] = True
            text = f"{{count}} rows in which the mask of every turn is one token {direction} its place"
            self.tally.add("MP210", text, len(wrong), [rows.where.row(int(number)) for number in wrong[:PLACES]])
        return out

    def _check_stops(self, rows: Rows, turns: Turns, loss: Bool, table: Int64, trained: Int64) -> None:
        stops = table[:, 3]
        has = (stops >= 0) & (trained > 0)
        with_loss = loss[np.maximum(stops, 0)]
        self.numbers["trained_turns"] += int(np.count_nonzero(trained > 0))
        self.numbers["stops_trained"] += int(np.count_nonzero(has & with_loss))
        content = stops - table[:, 1]
        before = loss[np.maximum(stops - 1, 0)] | (content <= 0) | (turns.marks[np.maximum(stops - 1, 0)] & OPEN > 0)
        wrong = np.flatnonzero(has & ~with_loss & before)  # else the end of the turn is not trained at all
        if self.about.pad is not None:
            is_pad = has & (rows.ids[np.maximum(stops, 0)] == self.about.pad)
            self._by_value[0] += int(np.count_nonzero(is_pad & ~with_loss))
            self._by_value[1] += int(np.count_nonzero(is_pad & with_loss))
        places = [rows.where.place(int(stops[t]), int(stops[t]) + 1) for t in wrong[:PLACES]]
        self.tally.add("MP303", "{count} trained turns whose stop token has no loss", len(wrong), places)

    def _check_answers(self, rows: Rows, turns: Turns, loss: Bool, table: Int64, trained: Int64) -> None:
        """Turns of which some content is trained and some is not. What a tool leaves out on purpose (reasoning, calls)
        stands between control tokens; nothing is said of such turns beyond their first and last words."""
        marks = turns.marks
        content = (marks & SAMPLED > 0) & (marks & (STOP | EMPTY | OPEN | STRAY) == 0)
        end = np.where(table[:, 3] >= 0, table[:, 3], table[:, 2])
        size, have = _sum(content, table[:, 1], end), _sum(content & loss, table[:, 1], end)
        missing = size - have
        wrong = np.flatnonzero((have > 0) & (missing > 0))
        if len(wrong):
            marked = _sum(_core.listed(rows.ids, self._control) & content, table[:, 1], end)
            wrong = wrong[(marked[wrong] == 0) | (missing[wrong] <= 2)]
        untrained = content & ~loss
        sure = [t for t in wrong.tolist() if missing[t] > 2 or self._misses_words(rows, untrained, table[t])]
        wrong = np.array(sure, np.int64)
        self.tally.add(
            "MP311", "{count} trained turns of which some tokens have no loss", len(wrong),
            [rows.where.place(int(table[t, 1]), int(end[t])) for t in wrong[:PLACES]],
        )  # fmt: skip
        only_stop = np.flatnonzero((have == 0) & (size > 0) & (trained > 0) & (table[:, 3] >= 0))
        self.tally.add(
            "MP311", "{count} turns of which the stop token alone has loss", len(only_stop),
            [rows.where.place(int(table[t, 1]), int(end[t])) for t in only_stop[:PLACES]],
        )  # fmt: skip

    def _misses_words(self, rows: Rows, missing: Bool, turn: Int64) -> bool:
        """Is one of the missing tokens neither control token nor white space?"""
        part = slice(int(turn[1]), int(turn[2]))
        ids = rows.ids[part][missing[part]].tolist()
        control = set(self._control_ids())
        return any(id not in control and self.tokenizer.token_bytes(id).strip() for id in ids if id >= 0)

    def _control_ids(self) -> list[int]:
        return sorted(self.tokenizer.added_tokens[text] for text in self.tokenizer.control)

    # -- what all rows together say

    def _note_ends(self, rows: Rows, turns: Turns) -> None:
        lengths = turns.ends - turns.starts
        if len(lengths):
            self._longest = max(self._longest, int(lengths.max()))
        last_is_stop = _core.listed(rows.ids[turns.ends - 1], self._final) & (lengths > 0)
        self._tails += int(np.count_nonzero((turns.states == WHOLE) & ~last_is_stop))
        misplaced = last_is_stop & (turns.marks[turns.ends - 1] & STRAY > 0)
        longest = lengths == self._longest  # of shorter ones nothing will be said: the longest only grows
        for number in np.flatnonzero(misplaced & longest).tolist():
            at = int(turns.ends[number])
            self._misplaced.add(int(lengths[number]), rows.where.place(at - 1, at))
        self._tailless.update(lengths[last_is_stop & (turns.states == TAIL_MISSING)].tolist())
        whole = (turns.states == WHOLE) | (turns.states == TAIL_MISSING)
        for number in np.flatnonzero(last_is_stop & whole & longest).tolist():
            at = int(turns.ends[number])
            self._stopped.add(int(lengths[number]), rows.where.place(at - 1, at))
        table = turns.turns
        open_turns = (table[:, 3] < 0) & (table[:, 2] == turns.ends[table[:, 0]]) & (_trained(rows.loss, table) > 0)
        for turn in np.flatnonzero(open_turns & (turns.states[table[:, 0]] == CUT)).tolist():
            document = int(table[turn, 0])
            at = int(turns.ends[document])
            self._open.add(int(lengths[document]), rows.where.place(at - 1, at))

    def finish(self) -> None:
        """What only all rows together say."""
        longest, stopped = self._longest, self._stopped.lengths[self._longest]
        elsewhere = sum(self._tailless.values()) - self._tailless[longest]
        if self._misplaced.lengths[longest]:
            text = "{count} documents are as long as the longest and end with a stop token where none belongs"
            self.tally.add("MP315", text, self._misplaced.lengths[longest], self._misplaced.places[longest])
        if self._tails and self._tailless[longest] > 1 and not elsewhere:
            text = "{count} documents are as long as the longest and end with a stop token, without the text behind it"
            self.tally.add("MP315", text, stopped, self._stopped.places[longest])
        elif stopped >= FULL and stopped * 100 >= self.numbers["documents"]:
            text = "{count} documents are as long as the longest, and each of them ends with a stop token"
            self.tally.add("MP315", text, stopped, self._stopped.places[longest])
        for length in sorted(self._open.lengths):
            if length < longest and self.locator.habits.always_stops:
                text = "{count} trained turns end without a stop token, in documents that are not the longest"
                self.tally.add("MP303", text, self._open.lengths[length], self._open.places[length])
            else:
                self.numbers["cut_turns"] += self._open.lengths[length]
        if self._by_value[0] and not self._by_value[1]:
            text = (
                "the stop token is the pad token, and none of its {count} places behind trained turns has loss: "
                "a mask by value"
            )
            self.tally.add("MP303", text, self._by_value[0], [])

    def coverage(self) -> dict[str, Any]:
        """What the rows hold, under the keys that datasets of maskpipe have too, where they have it."""
        n = self.numbers
        rows, tokens, loss = n["rows"], n["tokens"], n["loss"]
        roles = {
            Role(role).name.lower(): {"tokens": count, "loss": self.role_loss[role]}
            for role, count in sorted(self.role_tokens.items())
        }
        return {
            "sequences": rows,
            "sequence_length": self.longest_row,
            "documents": n["documents"],
            "documents_per_sequence": n["documents"] / rows if rows else 0.0,
            "tokens": tokens,
            "padding": n["padding"],
            "fill": tokens / (tokens + n["padding"]) if tokens else 0.0,
            "loss_tokens": loss,
            "loss_share": loss / tokens if tokens else 0.0,
            "signals_per_sequence": loss / rows if rows else 0.0,
            "roles": roles,
            "located_documents": n["located"],
            "turns": {key: n[key] for key in ("turns", "trained_turns", "stops_trained", "cut_turns")},
        }


def _histogram(roles: npt.NDArray[np.uint8], marked: Bool) -> dict[int, int]:
    counts = _core.count_values(roles, marked)
    return {int(role): int(counts[role]) for role in np.flatnonzero(counts)}


def _sum(marked: Bool, starts: Int64, ends: Int64) -> Int64:
    return _core.count_marked(marked, np.ascontiguousarray(starts), np.ascontiguousarray(np.maximum(ends, starts)))


def _trained(loss: Bool, table: Int64) -> Int64:
    """[turns] how many tokens of each have loss."""
    return _sum(loss, table[:, 1], table[:, 2])


def _per_row(marked: Bool, row: Int64, rows: Rows) -> Int64:
    counts: Int64 = np.bincount(row[marked], minlength=len(rows.offsets) - 1)
    return counts
