"""repack: the documents of a dataset in rows of another length, or packed another way, without tokenizing.

    shards ─unpack─▶ documents, sorted back into the chunks they were made in ─▶ what the recipe does with those that
    are too long now ─plan─▶ rows ─▶ shards

The result is, byte for byte, what `prepare` makes of the same sources with that sequence length. Where this cannot be
known from the dataset, repack refuses: rows that grow where documents were cut or dropped for length, and rows that
shrink where a record would be rejected, or documents were cut before. What chunks.jsonl counts of records that are not
in the dataset, duplicates and the other side of a split, stays as it was counted with the old rows.
Memory: the facts of each document (about 100 bytes), one chunk, and one shard.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskpipe.derived import listed, new_dataset, publish_derived, require_chunks, scratch_file
from maskpipe.document import Document
from maskpipe.encoder import Encoded, fit_lengths, with_loss
from maskpipe.errors import DatasetError, RecordError, UsageError
from maskpipe.pack import Method
from maskpipe.pairs import fit_pair
from maskpipe.partial import Partial
from maskpipe.partitions import Stage, plan_shards
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Role
from maskpipe.shards.chunks import NOTHING, SPLIT, TOO_LONG, TRUNCATED, ChunkEntry, read_chunks, total_counts
from maskpipe.shards.documents import documents_to_table, table_to_documents, with_pairs
from maskpipe.shards.format import DOCUMENT_DTYPE, DOCUMENT_SCHEMA, DROPPED, REJECTS
from maskpipe.shards.manifest import Manifest, ShardRecord
from maskpipe.shards.reader import Dataset
from maskpipe.shards.reader import open as open_dataset
from maskpipe.shards.rows import Int64
from maskpipe.shards.unpack import Unpacked, conversations, join, unpack_shards
from maskpipe.shards.writer import write_shard

GROUP_TOKENS = 1 << 23
"""Tokens that are sorted into chunks at a time."""


@dataclass(frozen=True)
class Repacked:
    """What a repacking made."""

    path: Path
    manifest: Manifest
    counts: Counter[str]
    """What was cut and dropped because it is longer than the new rows: documents_truncated, tokens_truncated, …"""
    before: Manifest
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        now, before = self.manifest, self.before
        return {
            "path": str(self.path),
            "fingerprint": now.fingerprint,
            "sequence_length": now.sequence_length,
            "packing": now.recipe["packing"],
            "sequences": now.totals.sequences,
            "documents": now.totals.documents,
            "tokens": now.totals.n_tokens,
            "loss_tokens": now.totals.n_loss,
            "fill": now.totals.fill,
            "counts": {name: n for name, n in sorted(self.counts.items()) if n},
            "before": {
                "fingerprint": before.fingerprint,
                "sequence_length": before.sequence_length,
                "sequences": before.totals.sequences,
                "tokens": before.totals.n_tokens,
                "loss_tokens": before.totals.n_loss,
                "fill": before.totals.fill,
            },
        }

    def __str__(self) -> str:
        now, before = self.manifest.totals, self.before.totals
        gone = self.counts["tokens_truncated"] + sum(
            n for name, n in self.counts.items() if name.startswith("tokens_dropped_")
        )
        return (
            f"repacked  {before.sequences:,} sequences of {self.before.sequence_length:,} -> {now.sequences:,} of "
            f"{self.manifest.sequence_length:,} ({self.path}), {self.seconds:.1f} s\n"
            f"packing   fill {before.fill:.1%} -> {now.fill:.1%}\n"
            f"tokens    {before.n_tokens:,} = {now.n_tokens:,} in shards + {gone:,} cut or dropped for length   "
            f"loss {before.n_loss:,} -> {now.n_loss:,}"
        )


def repack(
    out: str | Path, new: str | Path, *, sequence_length: int | None = None, packing: Method | None = None
) -> Repacked:
    """Packs the documents of dataset `out` anew into the new dataset `new`.

    UsageError when `new` is there, the two do not go together, or the result could not be what prepare makes;
    DatasetError when the dataset is damaged. Then nothing is published.
    """
    begun = time.monotonic()
    with open_dataset(out) as dataset:
        old = Recipe.from_dict(dataset.manifest.recipe, where=f"{out}/recipe.yaml")
        changes = {"sequence_length": sequence_length, "packing": packing}
        recipe = old.replace(**{key: value for key, value in changes.items() if value is not None})
        chunks = require_chunks(dataset, read_chunks(dataset.path, dataset.manifest))
        _check_allowed(dataset, old, recipe, chunks)
        identity = {"from": dataset.manifest.fingerprint, "recipe": recipe.to_dict()}
        with new_dataset(new, "repack", dataset, **identity) as partial:
            documents = _Documents(dataset, recipe, chunks, partial)
            stages = list(documents.stages(_scatter(dataset, chunks, partial)))
            shards = list(_write(partial.dataset, stages, recipe, dataset.manifest))
            manifest = publish_derived(
                partial.dataset, shards, recipe=recipe, like=dataset, sources=dataset.manifest.sources,
                records_kept=dataset.manifest.records_kept, left_out=dataset.manifest.left_out,
                rejects=listed(dataset, REJECTS),
                dropped=documents.dropped, chunks=documents.chunks, role_names=dataset.manifest.role_names,
                run={"made_by": "repack", "from": dataset.manifest.fingerprint},
            )  # fmt: skip
        return Repacked(Path(new), manifest, documents.counts, dataset.manifest, time.monotonic() - begun)


# -- what is allowed


def _check_allowed(dataset: Dataset, old: Recipe, recipe: Recipe, chunks: Sequence[ChunkEntry]) -> None:
    before, after = _limit(old), _limit(recipe)
    if before == after:
        return
    counts, manifest = total_counts(chunks), dataset.manifest
    done = [
        f"{n:,} documents {what}" for n, what in ((counts[TRUNCATED], "were cut"), (counts[SPLIT], "were split")) if n
    ]
    done += [f"{counts[TOO_LONG]:,} tokens were dropped"] if counts[TOO_LONG] else []
    done += [f"{manifest.rejected['too_long']:,} records were rejected"] if manifest.rejected.get("too_long") else []
    if done:
        raise UsageError(
            f"{dataset.path}: {' and '.join(done)} for being longer than {before:,} tokens, and what other rows would "
            "keep of them is not in the dataset; prepare it anew from its sources"
        )
    # Documents without anything to train are gone; together they are no longer than their chunk counts.
    if any(chunk.counts.get(NOTHING, 0) > after for chunk in chunks):
        raise UsageError(
            f"{dataset.path}: {manifest.dropped['nothing_to_train']:,} documents without anything to train were "
            f"dropped, and whether rows of {after:,} tokens would hold them is not in the dataset; prepare it anew "
            "from its sources"
        )


def _limit(recipe: Recipe) -> int:
    """The longest document that stays as it is; concat_split cuts in packing only."""
    return 2**31 - 1 if recipe.packing == "concat_split" else recipe.sequence_length


# -- shards → entries sorted into chunks

_ENTRY_SCHEMA = pa.schema(
    [*DOCUMENT_SCHEMA, pa.field("start", pa.int32(), False), pa.field("length", pa.int32(), False)]
)
_Places = dict[int, list[tuple[Path, int]]]
"""Chunk → where its entries lie: (scratch file, record batch)."""


def _scatter(dataset: Dataset, chunks: Sequence[ChunkEntry], partial: Partial) -> _Places:
    places: _Places = defaultdict(list)
    for number, group in enumerate(_groups(dataset)):
        chunk = _chunk_of(group.facts, chunks)
        order = np.argsort(chunk, kind="stable")
        table = group.table
        for name in ("start", "length"):
            table = table.append_column(_ENTRY_SCHEMA.field(name), pa.array(group.facts[name].copy()))
        table = table.take(pa.array(order)).combine_chunks()
        path = scratch_file(partial, "entries", number)
        bounds = np.flatnonzero(np.diff(chunk[order], prepend=-1)).tolist()
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _ENTRY_SCHEMA) as writer:
            for batch, (first, stop) in enumerate(zip(bounds, [*bounds[1:], len(order)], strict=True)):
                writer.write_batch(table.slice(first, stop - first).to_batches()[0])
                places[int(chunk[order[first]])].append((path, batch))
    return places


def _groups(dataset: Dataset) -> Iterator[Unpacked]:
    """The entries of the dataset, about GROUP_TOKENS at a time."""
    parts: list[Unpacked] = []
    tokens = 0
    for _, part in unpack_shards(dataset):
        parts.append(part)
        tokens += len(part.table["input_ids"].combine_chunks().values)
        if tokens >= GROUP_TOKENS:
            yield _together(parts)
            parts, tokens = [], 0
    if parts:
        yield _together(parts)


def _together(parts: list[Unpacked]) -> Unpacked:
    return Unpacked(
        pa.concat_tables([part.table for part in parts]).combine_chunks(), np.concatenate([p.facts for p in parts])
    )


def _chunk_of(facts: np.ndarray[Any, np.dtype[np.void]], chunks: Sequence[ChunkEntry]) -> Int64:
    """[entries] the chunk that each entry's record was read in."""
    first = np.array([(chunk.source, chunk.row) for chunk in chunks if chunk.records], "i8,i8")
    number = np.array([number for number, chunk in enumerate(chunks) if chunk.records], np.int64)
    order = np.argsort(first, order=("f0", "f1"))
    records = np.empty(len(facts), "i8,i8")
    records["f0"], records["f1"] = facts["source"], facts["row"]
    place: Int64 = number[order][np.searchsorted(first[order], records, side="right") - 1]
    return place


