"""Rows: a stretch understood. Which tokens are targets, which are padding, where documents begin; and what of the
columns does not fit together.

    input_ids      5 6 7 8 9 4 0 0          targets    . . 7 . . 4 . .
    labels         . . 7 . . 4 . .   ->     documents  [5 6 7] [8 9 4]
    position_ids   0 1 2 0 1 2 0 0          padding                    x x
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpipe import _core
from maskpipe.auditing.foreign.raw import Int64, Ragged, Stretch
from maskpipe.auditing.foreign.shapes import ENDS, LENGTHS, SEGMENTS, STARTS, Reading
from maskpipe.auditing.foreign.tally import PLACES, Tally, Where

Bool = npt.NDArray[np.bool_]
IGNORE = -100


@dataclass(frozen=True, eq=False)
class Rows:
    """n tokens of some rows, one after another."""

    where: Where
    ids: npt.NDArray[np.int32]  # [n] -1 for an id that is none
    offsets: Int64  # [rows + 1]
    loss: Bool  # [n] targets; never padding, never the first token of a row
    padding: Bool  # [n]
    document_starts: Bool  # [n] the first token of each document, as the columns say or as there is one per row
    declared: bool
    """Do columns say where documents begin, beyond one per row?"""
    packed: Bool  # [rows] more than one document, as the columns say

    @property
    def documents(self) -> tuple[Int64, Int64]:
        """Where each document begins and ends; padding at the ends of a row belongs to none."""
        starts = np.flatnonzero(self.document_starts)
        bounds = np.append(starts[1:], len(self.ids)) if len(starts) else starts
        return starts, _core.behind_last_marked(~self.padding, starts, bounds)


@dataclass(frozen=True)
class Ids:
    """What the tokenizer's files say about ids."""

    vocab_size: int
    pad: int | None
    """None where no file names a pad token."""
    ends: frozenset[int]
    """Stop tokens and eos."""


def labels_shift(stretch: Stretch) -> int | None:
    """1 where labels[i] is the token after i, 0 where it is the token itself, -1 where it is the one before; None where
    there is nothing to compare."""
    labels, ids = stretch.columns["labels"], stretch.columns["input_ids"]
    if not np.array_equal(labels.offsets, ids.offsets):
        return None
    best = max((0, 1, -1), key=lambda shift: _matches(labels.values, ids.values, shift)[0])
    hits, of = _matches(labels.values, ids.values, best)
    return best if of and hits * 2 > of else (0 if of else None)


def _matches(labels: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], shift: int) -> tuple[int, int]:
    """How many labels are the token `shift` places after theirs, and how many are compared."""
    if shift == 1:
        labels, ids = labels[:-1], ids[1:]
    elif shift == -1:
        labels, ids = labels[1:], ids[:-1]
    used = labels != IGNORE
    return int(np.count_nonzero(labels[used] == ids[used])), int(np.count_nonzero(used))


def understand(stretch: Stretch, reading: Reading, about: Ids, shift: int, tally: Tally) -> Rows | None:
    """The rows, with what does not fit counted in `tally`; rows whose columns differ in length are left out. None when
    no row is left. `shift`: where the labels of this dataset stand, as `labels_shift` says."""
    kept = _fitting(stretch, reading, tally)
    if not len(kept):
        return None
    whole = len(kept) == stretch.rows
    columns = {name: column if whole else column.take(kept) for name, column in stretch.columns.items()}
    ids = columns["input_ids"]
    where = Where(stretch.file, stretch.first, kept, ids.offsets)
    values = _in_vocabulary(ids, about, where, tally)
    loss, explicit = _targets(columns, reading, shift, where, tally)
    padding = _padding(values, columns, reading, about, loss)
    _check_attention(columns, padding, loss & explicit, values, about, where, tally)
    _check_trained_padding(padding, loss, explicit, values, where, tally)
    loss &= ~padding
    _check_left_out(values, columns, reading, padding, about, where, tally)
    starts, declared = _documents(columns, reading, padding, where, tally)
    if not explicit or reading.reader_skips_first:
        loss &= ~starts
    loss[ids.offsets[:-1]] = False  # nothing predicts it, whatever the columns say
    packed = _core.count_marked(starts, ids.offsets[:-1], ids.offsets[1:]) > 1
    _check_plain_mask(columns, packed, padding, where, tally)
    return Rows(where, values, ids.offsets, loss, padding, starts, declared, packed)


