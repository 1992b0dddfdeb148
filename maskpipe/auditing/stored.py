"""The documents of a dataset, found by the record that they come from; each with the place of every token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from maskpipe.document import Float32, Int32, UInt8
from maskpipe.roles import Branch
from maskpipe.shards.documents import dense_weights, verdict_map
from maskpipe.shards.reader import Dataset, ShardReader
from maskpipe.shards.rows import Rows

_BATCHES_KEPT = 64
"""Record batches kept in memory, about 1 MiB of ids and 2 MiB of facts each."""


class Piece(NamedTuple):
    """Tokens of a document that stand together in a row."""

    at: int
    """Position of the first of them in the document."""
    file: str
    row: int
    """Row of the dataset."""
    start: int
    end: int


class Found(NamedTuple):
    """A document where it stands, before its tokens are looked at."""

    batch: int
    turn: int
    length: int
    ids: int
    """Its first token among all those of the batch, padding included."""
    facts: int
    """Its first token among those of the batch that runs cover."""
    verdicts: bytes
    """VERDICT_DTYPE, one per turn."""


@dataclass(eq=False)
class Stored:
    """A document as the dataset has it. Arrays have one entry per token."""

    source: int
    record: int
    turn: int
    branch: int
    """roles.Branch: what it is in a preference pair."""
    length: int
    ids: Int32
    roles: UInt8
    parts: UInt8
    flags: UInt8
    messages: Int32
    weights: Float32 | None
    verdicts: dict[int, int]
    pieces: list[Piece]

    def __len__(self) -> int:
        return len(self.ids)

    def behind(self, prompt: Stored) -> Stored:
        """The prompt of a pair that is kept once, and this answer to it, as one document."""
        out = _joined([(0, prompt), (len(prompt), self)])
        return replace(out, turn=self.turn, verdicts=self.verdicts, branch=self.branch)

    def piece_of(self, position: int) -> Piece:
        return next(piece for piece in reversed(self.pieces) if piece.at <= position)

    @property
    def first_message(self) -> int:
        """A message of the conversation that it is of, -1 for none."""
        if self.verdicts:
            return min(self.verdicts)
        own = self.messages[self.messages >= 0]
        return int(own.min()) if len(own) else -1


class Index:
    """Which record batch holds documents of which record. 20 bytes per document."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._batches: OrderedDict[int, Rows] = OrderedDict()
        self._flat: dict[int, _Flat] = {}
        self._places: list[tuple[int, int, int]] = []  # (shard, batch in it, first row of the dataset)
        sources, records, batches = [], [], []
        first = 0
        for shard in range(len(dataset.manifest.shards)):
            for batch in range(self._reader(shard).n_batches):
                self._places.append((shard, batch, first))
                rows = self._rows(len(self._places) - 1)
                sources.append(rows.documents["source"].astype(np.int64))
                records.append(rows.documents["row"].astype(np.int64))
                batches.append(np.full(len(rows.documents), len(self._places) - 1, np.int32))
                first += len(rows)
        none = np.zeros(0, np.int64)
        keys = np.concatenate([none, *sources]) << 40 | np.concatenate([none, *records])
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._of = np.concatenate([np.zeros(0, np.int32), *batches])[order]
        self.keys = np.unique(keys)
        """[records] source << 40 | record of all records that are in the dataset, ascending."""

    def chosen(self, count: int) -> npt.NDArray[np.int64]:
        """`count` of the keys (all if that is negative or too many), spread by a hash that depends on nothing else."""
        if not 0 <= count < len(self.keys):
            return self.keys
        mixed = self.keys.astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return np.sort(self.keys[np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")[:count]])

    def documents(self, keys: npt.NDArray[np.int64]) -> dict[int, list[Stored]]:
        """The documents of these records, whole where packing cut them, in the order of the dataset."""
        begin, end = np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")
        needed = {int(b) for low, high in zip(begin, end, strict=True) for b in self._of[low:high]}
        out: dict[int, list[Stored]] = {int(key): [] for key in keys}
        cut: dict[tuple[int, int, int], list[tuple[int, Stored]]] = {}
        for number in sorted(needed):
            for key, start, stored in self._of_batch(number, keys):
                if len(stored) == stored.length:
                    out[key].append(stored)
                    continue
                parts = cut.setdefault((key, stored.turn, stored.length), [])
                parts.append((start, stored))
                if sum(len(part) for _, part in parts) == stored.length:
                    out[key].append(_joined(sorted(parts, key=lambda part: part[0])))
                    parts.clear()
        return out

    def found(self, keys: npt.NDArray[np.int64]) -> dict[int, list[Found] | None]:
        """Where the documents of these records stand, in the order of the dataset; None for a record of which one
        is not whole, is of a preference pair, or stands in a row with weights."""
        begin, end = np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")
        out: dict[int, list[Found] | None] = {int(key): [] for key in keys}
        for number in np.unique(self._of[_ranges(begin, end)]).tolist():
            rows, flat = self._rows(number), self._flat_of(number)
            of_documents = rows.documents
            offsets = rows.verdict_offsets.tolist()
            for k in np.flatnonzero(np.isin(flat.keys, keys)).tolist():
                key = int(flat.keys[k])
                known = out[key]
                if not flat.simple[k]:
                    out[key] = None
                elif known is not None:
                    said = rows.verdicts[offsets[k] : offsets[k + 1]].tobytes()
                    entry = of_documents[k]
                    where = int(flat.ids[k]), int(flat.facts[k])
                    known.append(Found(number, int(entry["turn"]), int(entry["length"]), *where, said))
        return out

    def tokens(self, found: Sequence[Found]) -> tuple[Int32, npt.NDArray[np.int64]]:
        """([tokens] ids, [tokens] facts as `fact_codes` says) of these documents, one behind the other."""
        sizes = [document.length for document in found]
        ids, codes = np.empty(sum(sizes), np.int32), np.empty(sum(sizes), np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes))).tolist()
        by_batch: dict[int, list[int]] = {}
        for k, document in enumerate(found):
            by_batch.setdefault(document.batch, []).append(k)
        for number, own in by_batch.items():
            all_ids, all_codes = self._rows(number).input_ids.reshape(-1), self._flat_of(number).codes
            for k in own:
                at, document = starts[k], found[k]
                ids[at : at + document.length] = all_ids[document.ids : document.ids + document.length]
                codes[at : at + document.length] = all_codes[document.facts : document.facts + document.length]
        return ids, codes

    def close(self) -> None:
        while self._readers:
            self._readers.popitem()[1].close()

    def _of_batch(self, number: int, keys: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, Stored]]:
        rows = self._rows(number)
        shard, _, first = self._places[number]
        file = self.dataset.manifest.shards[shard].name
        documents = rows.documents
        own = documents["source"].astype(np.int64) << 40 | documents["row"].astype(np.int64)
        wanted = np.flatnonzero(np.isin(own, keys))
        row_of = np.repeat(np.arange(len(rows)), np.diff(rows.document_offsets))
        dense: dict[int, tuple[npt.NDArray[Any], ...]] = {}
        for k in wanted.tolist():
            row = int(row_of[k])
            if row not in dense:
                dense[row] = _dense(rows, row)
            start = 0 if k == rows.document_offsets[row] else int(documents["end"][k - 1])
            end = int(documents["end"][k])
            roles, parts, flags, messages, weights = [values[start:end] for values in dense[row]]
            entry = documents[k]
            verdicts = rows.verdicts[rows.verdict_offsets[k] : rows.verdict_offsets[k + 1]]
            yield int(own[k]), int(entry["start"]), Stored(
                source=int(entry["source"]), record=int(entry["row"]), turn=int(entry["turn"]),
                branch=int(entry["branch"]), length=int(entry["length"]),
                ids=rows.input_ids[row, start:end], roles=roles, parts=parts, flags=flags, messages=messages,
                weights=weights if np.any(weights != 1) else None,
                verdicts={message: int(verdict) for message, verdict in verdict_map(verdicts).items()},
                pieces=[Piece(0, file, first + row, start, end)],
            )  # fmt: skip

    def _rows(self, number: int) -> Rows:
        if number not in self._batches:
            shard, batch, _ = self._places[number]
            self._batches[number] = self._reader(shard).batch(batch)
            if len(self._batches) > _BATCHES_KEPT:
                self._flat.pop(self._batches.popitem(last=False)[0], None)
        self._batches.move_to_end(number)
        return self._batches[number]

    def _flat_of(self, number: int) -> _Flat:
        if number not in self._flat:
            self._flat[number] = _Flat.of(self._rows(number))
        return self._flat[number]

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._readers:
            self._readers[shard] = ShardReader(self.dataset.path, self.dataset.manifest, shard)
            if len(self._readers) > 8:
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end(shard)
        return self._readers[shard]


