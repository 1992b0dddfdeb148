"""Documents ↔ Arrow tables: how documents travel from encode to the shards, and back out of intermediate files.

    list[Document] ─documents_to_table─▶ DOCUMENT_SCHEMA ─table_to_documents─▶ Iterator[Document]

Every fact survives exactly. Weights are kept as the exceptions from 1, so `weights` of all ones come back as None.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskpipe import _core
from maskpipe.document import Document, Float32
from maskpipe.errors import DatasetError, RecordError
from maskpipe.roles import Branch, Verdict
from maskpipe.shards.format import (
    DOCUMENT_DTYPE,
    DOCUMENT_SCHEMA,
    NULLS,
    RUN,
    RUN_DTYPE,
    VERDICT,
    VERDICT_DTYPE,
    WEIGHT,
    WEIGHT_DTYPE,
)
from maskpipe.shards.rows import (
    Int32,
    Int64,
    Structs,
    column_array,
    find_null,
    flat_list,
    list_array,
    numbers,
    numpy_column,
    packed_runs,
    plain_array,
    struct_array,
    structs,
)

_DENSE = (
    ("input_ids", np.dtype(np.int32)),
    ("role_ids", np.dtype(np.uint8)),
    ("part_ids", np.dtype(np.uint8)),
    ("flags", np.dtype(np.uint8)),
    ("message_ids", np.dtype(np.int32)),
)
_SCALARS = ("source", "row", "turn", "pair", "branch", "parent", "score", "label")


@dataclass(frozen=True, eq=False)
class DocumentColumns:
    """A table of documents as flat arrays; offsets are int64 [documents + 1] and start with 0."""

    input_ids: Int32  # [tokens]
    id_offsets: Int64
    runs: Structs  # RUN_DTYPE, ends relative to the document
    run_offsets: Int64
    weights: Structs  # WEIGHT_DTYPE, relative to the document
    weight_offsets: Int64
    verdicts: Structs  # VERDICT_DTYPE
    verdict_offsets: Int64
    facts: Structs  # DOCUMENT_DTYPE with `length` set, `start` and `end` 0

    def __len__(self) -> int:
        return len(self.facts)


def documents_to_table(documents: Sequence[Document]) -> pa.Table:
    """The documents as a table of DOCUMENT_SCHEMA, in order. Raises what DocumentBatch raises."""
    batch = DocumentBatch()
    for document in documents:
        batch.add(document)
    return batch.take()


class DocumentBatch:
    """Documents that are gathered for one table; `core` holds their tokens."""

    def __init__(self) -> None:
        self.core = _core.Documents()
        self._places: list[tuple[int, int]] = []
        """Source and row of each."""
        self._others: dict[int, Document] = {}
        """By number, those of which more than that is to be said."""

    def __len__(self) -> int:
        return len(self._places)

    def add(self, document: Document) -> None:
        """TypeError when an array has another dtype than Document says, ValueError when its arrays differ in length;
        RecordError for a weight that is negative or not finite."""
        _check(document)
        turns = sorted(document.verdicts)
        verdicts = [int(document.verdicts[turn]) for turn in turns]
        ids, roles, parts, flags, messages = (np.ascontiguousarray(getattr(document, name)) for name, _ in _DENSE)
        self.core.add(ids, roles, parts, flags, messages, turns, verdicts)
        self._others[len(self._places)] = document
        self._places.append((document.source, document.row))

    def add_usual(self, source: int, row: int) -> None:
        """A document of one conversation, whole and without weights, whose tokens `core` has already."""
        self._places.append((source, row))

    def take(self) -> pa.Table:
        """The table of DOCUMENT_SCHEMA of all of them; none is left."""
        places, others = self._places, self._others
        self._places, self._others = [], {}
        ids, roles, parts, flags, messages, offsets, turns, verdicts, verdict_offsets = self.core.take()
        if len(offsets) != len(places) + 1:
            raise ValueError(f"{len(offsets) - 1} documents have tokens, and {len(places)} a place")
        runs = _core.encode_runs(roles, parts, flags, messages, offsets)
        facts = np.zeros(len(places), DOCUMENT_DTYPE)
        for name, missing in NULLS.items():
            facts[name] = missing
        facts["source"] = np.array([source for source, _ in places], DOCUMENT_DTYPE["source"])
        facts["row"] = np.array([row for _, row in places], DOCUMENT_DTYPE["row"])
        facts["turn"] = -1
        numbers = list(others)
        for name in _SCALARS[2:] if others else ():
            values = [getattr(document, name) for document in others.values()]
            if name in NULLS:
                values = [NULLS[name] if value is None else value for value in values]
            facts[name][numbers] = np.array(values, DOCUMENT_DTYPE[name])
        weights: list[list[Any]] = [[] for _ in places]
        for number, document in others.items():
            if document.weights is not None:
                weights[number] = _exceptions(document).tolist()
        judged = np.zeros(len(turns), VERDICT_DTYPE)
        judged["message"], judged["verdict"] = turns, verdicts
        exceptions = np.array(list(itertools.chain.from_iterable(weights)), WEIGHT_DTYPE)
        return table_of(
            input_ids=(ids, offsets),
            runs=(packed_runs(runs.run_ends, runs.run_roles, runs.run_parts, runs.run_flags, runs.run_messages),
                  runs.run_offsets),
            weights=(exceptions, _offsets([len(group) for group in weights])),
            verdicts=(judged, verdict_offsets),
            facts=facts,
        )  # fmt: skip


def with_pairs(table: pa.Table, pairs: Int64 | None) -> pa.Table:
    """The table of DOCUMENT_SCHEMA with these numbers [documents] of pairs, null where the document is in none; None:
    as it is."""
    if pairs is None:
        return table
    at = table.schema.get_field_index("pair")
    numbered = np.where(table["pair"].is_null().to_numpy(), NULLS["pair"], pairs)
    return table.set_column(at, DOCUMENT_SCHEMA.field("pair"), column_array(numbered, DOCUMENT_SCHEMA.field("pair")))


def table_of(
    *,
    input_ids: tuple[Int32, Int64],
    runs: tuple[Structs, Int64],
    weights: tuple[Structs, Int64],
    verdicts: tuple[Structs, Int64],
    facts: Structs,
) -> pa.Table:
    """A table of DOCUMENT_SCHEMA from flat values and their offsets (int64 [documents + 1], from 0); positions count
    from each document's first token. `facts` is DOCUMENT_DTYPE [documents]."""
    columns = {
        "input_ids": list_array(input_ids[1], plain_array(input_ids[0]), large=True),
        "runs": list_array(runs[1], struct_array(runs[0], RUN), large=True),
        "weights": list_array(weights[1], struct_array(weights[0], WEIGHT)),
        "verdicts": list_array(verdicts[1], struct_array(verdicts[0], VERDICT)),
        **{name: column_array(facts[name], DOCUMENT_SCHEMA.field(name)) for name in _SCALARS},
    }
    return pa.Table.from_arrays([columns[name] for name in DOCUMENT_SCHEMA.names], schema=DOCUMENT_SCHEMA)


