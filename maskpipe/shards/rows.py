"""Rows: a few packed sequences as flat numpy arrays, between the layout and the record batches that files keep.

    lay_out ─▶ Rows ─to_batch─▶ pa.RecordBatch ─file─▶ pa.RecordBatch ─from_batch─▶ Rows ─▶ Sequence, counts, digests

Ragged parts are a packed structured array and int64 offsets: the runs of row r are `runs[run_offsets[r]:run_offsets[r
+ 1]]`. The invariants of `check` hold for everything that is written, and are checked on everything that is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from maskpipe import _core
from maskpipe.roles import Flag, Part, Role, Verdict, verdict_name
from maskpipe.shards.format import (
    DOCUMENT,
    DOCUMENT_DTYPE,
    NULLS,
    RUN,
    RUN_DTYPE,
    VERDICT,
    VERDICT_DTYPE,
    WEIGHT,
    WEIGHT_DTYPE,
    Branch,
    sequence_schema,
)
from maskpipe.shards.manifest import Counts

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Structs = npt.NDArray[np.void]


@dataclass(frozen=True, eq=False)
class Rows:
    """`n` rows of `sequence_length` tokens. Offsets are int64 and start with 0."""

    input_ids: Int32  # [n, sequence_length]
    runs: Structs  # RUN_DTYPE; ends count from the row's first token
    run_offsets: Int64  # [n + 1]
    documents: Structs  # DOCUMENT_DTYPE; ends count from the row's first token
    document_offsets: Int64  # [n + 1]
    verdicts: Structs  # VERDICT_DTYPE
    verdict_offsets: Int64  # [documents + 1]
    weights: Structs  # WEIGHT_DTYPE; positions count from the row's first token
    weight_offsets: Int64  # [n + 1]
    n_loss: Int32  # [n]

    def __len__(self) -> int:
        return len(self.n_loss)


def to_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    """The rows as one record batch of `schema` (sequence_schema of their length)."""
    length = rows.input_ids.shape[1]
    arrays = [
        pa.FixedSizeListArray.from_arrays(
            plain_array(rows.input_ids.reshape(-1)), type=sequence_schema(length).field("input_ids").type
        ),
        list_array(rows.run_offsets, struct_array(rows.runs, RUN)),
        list_array(rows.document_offsets, _documents_array(rows)),
        list_array(rows.weight_offsets, struct_array(rows.weights, WEIGHT)),
        plain_array(rows.n_loss),
        plain_array(_hashes(rows.input_ids)),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def from_batch(batch: pa.RecordBatch) -> Rows:
    """The rows of a record batch that `validate(full=True)` and `find_null` have passed. ValueError when an ids_xxh3 is
    not that of its row's ids."""
    lists = batch.column("input_ids")
    ids = numbers(lists.flatten()).reshape(len(lists), lists.type.list_size)
    wrong = _hashes(ids) != numbers(batch.column("ids_xxh3"))
    if wrong.any():
        raise ValueError(f"row {int(np.argmax(wrong))}: ids_xxh3 is not that of its ids")
    run_offsets, runs = flat_list(batch.column("runs"))
    document_offsets, documents = flat_list(batch.column("documents"))
    verdict_offsets, verdicts = flat_list(documents.field("verdicts"))
    weight_offsets, weights = flat_list(batch.column("weights"))
    return Rows(
        input_ids=ids,
        runs=structs(runs, RUN_DTYPE),
        run_offsets=run_offsets,
        documents=structs(documents, DOCUMENT_DTYPE),
        document_offsets=document_offsets,
        verdicts=structs(verdicts, VERDICT_DTYPE),
        verdict_offsets=verdict_offsets,
        weights=structs(weights, WEIGHT_DTYPE),
        weight_offsets=weight_offsets,
        n_loss=numbers(batch.column("n_loss")),
    )