# -- entries → the documents of a chunk, in the order they were made


class _Documents:
    """Stage files as prepare's map step leaves them, and what the new length did to documents."""

    def __init__(self, dataset: Dataset, recipe: Recipe, chunks: Sequence[ChunkEntry], partial: Partial) -> None:
        self.chunks = list(chunks)
        self.dropped: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self._dataset, self._recipe, self._partial = dataset, recipe, partial
        self._policy = Policy.of(recipe)

    def stages(self, places: _Places) -> Iterator[Stage]:
        """The stages, in the order of the chunks, then those of the repeated documents as prepare has them; afterwards
        chunks, dropped and counts are complete."""
        paired = self._recipe.objective == "preference"
        weighted = any(weight > 1 for weight in self._recipe.source_weights.values())
        repeats: dict[int, list[Stage]] = defaultdict(list)
        entries = listed(self._dataset, DROPPED)
        origins = np.zeros(len(entries), DOCUMENT_DTYPE)
        origins["source"], origins["row"] = [e["source"] for e in entries], [e["row"] for e in entries]
        before: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, entry in zip(_chunk_of(origins, self.chunks).tolist(), entries, strict=True):
            before[number].append(entry)
        for number, chunk in enumerate(self.chunks):
            out = Encoded()
            after: list[dict[str, Any]] = []
            path = scratch_file(self._partial, "chunk", number)
            lengths: list[int] = []
            pairs: list[Int64] = []
            if number in places:
                table, facts = _entries(places[number])
                copy = self._copies(table, facts) if weighted else None
                with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, DOCUMENT_SCHEMA) as writer:
                    for part in self._fitted(table, facts, out, after):
                        writer.write_table(part)
                        lengths += np.diff(part["input_ids"].combine_chunks().offsets.to_numpy()).tolist()
                        pairs.append(part["pair"].fill_null(-1).to_numpy())
            self.dropped += sorted(before[number] + after, key=lambda entry: int(entry["row"]))
            self.counts.update(out.counts)
            self.chunks[number] = replace(chunk, counts=Counter(chunk.counts) + out.counts)
            sizes = np.array(lengths, np.int32)
            units: npt.NDArray[np.int32] | None = None
            if paired and number in places:
                units = (np.cumsum(_begins(np.concatenate(pairs))) - 1).astype(np.int32)
            if number not in places or copy is None:
                yield Stage(str(path), sizes, None, units)
                continue
            for turn in range(int(copy.max()) + 1):
                rows = np.flatnonzero(copy == turn).astype(np.int32)
                own = None if units is None else units[rows]
                repeats[turn].append(Stage(str(path), sizes[rows], rows, own))
            yield repeats[0].pop()
        for turn in sorted(repeats):
            yield from repeats[turn]

    def _copies(self, table: pa.Table, facts: Any) -> Int64:
        """[documents] which copy each is, 0 the first, where the recipe takes sources several times. UsageError where
        copies cannot be told from pieces: documents that were cut, or are too long now."""
        limit = _limit(self._recipe)
        tokens = np.diff(table["input_ids"].combine_chunks().offsets.to_numpy())
        odd = np.flatnonzero((tokens > limit) | (tokens != facts["length"]))
        if len(odd) or self._recipe.on_too_long == "split":
            where = facts[int(odd[0]) if len(odd) else 0]
            raise UsageError(
                f"{self._dataset.path}: its recipe takes sources several times (source_weights), and record "
                f"{where['row']} of source {where['source']} may be in pieces; prepare its sources anew"
            )
        if (facts["pair"] >= 0).any():
            return _copies_of_pairs(table, facts)
        own = np.stack([facts["row"], conversations(table), facts["turn"]])
        begins = np.flatnonzero(np.any(np.diff(own, axis=1, prepend=own[:, :1] - 1) != 0, axis=0))
        return np.arange(len(facts)) - np.repeat(begins, np.diff([*begins, len(facts)]))

    def _fitted(self, table: pa.Table, facts: Any, out: Encoded, dropped: list[dict[str, Any]]) -> Iterator[pa.Table]:
        """The documents of a chunk as the recipe wants them; runs of documents that stay as they are, in one piece."""
        limit = _limit(self._recipe)
        tokens = np.diff(table["input_ids"].combine_chunks().offsets.to_numpy())
        # All the documents of a record are looked at together where one is too long or lies in pieces.
        units = np.cumsum(_begins(facts["pair"])) - 1
        odd = (np.bincount(units, weights=tokens)[units] > limit) | (tokens != facts["length"])
        records = np.flatnonzero(np.diff(facts["row"], prepend=-1))
        touched = np.logical_or.reduceat(odd, records)
        bounds = [*records.tolist(), len(facts)]
        start = 0
        for k in np.flatnonzero(touched).tolist():
            first, stop = bounds[k], bounds[k + 1]
            if first > start:
                yield table.slice(start, first - start)
            own = table.slice(first, stop - first)
            documents = self._whole(list(table_to_documents(own)), facts[first:stop])
            before = len(out.dropped)
            documents = self._fit(documents, out, several=len(np.unique(conversations(own))) > 1)
            where = {"source": int(facts["source"][first]), "row": int(facts["row"][first])}
            dropped += [{**where, "turn": turn, "policy": why} for turn, why in out.dropped[before:]]
            yield documents_to_table(documents)
            start = stop
        if start < len(facts):
            yield table.slice(start)

    def _whole(self, entries: list[Document], facts: Any) -> list[Document]:
        """The documents of one record, fragments joined."""
        out: list[Document] = []
        parts: list[Document] = []
        starts: list[int] = []
        for entry, start, length in zip(entries, facts["start"].tolist(), facts["length"].tolist(), strict=True):
            if len(entry) == length:
                out.append(entry)
                continue
            parts.append(entry)
            starts.append(start)
            if start + len(entry) == length:
                try:
                    out.append(with_loss(join(parts, starts), self._policy))
                except ValueError as error:
                    raise DatasetError(
                        f"{self._dataset.path}: source {entry.source}, record {entry.row}: {error}; prepare it anew"
                    ) from None
                parts, starts = [], []
        if parts:
            raise DatasetError(
                f"{self._dataset.path}: source {parts[0].source}, record {parts[0].row}: a document is not complete; "
                "prepare it anew"
            )
        return out

    def _fit(self, documents: list[Document], out: Encoded, several: bool) -> list[Document]:
        limit = _limit(self._recipe)
        if documents[0].pair is not None:
            if documents[-1].pair != documents[0].pair:
                raise UsageError(_refusal(documents[0], limit, "makes several pairs, each judged on its own"))
            try:
                return fit_pair(documents, self._recipe, out)
            except RecordError as error:
                raise UsageError(_refusal(documents[0], limit, f"prepare would reject it ({error.reason})")) from None
        if several and any(len(document) > limit for document in documents):
            raise UsageError(_refusal(documents[0], limit, "holds several conversations, each judged on its own"))
        for document in documents:
            if len(document) > limit and self._recipe.on_too_long == "truncate" and not _in_order(document):
                raise UsageError(_refusal(document, limit, "is written with turns out of order"))
        try:
            return fit_lengths(documents, self._recipe, out)
        except RecordError as error:
            raise UsageError(_refusal(documents[0], limit, f"prepare would reject it ({error.reason})")) from None