def table_to_documents(table: pa.Table) -> Iterator[Document]:
    """The documents of a table of DOCUMENT_SCHEMA, in order; arrays are read-only views of one buffer per chunk.

    DatasetError when the table has another schema, nulls, or runs that do not tile its documents.
    """
    _check_schema(table)
    for batch in table.to_batches():
        columns = _columns(batch)
        lengths = np.diff(columns.id_offsets)
        ends = columns.runs["end"].copy()
        try:
            roles, parts, flags, messages = (
                _core.expand_runs(ends, columns.runs[name].copy(), columns.run_offsets, lengths)
                for name in ("role", "part", "flags", "message")
            )
        except ValueError as error:
            raise DatasetError(f"the runs of a document table do not tile its documents: {error}") from None
        for array in (roles, parts, flags, messages):
            array.flags.writeable = False
        for d in range(len(columns)):
            tokens = slice(columns.id_offsets[d], columns.id_offsets[d + 1])
            weights = columns.weights[columns.weight_offsets[d] : columns.weight_offsets[d + 1]]
            verdicts = columns.verdicts[columns.verdict_offsets[d] : columns.verdict_offsets[d + 1]]
            yield Document(
                input_ids=columns.input_ids[tokens],
                role_ids=roles[tokens],
                part_ids=parts[tokens],
                flags=flags[tokens],
                message_ids=messages[tokens],
                weights=dense_weights(weights, int(lengths[d])) if len(weights) else None,
                source=int(columns.facts["source"][d]),
                row=int(columns.facts["row"][d]),
                turn=int(columns.facts["turn"][d]),
                verdicts=verdict_map(verdicts),
                **pair_facts(columns.facts[d]),
            )


def pair_facts(facts: Any) -> dict[str, Any]:
    """The fields of a Document that an entry of DOCUMENT_DTYPE has for preference data."""
    pair, branch, parent, score, label = (facts[name].item() for name in ("pair", "branch", "parent", "score", "label"))
    return {
        "pair": None if pair < 0 else pair,
        "branch": Branch(branch),
        "parent": parent or None,
        "score": None if score != score else score,
        "label": None if label < 0 else bool(label),
    }