def _hashes(ids: Int32) -> npt.NDArray[np.uint64]:
    """xxh3_64 of each row of ids."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, np.ascontiguousarray(ids)), np.uint64, len(ids))


def check(rows: Rows, *, sequence_length: int, vocab_size: int, pad_id: int) -> str | None:
    """What is wrong first with these rows, as "row 3, token 17: …" (rows counted from 0 here), or None (F12-F23)."""
    found = _core.check_rows(
        np.ascontiguousarray(rows.input_ids).reshape(-1),
        *run_arrays(rows.runs),
        rows.run_offsets,
        rows.documents["end"].copy(),
        rows.document_offsets,
        np.ascontiguousarray(rows.n_loss),
        sequence_length,
        vocab_size,
    )
    if found is not None:
        return f"row {found.row}, token {found.position}: {found.message}"
    for problem, entries, offsets in (
        (_wrong_run(rows), rows.runs, rows.run_offsets),
        (wrong_document(rows), rows.documents, rows.document_offsets),
        (wrong_verdict(rows), rows.verdicts, rows.verdict_offsets[rows.document_offsets]),
        (_wrong_weight(rows, sequence_length), rows.weights, rows.weight_offsets),
    ):
        if problem is not None:
            index, text = problem
            row = int(np.searchsorted(offsets, index, side="right")) - 1
            return f"row {row}, {text}: {entries[index].item()}"
    if np.any(np.diff(rows.document_offsets) == 0):
        return f"row {int(np.argmax(np.diff(rows.document_offsets) == 0))} holds no document"
    filled = rows.documents["end"][rows.document_offsets[1:] - 1]
    padding = np.arange(sequence_length) >= filled[:, None]
    wrong = padding & (rows.input_ids != pad_id)
    if wrong.any():
        row, token = np.argwhere(wrong)[0]
        return f"row {row}, token {token}: padding has id {rows.input_ids[row, token]}, not pad_id {pad_id}"
    return None


def _wrong_run(rows: Rows) -> tuple[int, str] | None:
    flags = rows.runs["flags"]
    trained = (flags & Flag.STRADDLES > 0) & (flags & Flag.LOSS > 0)
    if trained.any():
        return int(np.argmax(trained)), "a straddling token has loss"
    same = np.ones(max(0, len(rows.runs) - 1), dtype=bool)
    for name in ("role", "part", "flags", "message"):
        same &= rows.runs[name][1:] == rows.runs[name][:-1]
    if same.any():  # two runs that say the same are one, unless a document ends between them
        row = np.repeat(np.arange(len(rows)), np.diff(rows.run_offsets))
        length = rows.input_ids.shape[1]
        borders = np.repeat(np.arange(len(rows)), np.diff(rows.document_offsets)) * length + rows.documents["end"]
        same &= ~np.isin(row[:-1] * length + rows.runs["end"][:-1], borders)
        same &= row[:-1] == row[1:]
        if same.any():
            return int(np.argmax(same)), "a run repeats the facts of the one after it"
    return None


def wrong_document(rows: Rows) -> tuple[int, str] | None:
    """The first document whose fields are out of range (F19, F20, F23), and what is wrong; or None."""
    documents = rows.documents
    tokens = _lengths(documents["end"], rows.document_offsets)
    stop = documents["start"].astype(np.int64) + tokens
    branch, parent = documents["branch"], documents["parent"]
    index = np.arange(len(documents)) - np.repeat(rows.document_offsets[:-1], np.diff(rows.document_offsets))
    with np.errstate(invalid="ignore"):
        not_finite = np.isinf(documents["score"])
    for wrong, text in (
        ((documents["start"] < 0) | (stop > documents["length"]), "a fragment lies outside its document"),
        ((documents["source"] < 0) | (documents["row"] < 0), "a document has no origin"),
        (documents["turn"] < -1, "a document has a turn below -1"),
        (branch > max(Branch), "a document has an unknown branch"),
        (
            (branch == Branch.NONE) != (documents["pair"] < 0),
            "a document has a branch without a pair, or the other way",
        ),
        ((parent < 0) | (parent > index), "a document's parent is not in its row"),
        ((parent > 0) & (branch < Branch.CHOSEN), "a document with a parent is no branch"),
        (not_finite, "a document's score is not finite"),
    ):
        if wrong.any():
            return int(np.argmax(wrong)), text
    for child in np.flatnonzero(parent):
        prompt = documents[child - parent[child]]
        if prompt["branch"] != Branch.PROMPT or prompt["pair"] != documents["pair"][child]:
            return int(child), "a document's parent is not the prompt of its pair"
    return _wrong_pair(rows)


def _wrong_pair(rows: Rows) -> tuple[int, str] | None:
    """A pair is in one row, with one chosen and one rejected branch, and at most one prompt."""
    paired = np.flatnonzero(rows.documents["branch"])
    if not len(paired):
        return None
    row = np.searchsorted(rows.document_offsets, paired, side="right") - 1
    _, first, number = np.unique(
        np.stack([row, rows.documents["pair"][paired]]), axis=1, return_index=True, return_inverse=True
    )
    found = np.zeros((len(first), len(Branch)), np.int64)
    np.add.at(found, (number.reshape(-1), rows.documents["branch"][paired]), 1)
    wrong = (found[:, Branch.CHOSEN] != 1) | (found[:, Branch.REJECTED] != 1) | (found[:, Branch.PROMPT] > 1)
    if wrong.any():
        return int(paired[first[np.argmax(wrong)]]), "a pair has not one chosen and one rejected branch in its row"
    return None


def wrong_verdict(rows: Rows) -> tuple[int, str] | None:
    """The first verdict that breaks F21, and what is wrong; or None."""
    verdicts = rows.verdicts
    known = int(Verdict.HISTORY_DIFFERS | Verdict.NO_STOP | Verdict.REFUSED)
    repeats = np.zeros(len(verdicts), bool)
    repeats[1:] = verdicts["message"][1:] <= verdicts["message"][:-1]
    repeats[rows.verdict_offsets[:-1][rows.verdict_offsets[:-1] < len(verdicts)]] = False
    for wrong, text in (
        (verdicts["verdict"] & ~np.uint8(known) > 0, "a verdict has an unknown bit"),
        (verdicts["message"] < 0, "a verdict belongs to no message"),
        (repeats, "the verdicts of a document are not in order of messages, each once"),
    ):
        if wrong.any():
            return int(np.argmax(wrong)), text
    return None


def _wrong_weight(rows: Rows, sequence_length: int) -> tuple[int, str] | None:
    weights = rows.weights
    before = np.concatenate(([0], weights["end"][:-1])).astype(np.int32) if len(weights) else weights["end"]
    before[rows.weight_offsets[:-1][rows.weight_offsets[:-1] < len(weights)]] = 0
    for wrong, text in (
        (weights["start"] < before, "a weight range begins before the one before it ends"),
        (weights["end"] <= weights["start"], "a weight range is empty"),
        (weights["end"] > sequence_length, "a weight range ends outside the row"),
        (~np.isfinite(weights["weight"]) | (weights["weight"] < 0), "a weight is negative or not finite"),
        (weights["weight"] == 1, "a weight of 1 is no exception"),
    ):
        if wrong.any():
            return int(np.argmax(wrong)), text
    return None


def run_arrays(runs: Structs) -> tuple[Int32, UInt8, UInt8, UInt8, Int32]:
    """Ends, roles, parts, flags and messages of RUN_DTYPE, as the core takes them."""
    end, role, part, flags, message = (runs[name].copy() for name in RUN_DTYPE.names or ())
    return end, role, part, flags, message


def packed_runs(end: Int32, role: UInt8, part: UInt8, flags: UInt8, message: Int32) -> Structs:
    """The inverse of run_arrays."""
    runs = np.empty(len(end), RUN_DTYPE)
    for name, values in zip(RUN_DTYPE.names or (), (end, role, part, flags, message), strict=True):
        runs[name] = values
    return runs


def count(rows: Rows) -> Counts:
    """What the manifest says about these rows."""
    lengths = _lengths(rows.runs["end"], rows.run_offsets)
    key = rows.runs["role"].astype(np.int64) << 8 | rows.runs["part"]
    flags = rows.runs["flags"]
    first = rows.documents["start"] == 0
    of = np.repeat(np.arange(len(rows.documents)), np.diff(rows.verdict_offsets))
    turn = rows.documents["turn"][of]
    verdicts = rows.verdicts["verdict"][first[of] & ((turn < 0) | (turn == rows.verdicts["message"]))]
    return Counts(
        sequences=len(rows),
        documents=int(first.sum()),
        fragments=len(rows.documents),
        tokens=_by_key(key, lengths),
        sampled=_by_key(key, lengths * (flags & Flag.SAMPLED > 0)),
        loss=_by_key(key, lengths * (flags & Flag.LOSS > 0)),
        straddles=int(lengths[flags & Flag.STRADDLES > 0].sum()),
        cuts=int(lengths[flags & Flag.CUT_BEFORE > 0].sum()),
        verdicts={
            verdict_name(int(value)): int(n) for value, n in zip(*np.unique(verdicts, return_counts=True), strict=True)
        },
    )


def _by_key(key: Int64, tokens: Int64) -> dict[str, int]:
    totals = np.bincount(key, weights=tokens)  # float64: exact below 2^53 tokens
    return {
        f"{Role(k >> 8).name.lower()}.{Part(k & 255).name.lower()}": int(totals[k])
        for k in np.flatnonzero(totals).tolist()
    }


def digests(rows: Rows) -> bytes:
    """32 bytes per row: SHA-256 over what the row says, apart from how a file keeps it (F30)."""
    flat = rows.input_ids.astype("<i4", copy=False)
    bounds = rows.verdict_offsets[rows.document_offsets]
    per_document = np.diff(rows.verdict_offsets).astype("<i4")
    out = []
    for r in range(len(rows)):
        runs = rows.runs[rows.run_offsets[r] : rows.run_offsets[r + 1]]
        documents = slice(rows.document_offsets[r], rows.document_offsets[r + 1])
        verdicts = rows.verdicts[bounds[r] : bounds[r + 1]]
        weights = rows.weights[rows.weight_offsets[r] : rows.weight_offsets[r + 1]]
        sizes = np.array([len(runs), documents.stop - documents.start, len(verdicts), len(weights)], "<i4")
        row = hashlib.sha256(sizes.tobytes())
        for array in (flat[r], runs, rows.documents[documents], per_document[documents], verdicts, weights):
            row.update(array.tobytes())
        out.append(row.digest())
    return b"".join(out)


def _lengths(ends: Int32, offsets: Int64) -> Int64:
    starts = np.zeros(len(ends), dtype=np.int64)
    starts[1:] = ends[:-1]
    starts[offsets[:-1][offsets[:-1] < len(ends)]] = 0
    lengths: Int64 = ends - starts
    return lengths


def struct_array(values: Structs, dtype: pa.StructType) -> pa.StructArray:
    """A packed structured array as an Arrow struct; fields that may be null have their sentinel replaced by null."""
    fields = list(dtype)
    return pa.StructArray.from_arrays([column_array(values[field.name], field) for field in fields], fields=fields)


def column_array(values: npt.NDArray[Any], field: pa.Field) -> pa.Array:
    """A column of NULLS's sentinels and values as an Arrow array of the field's type."""
    plain = values.copy()  # contiguous and aligned, which a field of packed structs is not
    if not field.nullable:
        return plain_array(plain) if plain.dtype != bool else pa.array(plain, type=field.type)
    sentinel = NULLS[field.name]
    missing = np.isnan(plain) if plain.dtype.kind == "f" else plain == sentinel
    if missing.all():
        return pa.nulls(len(plain), field.type)
    plain = np.where(missing, np.zeros(1, plain.dtype), plain)  # what lies under a null is a fixed 0
    if pa.types.is_boolean(field.type):
        plain = plain.astype(bool)
    return pa.array(plain, type=field.type, mask=missing if missing.any() else None)


def numpy_column(array: pa.Array, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The inverse of column_array. ValueError for a value that is not null and equals the sentinel."""
    if name in NULLS and not pa.types.is_boolean(array.type):
        plain = numbers(array.drop_null())
        if np.any(np.isnan(plain) if plain.dtype.kind == "f" else plain == NULLS[name]):
            raise ValueError(f"{name} holds {NULLS[name]}, which must be null")
    if array.null_count == len(array):
        return np.full(len(array), NULLS.get(name, 0), dtype)
    if array.null_count:
        array = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
        array = array.fill_null(pa.scalar(NULLS[name], type=array.type))
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return numbers(array).astype(dtype)