def _refusal(document: Document, limit: int, why: str) -> str:
    return (
        f"record {document.row} of source {document.source} does not fit rows of {limit:,} tokens, and {why}; prepare "
        "the sources anew with that length, or choose a longer one"
    )


def _in_order(document: Document) -> bool:
    sampled = (document.role_ids == Role.ASSISTANT) & (document.flags & Flag.SAMPLED > 0)
    return bool(np.all(np.diff(document.message_ids[sampled]) >= 0))


def _begins(pairs: Int64) -> npt.NDArray[np.bool_]:
    """[documents] Does each begin a unit: another pair than the one before it, or none?"""
    begins = np.ones(len(pairs), bool)
    begins[1:] = (np.diff(pairs) != 0) | (pairs[1:] < 0)
    return begins


def _copies_of_pairs(table: pa.Table, facts: Any) -> Int64:
    """[documents] which copy each is, where a record's pairs are there several times."""
    begins = _begins(facts["pair"])
    units = np.cumsum(begins) - 1
    last = np.flatnonzero(np.diff(units, append=units[-1:] + 1))  # the rejected side, or an answer alone
    seen: Counter[tuple[int, int, int]] = Counter()
    copy = []
    own = (facts["row"][last], conversations(table)[last], facts["turn"][last])
    for unit in zip(*(values.tolist() for values in own), strict=True):
        copy.append(seen[unit])
        seen[unit] += 1
    copies: Int64 = np.array(copy, np.int64)[units]
    return copies