def table_columns(table: pa.Table) -> DocumentColumns:
    """The flat arrays of a whole table of DOCUMENT_SCHEMA, its chunks one after the other (copied unless it is one)."""
    _check_schema(table)
    parts = [_columns(batch) for batch in table.to_batches()]
    if len(parts) == 1:
        return parts[0]

    def values(name: str, empty: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([empty, *(getattr(part, name) for part in parts)])

    def offsets(name: str) -> Int64:
        return _offsets(np.concatenate([np.empty(0, np.int64), *(np.diff(getattr(part, name)) for part in parts)]))

    return DocumentColumns(
        input_ids=values("input_ids", np.empty(0, np.int32)),
        id_offsets=offsets("id_offsets"),
        runs=values("runs", np.empty(0, RUN_DTYPE)),
        run_offsets=offsets("run_offsets"),
        weights=values("weights", np.empty(0, WEIGHT_DTYPE)),
        weight_offsets=offsets("weight_offsets"),
        verdicts=values("verdicts", np.empty(0, VERDICT_DTYPE)),
        verdict_offsets=offsets("verdict_offsets"),
        facts=values("facts", np.empty(0, DOCUMENT_DTYPE)),
    )


def dense_weights(exceptions: Structs, length: int) -> Float32:
    """float32[length], read-only: 1 except in the ranges of WEIGHT_DTYPE given."""
    weights = np.ones(length, np.float32)
    for start, end, weight in exceptions.tolist():
        weights[start:end] = weight
    weights.flags.writeable = False
    return weights


def verdict_map(verdicts: Structs) -> dict[int, Verdict]:
    return {message: Verdict(verdict) for message, verdict in verdicts.tolist()}


def _columns(batch: pa.RecordBatch) -> DocumentColumns:
    for column, field in zip(batch.columns, batch.schema, strict=True):
        path = find_null(column, field)
        if path is not None:
            raise DatasetError(f"a document table has null in {path}, which must not be null")
    id_offsets, ids = flat_list(batch.column("input_ids"))
    run_offsets, runs = flat_list(batch.column("runs"))
    weight_offsets, weights = flat_list(batch.column("weights"))
    verdict_offsets, verdicts = flat_list(batch.column("verdicts"))
    lengths = np.diff(id_offsets)
    if np.any(lengths > np.iinfo(np.int32).max):
        raise DatasetError("a document has more than 2^31 - 1 tokens; split it before it is packed")
    facts = np.zeros(batch.num_rows, DOCUMENT_DTYPE)
    facts["length"] = lengths
    for name in _SCALARS:
        facts[name] = numpy_column(batch.column(name), name, DOCUMENT_DTYPE[name])
    return DocumentColumns(
        input_ids=numbers(ids),
        id_offsets=id_offsets,
        runs=structs(runs, RUN_DTYPE),
        run_offsets=run_offsets,
        weights=structs(weights, WEIGHT_DTYPE),
        weight_offsets=weight_offsets,
        verdicts=structs(verdicts, VERDICT_DTYPE),
        verdict_offsets=verdict_offsets,
        facts=facts,
    )


def _check_schema(table: pa.Table) -> None:
    if not table.schema.equals(DOCUMENT_SCHEMA, check_metadata=False):
        raise DatasetError(
            f"not a table of documents; expected the columns {', '.join(DOCUMENT_SCHEMA.names)}, got {table.schema}"
        )


def _check(document: Document) -> None:
    shape = (len(document.input_ids),)
    for name, dtype in _DENSE:
        array = getattr(document, name)
        if array.dtype is not dtype and array.dtype != dtype:
            raise TypeError(f"{_where(document)}: {name} must be {dtype}, got {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"{_where(document)}: {name} has shape {array.shape}, input_ids has {shape[0]} tokens")
    if document.weights is not None:
        if document.weights.dtype != np.float32:
            raise TypeError(f"{_where(document)}: weights must be float32, got {document.weights.dtype}")
        if document.weights.shape != (len(document),):
            raise ValueError(
                f"{_where(document)}: weights has shape {document.weights.shape}, input_ids has {len(document)} tokens"
            )
        if not np.all(np.isfinite(document.weights) & (document.weights >= 0)):
            raise RecordError(
                f"{_where(document)}: a weight is negative or not finite; weights must be at least 0", "bad_weight"
            )


def _where(document: Document) -> str:
    return f"document of source {document.source}, row {document.row}"


def _exceptions(document: Document) -> Structs:
    """Ranges of equal weight other than 1, in order."""
    if document.weights is None or len(document) == 0:
        return np.empty(0, WEIGHT_DTYPE)
    borders = np.flatnonzero(np.diff(document.weights)) + 1
    ranges = np.empty(len(borders) + 1, WEIGHT_DTYPE)
    ranges["start"] = [0, *borders]
    ranges["end"] = [*borders, len(document)]
    ranges["weight"] = document.weights[ranges["start"]]
    exceptions: Structs = ranges[ranges["weight"] != 1]
    return exceptions


def _offsets(lengths: Sequence[int] | Int64) -> Int64:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