def structs(array: pa.StructArray, dtype: np.dtype[Any]) -> Structs:
    """The inverse of struct_array, for the fields that `dtype` has."""
    out = np.empty(len(array), dtype=dtype)
    for name in dtype.names or ():
        out[name] = numpy_column(array.field(name), name, dtype[name])
    return out


def plain_array(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers without nulls as an Arrow array over the same memory. pa.array would import pandas where it is installed,
    to ask whether this is a Series: half a second of each worker."""
    contiguous = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(contiguous)])


def numbers(array: pa.Array) -> npt.NDArray[Any]:
    """The inverse of plain_array: a read-only view of numbers without nulls."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, dtype)
    values: npt.NDArray[Any] = np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
    values.flags.writeable = False
    return values


def list_array(offsets: Int64, values: pa.Array, *, large: bool = False) -> pa.Array:
    """Lists over `values`; offsets start with 0. OverflowError when they do not fit the list's offset type."""
    item = pa.field("item", values.type, nullable=False)
    if large:
        return pa.LargeListArray.from_arrays(plain_array(offsets), values, type=pa.large_list(item))
    if len(offsets) and offsets[-1] > np.iinfo(np.int32).max:
        raise OverflowError(f"{offsets[-1]} values do not fit one Arrow list column; use smaller batches")
    return pa.ListArray.from_arrays(plain_array(offsets.astype(np.int32)), values, type=pa.list_(item))


def flat_list(array: pa.Array) -> tuple[Int64, pa.Array]:
    """Offsets from 0 and the flat values of a list array, whatever slice of its buffers it is."""
    offsets = numbers(array.offsets).astype(np.int64)
    return offsets - offsets[0], array.values.slice(offsets[0], offsets[-1] - offsets[0])


def find_null(array: pa.Array, field: pa.Field) -> str | None:
    """The path of a field that must not be null and is, or None."""
    if array.null_count and not field.nullable:
        return str(field.name)
    if pa.types.is_struct(field.type):
        children = [(array.field(child.name), child) for child in field.type]
    elif pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type):
        children = [(array.flatten(), field.type.value_field)]
    else:
        return None
    for child, child_field in children:
        path = find_null(child, child_field)
        if path is not None:
            return f"{field.name}.{path}"
    return None


def _documents_array(rows: Rows) -> pa.StructArray:
    verdicts = list_array(rows.verdict_offsets, struct_array(rows.verdicts, VERDICT))
    fields = list(DOCUMENT)
    arrays = [verdicts if f.name == "verdicts" else column_array(rows.documents[f.name], f) for f in fields]
    return pa.StructArray.from_arrays(arrays, fields=fields)