def fact_codes(roles: Any, parts: Any, flags: Any, messages: Any) -> npt.NDArray[np.int64]:
    """The facts of tokens or of runs, one number for each."""
    codes = np.asarray(messages, np.int64) << 24 | np.asarray(flags, np.int64) << 16
    return codes | np.asarray(parts, np.int64) << 8 | np.asarray(roles, np.int64)


@dataclass(frozen=True, eq=False)
class _Flat:
    """The documents of a record batch without its rows."""

    keys: npt.NDArray[np.int64]  # [documents]
    simple: npt.NDArray[np.bool_]  # [documents] whole, of no pair, in a row without weights
    ids: npt.NDArray[np.int64]  # [documents] as in Found
    facts: npt.NDArray[np.int64]  # [documents]
    codes: npt.NDArray[np.int64]  # [tokens that runs cover]

    @staticmethod
    def of(rows: Rows) -> _Flat:
        documents, offsets = rows.documents, rows.document_offsets
        row = np.repeat(np.arange(len(rows)), np.diff(offsets))
        ends = documents["end"].astype(np.int64)
        starts = np.concatenate(([0], ends[:-1]))
        starts[offsets[:-1][np.diff(offsets) > 0]] = 0
        runs = rows.runs
        run_ends: npt.NDArray[np.int64] = runs["end"].astype(np.int64)
        sizes = run_ends - np.concatenate(([0], run_ends[:-1]))
        first = rows.run_offsets[:-1][np.diff(rows.run_offsets) > 0]
        sizes[first] = run_ends[first]
        covered = np.concatenate(([0], np.cumsum(sizes)))
        before = covered[rows.run_offsets[:-1]]
        codes = np.repeat(fact_codes(runs["role"], runs["part"], runs["flags"], runs["message"]), sizes)
        weighted = np.diff(rows.weight_offsets) > 0
        simple = (documents["length"] == ends - starts) & (documents["branch"] == Branch.NONE) & ~weighted[row]
        return _Flat(
            documents["source"].astype(np.int64) << 40 | documents["row"].astype(np.int64), simple,
            row * rows.input_ids.shape[1] + starts, before[row] + starts, codes,
        )  # fmt: skip