def _entries(places: list[tuple[Path, int]]) -> tuple[pa.Table, Any]:
    """The entries of a chunk in the order their documents were made, and their facts (DOCUMENT_DTYPE)."""
    batches = []
    for path, number in places:
        with pa.memory_map(str(path)) as file:
            batches.append(pa.ipc.open_file(file).get_batch(number))
    table = pa.Table.from_batches(batches, _ENTRY_SCHEMA)
    facts = np.zeros(table.num_rows, DOCUMENT_DTYPE)
    for name in ("source", "row", "turn", "start", "length", "branch"):
        facts[name] = table[name].to_numpy()
    facts["pair"] = table["pair"].fill_null(-1).to_numpy()
    # A record's conversations; of each, all of it (turn -1), then its turns. A text that was split is several documents
    # alike: full rows, which packing leaves in order, and last the shorter rest. Fragments: by where they start. Pairs
    # are numbered in the order they were made, copies after all that are copied; of each: prompt, chosen, rejected.
    size = -facts["length"].astype(np.int64)
    order = np.lexsort(
        (facts["start"], size, facts["turn"], conversations(table), facts["branch"], facts["pair"], facts["row"])
    )
    return table.take(pa.array(order)).combine_chunks().select(DOCUMENT_SCHEMA.names), facts[order]


# -- plan and write


def _write(work: Path, stages: list[Stage], recipe: Recipe, manifest: Manifest) -> Iterator[ShardRecord]:
    for number, shard in enumerate(plan_shards(stages, recipe)):
        tables = []
        for name, rows in shard.stages:
            with pa.memory_map(name) as file:
                table = pa.ipc.open_file(file).read_all()
            tables.append(table if rows is None else table.take(pa.array(rows)))
        yield write_shard(
            work, number, with_pairs(pa.concat_tables(tables), shard.pairs), shard.pieces,
            sequence_length=recipe.sequence_length,
            pad_id=manifest.pad_id, vocab_size=manifest.vocab_size, recipe_fingerprint=recipe.fingerprint(),
        )  # fmt: skip