def _fitting(stretch: Stretch, reading: Reading, tally: Tally) -> Int64:
    """The rows whose columns have one length."""
    lengths = stretch.columns["input_ids"].lengths
    good = np.ones(stretch.rows, np.bool_)
    where = Where(stretch.file, stretch.first, np.arange(stretch.rows), stretch.columns["input_ids"].offsets)
    for name in reading.columns:
        if name in (*LENGTHS, *ENDS, *STARTS):
            continue
        wrong = stretch.columns[name].lengths != lengths
        good &= ~wrong
        at = np.flatnonzero(wrong)
        text = (
            f"{{count}} rows in which {name} has another length than input_ids; they are left out of all other checks"
        )
        tally.add("MP211", text, len(at), [where.row(int(row)) for row in at[:PLACES]])
    empty = np.flatnonzero(lengths == 0)
    tally.add("MP211", "{count} rows without tokens", len(empty), [where.row(int(row)) for row in empty[:PLACES]])
    return np.flatnonzero(good & (lengths > 0))


def _in_vocabulary(ids: Ragged, about: Ids, where: Where, tally: Tally) -> npt.NDArray[np.int32]:
    values = ids.values
    if values.size == 0 or (values.min() >= 0 and values.max() < about.vocab_size):
        return values.astype(np.int32)
    wrong = (values < 0) | (values >= about.vocab_size)
    count, places = where.runs(wrong)
    tally.add("MP401", f"{{count}} ids outside the vocabulary of {about.vocab_size:,}", count, places)
    return np.where(wrong, -1, values).astype(np.int32)


# -- padding


def _padding(ids: npt.NDArray[np.int32], columns: dict[str, Ragged], reading: Reading, about: Ids, loss: Bool) -> Bool:
    """Tokens at the ends of rows that the attention mask or lengths leave out, else runs of the pad token there, or of
    one that ends texts and has no loss: the first of these ends the text."""
    offsets = columns["input_ids"].offsets
    if "attention_mask" in columns:
        return _at_ends(columns["attention_mask"].values == 0, offsets)
    for name in reading.borders:
        if name in LENGTHS or name in ENDS:
            ends = np.clip(offsets[:-1] + _filled(columns[name], name), offsets[:-1], offsets[1:])
            return _core.mark_ranges(len(ids), ends, offsets[1:])
        if name in SEGMENTS and name != "seq_idx":
            return _at_ends(columns[name].values <= 0, offsets)
    padding = np.zeros(len(ids), np.bool_)
    for id in sorted({*about.ends, *([] if about.pad is None else [about.pad])}):
        run = _at_ends(ids == id if id == about.pad else (ids == id) & ~loss, offsets)
        if not run.any():
            continue
        if id in about.ends:
            before = np.concatenate([[False], ids[:-1] == id])
            before[offsets[:-1]] = True
            run &= before
        padding |= run
    return padding


def _check_left_out(
    ids: npt.NDArray[np.int32], columns: dict[str, Ragged], reading: Reading, padding: Bool, about: Ids, where: Where,
    tally: Tally,
) -> None:  # fmt: skip
    """Lengths leave out padding, and nothing else."""
    name = next((name for name in reading.borders if name in (*LENGTHS, *ENDS)), None)
    if name is None or "attention_mask" in columns:
        return
    at = np.flatnonzero(padding)
    if not len(at):
        return
    at = at[~np.isin(ids[at], [0, *sorted(about.ends), *([] if about.pad is None else [about.pad])])]
    rows = np.unique(np.searchsorted(where.offsets, at, "right") - 1)
    text = f"{{count}} rows in which {name} leaves out tokens that are no padding"
    tally.add("MP202", text, len(rows), [where.row(int(row)) for row in rows[:PLACES]])


def _filled(column: Ragged, name: str) -> Int64:
    """[rows] how many tokens belong to documents."""
    if name in ENDS:
        last = np.maximum(column.offsets[1:] - 1, 0)
        return np.where(column.lengths > 0, column.values[np.minimum(last, len(column.values) - 1)], 0).astype(np.int64)
    totals = np.concatenate([[0], np.cumsum(column.values)])
    filled: Int64 = (totals[column.offsets[1:]] - totals[column.offsets[:-1]]).astype(np.int64)
    return filled


def _at_ends(marked: Bool, offsets: Int64) -> Bool:
    """Only the marked tokens that reach the beginning or the end of their row without a gap."""
    if not marked.any():
        return marked
    return _core.marked_at_ends(marked, offsets)


# -- loss