def _ranges(begin: npt.NDArray[Any], end: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """All numbers of the ranges [begin[k], end[k]), one after the other."""
    sizes = end - begin
    out: npt.NDArray[np.int64] = np.arange(sizes.sum()) + np.repeat(begin - (np.cumsum(sizes) - sizes), sizes)
    return out


def _dense(rows: Rows, row: int) -> tuple[npt.NDArray[Any], ...]:
    runs = rows.runs[rows.run_offsets[row] : rows.run_offsets[row + 1]]
    sizes = np.diff(runs["end"], prepend=0)
    ranges = rows.weights[rows.weight_offsets[row] : rows.weight_offsets[row + 1]]
    return (
        *(np.repeat(runs[name], sizes) for name in ("role", "part", "flags", "message")),
        dense_weights(ranges, rows.input_ids.shape[1]),
    )


def _joined(parts: list[tuple[int, Stored]]) -> Stored:
    first = parts[0][1]

    def all_of(name: str) -> npt.NDArray[Any]:
        out: npt.NDArray[Any] = np.concatenate([getattr(part, name) for _, part in parts])
        return out

    weights = None
    if any(part.weights is not None for _, part in parts):
        ones = [np.ones(len(part), np.float32) if part.weights is None else part.weights for _, part in parts]
        weights = np.concatenate(ones)
    return Stored(
        first.source, first.record, first.turn, first.branch, first.length, all_of("ids").astype(np.int32),
        all_of("roles"), all_of("parts"), all_of("flags"), all_of("messages").astype(np.int32), weights,
        first.verdicts, [part.pieces[0]._replace(at=start) for start, part in parts],
    )  # fmt: skip