def _targets(columns: dict[str, Ragged], reading: Reading, shift: int, where: Where, tally: Tally) -> tuple[Bool, bool]:
    """Which tokens are targets, and whether a column says so."""
    ids = columns["input_ids"]
    if not reading.loss:
        return np.ones(len(ids.values), np.bool_), False
    if reading.loss != ("labels",):
        loss = np.ones(len(ids.values), np.bool_)
        for name in reading.loss:
            loss &= columns[name].values > 0
        return (_behind(loss, ids.offsets) if reading.at_predictor else loss), True
    labels = columns["labels"].values
    used = labels != IGNORE
    if shift == 1:
        tally.add("MP209", "labels hold the token after theirs (in {count} rows)", len(where.rows), [where.row(0)])
    elif shift == -1:
        tally.add("MP209", "labels hold the token before theirs (in {count} rows)", len(where.rows), [where.row(0)])
    moved: dict[int, int] = {}  # rows whose labels stand elsewhere than those of the dataset
    wrong = used & ~_same(labels, ids.values, shift)
    at = np.flatnonzero(wrong)
    rows = np.unique(np.searchsorted(ids.offsets, at, "right") - 1).tolist() if len(at) else []
    for number in rows:
        here = slice(int(ids.offsets[number]), int(ids.offsets[number + 1]))
        of = int(np.count_nonzero(used[here]))
        for other in (1, 0, -1):
            same, _ = _matches(labels[here], ids.values[here], other)
            if other != shift and of > 1 and same >= of - 1 and same > of // 2:
                tally.add(
                    "MP209", f"labels of {{count}} rows are moved by {other - shift:+} against the other rows", 1,
                    [where.row(number)],
                )  # fmt: skip
                wrong[here] = False
                moved[number] = other
                break
    if shift == 1:  # the last label of a row has its token in no row
        wrong[ids.offsets[1:] - 1] = False
    count, places = where.runs(wrong)
    tally.add("MP212", "{count} labels that are neither -100 nor the token at their place", count, places)
    if not moved:
        return _moved(used, shift, ids.offsets), True
    shifts = np.full(len(where.rows), shift)
    shifts[list(moved)] = list(moved.values())
    of_token = np.repeat(shifts, ids.lengths)
    loss = np.zeros(len(used), np.bool_)
    for each in (0, 1, -1):
        loss |= _moved(used & (of_token == each), each, ids.offsets)
    return loss, True


def _moved(used: Bool, shift: int, offsets: Int64) -> Bool:
    """Targets, where labels stand at `used`."""
    return used if shift == 0 else _behind(used, offsets) if shift == 1 else _before(used, offsets)


def _same(labels: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], shift: int) -> Bool:
    out = np.zeros(len(labels), np.bool_)
    if shift == 1:
        out[:-1] = labels[:-1] == ids[1:]
    elif shift == -1:
        out[1:] = labels[1:] == ids[:-1]
    else:
        out = labels == ids
    return out


def _behind(marked: Bool, offsets: Int64) -> Bool:
    """The token after each marked one, in the same row."""
    out = np.zeros(len(marked), np.bool_)
    out[1:] = marked[:-1]
    out[offsets[:-1]] = False
    return out


def _before(marked: Bool, offsets: Int64) -> Bool:
    out = np.zeros(len(marked), np.bool_)
    out[:-1] = marked[1:]
    out[offsets[1:] - 1] = False
    return out


def _check_trained_padding(
    padding: Bool, loss: Bool, explicit: bool, ids: npt.NDArray[np.int32], where: Where, tally: Tally
) -> None:
    if explicit:
        count, places = where.runs(padding & loss)
        tally.add("MP206", "{count} tokens of padding have loss", count, places)


def _check_attention(
    columns: dict[str, Ragged], padding: Bool, loss: Bool, ids: npt.NDArray[np.int32], about: Ids, where: Where,
    tally: Tally,
) -> None:  # fmt: skip
    if "attention_mask" not in columns:
        return
    hidden = (columns["attention_mask"].values == 0) & ~padding
    count, places = where.runs(hidden)
    tally.add("MP208", "attention_mask is 0 at {count} tokens inside documents", count, places)
    if about.pad is not None and about.pad not in about.ends:
        shown = _at_ends((ids == about.pad) | padding, where.offsets) & ~padding
        count, places = where.runs(shown)
        tally.add("MP208", "attention_mask is not 0 at {count} pad tokens at the ends of rows", count, places)
        count, places = where.runs(shown & loss)
        tally.add("MP206", "{count} pad tokens at the ends of rows have loss", count, places)


def _check_plain_mask(columns: dict[str, Ragged], packed: Bool, padding: Bool, where: Where, tally: Tally) -> None:
    if "attention_mask" not in columns or (columns["attention_mask"].values > 1).any():
        return
    rows = np.flatnonzero(packed)
    text = "{count} packed rows have an attention_mask that does not tell documents apart"
    tally.add("MP205", text, len(rows), [where.row(int(row)) for row in rows[:PLACES]])


# -- documents


def _documents(
    columns: dict[str, Ragged], reading: Reading, padding: Bool, where: Where, tally: Tally
) -> tuple[Bool, bool]:
    """The first token of each document, by the most explicit column; where another column says otherwise is counted."""
    offsets = columns["input_ids"].offsets
    real = ~padding
    alone = _first_real(real, offsets)
    primary: Bool | None = None
    name_of_primary = ""
    for name in reading.borders:
        starts, wrong = _starts(name, columns[name], offsets, real, alone)
        tally.add(
            "MP202", f"{{count}} rows in which {name} says no documents of this row ({_needs(name)})", len(wrong),
            [where.row(row) for row in wrong[:PLACES]],
        )  # fmt: skip
        if starts is None:
            continue
        if primary is None:
            primary, name_of_primary = starts, name
            continue
        differs = np.flatnonzero(starts != primary)
        if not len(differs):
            continue
        of_row = np.searchsorted(offsets, differs, "right") - 1
        differs = differs[~np.isin(of_row, wrong)]
        rows = np.setdiff1d(of_row, wrong)
        tally.add(
            "MP202", f"{{count}} rows in which {name} and {name_of_primary} do not say the same documents", len(rows),
            [where.place(int(at), int(at) + 1) for at in _first_of_rows(differs, rows, offsets)[:PLACES]],
        )  # fmt: skip
    if primary is None:
        return alone, False
    return primary, True


def _first_of_rows(at: Int64, rows: Int64, offsets: Int64) -> Int64:
    return at[np.searchsorted(at, offsets[rows])]


def _first_real(real: Bool, offsets: Int64) -> Bool:
    """The first token of each row that is no padding."""
    return _core.first_marked(real, offsets)


def _needs(name: str) -> str:
    if name in LENGTHS:
        return "lengths above 0 whose sum is at most the row's length"
    if name in ENDS:
        return "ascending from 0 to at most the row's length"
    if name in STARTS:
        return "ascending from 0, below the row's length"
    if name == "position_ids":
        return "0 begins a document, else each is one more than the one before it"
    return "one number per document, each in one piece"


def _starts(name: str, column: Ragged, offsets: Int64, real: Bool, alone: Bool) -> tuple[Bool | None, list[int]]:
    """Starts of documents as a column says, and the rows in which it says nothing that could be. None where the column
    tells no documents apart."""
    if name in (*LENGTHS, *ENDS, *STARTS):
        at, wrong = _bounds(name, column, offsets)
        starts = np.zeros(len(real), np.bool_)
        starts[at] = True
        starts &= real
        if wrong:
            starts |= alone & _core.mark_ranges(len(real), offsets[:-1][wrong], offsets[1:][wrong])
        return starts, wrong
    values = np.ascontiguousarray(column.values.astype(np.int64, copy=False))
    if name == "attention_mask" and not (values > 1).any():
        return None, []
    read = _core.starts_of_positions if name == "position_ids" else _core.starts_of_numbers
    found = read(values, real, alone, offsets)
    return found.starts, found.wrong.tolist()


def _bounds(name: str, column: Ragged, offsets: Int64) -> tuple[Int64, list[int]]:
    """Where documents begin as lengths, ends or starts per row say, and the rows in which they say nothing that could
    be."""
    values, counts, size = column.values.astype(np.int64), column.lengths, np.diff(offsets)
    begin, end = column.offsets[:-1], column.offsets[1:]
    zero = np.zeros(1, np.int64)
    first, last = (np.append(values, zero)[at] for at in (begin, np.maximum(end - 1, 0)))
    sums = np.append(zero, np.cumsum(values))
    rises = np.append(values[1:] > values[:-1], True)
    if name in LENGTHS:
        total = sums[end] - sums[begin]
        good = (counts > 0) & (_core.count_marked(values <= 0, begin, end) == 0) & (total <= size)
        at = sums[:-1] - np.repeat(sums[begin], counts)
    else:
        falls = ~rises[: len(values)]
        good = (counts > 0) & (first == 0) & (_core.count_marked(falls, begin, np.maximum(end - 1, begin)) == 0)
        good &= (counts > 1) & (last <= size) if name in ENDS else last < size
        at = values
    kept = np.repeat(good, counts)
    if name in ENDS:
        kept[end[counts > 0] - 1] = False
    return (at + np.repeat(offsets[:-1], counts))[kept], np.flatnonzero(~good).tolist()
