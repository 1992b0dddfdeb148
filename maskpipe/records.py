"""The map step: what becomes of the records of one chunk. Documents go to a stage file, everything else is counted."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from maskpipe import _core
from maskpipe.branches import encode_all, join
from maskpipe.chat import Conversation, Read, read_all
from maskpipe.commit import pack_array, unpack_array
from maskpipe.encoder import Begun, Encoder, count_loss
from maskpipe.errors import MaskpipeError, RecordError
from maskpipe.guard import UNGUARDED, Guard
from maskpipe.keys import are_needed, as_numbers, in_share, key_of
from maskpipe.recipe import Recipe
from maskpipe.roles import ROLE_NAMES
from maskpipe.shards.chunks import ChunkEntry
from maskpipe.shards.documents import DocumentBatch
from maskpipe.shards.format import DOCUMENT_SCHEMA
from maskpipe.sources import Chunk
from maskpipe.sources.chunk import Drafted
from maskpipe.strict_json import parse
from maskpipe.template.render import wrap
from maskpipe.template.shadow import prove
from maskpipe.tokenizer import Int32
from maskpipe.usual import UsualRecords

STAGE_DOCUMENTS = 512
"""Documents per record batch of a stage file."""


HELD_RECORDS = 32
HELD_BYTES = 16 << 10
"""Records whose texts go to the tokenizer together, so that it works from a warm cache; and how much text at most: so
little that the limits of the last one hold for all, whatever the text. Were a process lost with them, the task is run
again one by one."""


class _Held(NamedTuple):
    row: int
    parsed: Read | None
    """None where the core read the line by itself."""
    own: list[bytes]
    begun: list[Begun]
    draft: _core.Draft | None = None
    """What the core is to settle (usual.py); nothing is begun then."""
    line: bytes = b""
    """What was not parsed."""


@dataclass
class Mapped:
    """What the map step made of one chunk."""

    lengths: npt.NDArray[np.int32]  # [documents] tokens of each, in the order of the stage file
    records: int
    kept: int
    bytes: int
    """Of the records as they were read, before parsing."""
    counts: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    """Lines of rejects.jsonl: source, row, reason, message."""
    dropped: list[dict[str, Any]] = field(default_factory=list)
    """Lines of dropped.jsonl: source, row, turn, policy."""
    role_names: set[str] = field(default_factory=set)
    loss_tokens: int = 0
    runs: int = 0
    """Stretches of tokens with the same facts; counted by a dry run only."""
    source: int = 0
    first_row: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Records that the recipe does not take, by reason: beyond_cap, not_selected."""
    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """[2 * conversations] Keys (keys.py) of the conversations that have documents, if the recipe needs them."""
    key_rows: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[conversations] Number of the record in the chunk."""
    document_keys: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[documents] Number of the conversation, or of the pair."""
    units: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[documents] In preference data, number in the chunk of what must stand in one row: a pair, or one answer."""

    @property
    def entry(self) -> ChunkEntry:
        """The chunk's line of chunks.jsonl."""
        return ChunkEntry(self.source, self.first_row, self.records, self.counts)

    def to_dict(self) -> dict[str, Any]:
        """For the commit record: nothing in it but what the records and the recipe decide."""
        return {
            **vars(self),
            **{name: pack_array(getattr(self, name)) for name in _ARRAYS},
            "counts": dict(self.counts),
            "left_out": dict(self.left_out),
            "role_names": sorted(self.role_names),
        }

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Mapped:
        return Mapped(
            **{
                **value,
                **{name: unpack_array(value[name]) for name in _ARRAYS},
                "counts": Counter(value["counts"]),
                "left_out": Counter(value["left_out"]),
                "role_names": set(value["role_names"]),
            }
        )


_ARRAYS = ("lengths", "keys", "key_rows", "document_keys", "units")


def new_batch(size: int = 0) -> Mapped:
    """Nothing yet, of a chunk of this many bytes."""
    return Mapped(np.zeros(0, np.int32), 0, 0, size)


def map_chunk(encoder: Encoder, chunk: Chunk, sink: Any, proof: int | None, guard: Guard) -> Mapped:
    """What becomes of the records of one chunk; their documents are written to `sink`, an open file, as Arrow IPC."""
    out = new_batch(len(chunk.payload))
    out.source, out.first_row = chunk.source, chunk.first_row
    lengths: list[int] = []
    options = pa.ipc.IpcWriteOptions(use_threads=False)
    with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), DOCUMENT_SCHEMA, options=options) as writer:
        add_records(encoder, chunk, out, lengths, writer, None, proof, guard)
    out.lengths = np.array(lengths, np.int32)
    return out


def sample_texts(encoder: Encoder, chunk: Chunk, most: int, guard: Guard = UNGUARDED) -> list[str]:
    """The first texts of the chunk that go to the tokenizer, the last one cut: together at most `most` characters, as
    no record answers for what is done with them."""
    out: list[str] = []
    left = most
    for row, record in chunk.records(_judge(chunk, guard)):
        if left <= 0:
            break
        try:
            if isinstance(record, RecordError):
                continue
            items = _parsed(record, encoder.recipe, chunk, row).items
        except RecordError:
            continue  # add_records comes to it again, and says so
        for text in itertools.chain.from_iterable(encoder.begin(item).texts for item in items):
            out.append(text[: max(0, left)])
            left -= len(text)
    guard.leave()
    return out


def _judge(chunk: Chunk, guard: Guard) -> Callable[[int, int], RecordError | None]:
    """Asked before a record is touched: why it must not be."""

    def judge(row: int, size: int) -> RecordError | None:
        refused = guard.enter(row, size)
        return None if refused is None else RecordError(f"{chunk.place(row)}: {refused}", refused.reason)

    return judge


def add_records(
    encoder: Encoder,
    chunk: Chunk,
    out: Mapped,
    lengths: list[int],
    writer: Any,
    limit: int | None,
    proof: int | None,
    guard: Guard = UNGUARDED,
) -> None:
    """Adds what becomes of a chunk's records to `out`."""
    documents = DocumentBatch()
    keyed = are_needed(encoder.recipe)
    keys, key_rows, document_keys = bytearray(), array("i"), array("i")
    paired, units, n_units = encoder.recipe.objective == "preference", array("i"), 0
    held: list[_Held] = []
    held_bytes = 0
    together = proof is None and not guard.one_by_one
    usual = UsualRecords.of(encoder) if proof is None else None
    reads_lines = usual is not None and usual.reads_lines and not keyed and chunk.share >= 1

    def settle_usual(record: _Held, ids: Int32) -> bool:
        """Adds a record that the core settles; False where it does not."""
        if record.draft is None or usual is None or not usual.settle(record.draft, ids, documents.core):
            return False
        row, draft = record.row, record.draft
        if usual.must_compare(draft):
            parsed = record.parsed or _parsed(parse(record.line), encoder.recipe, chunk, row)
            usual.compare(draft, documents.core, encode_all(encoder, parsed).encoded, chunk.place(row))
        if keyed:
            document_keys.append(len(key_rows))
            key_rows.append(row - chunk.first_row)
            keys.extend(record.own[0])
        documents.add_usual(chunk.source, row)
        lengths.append(len(ids))
        out.kept += 1
        if record.parsed is not None:
            add_role_names(record.parsed)
        return True

    def add_role_names(parsed: Read) -> None:
        for item in parsed.items:
            if isinstance(item, Conversation):
                out.role_names.update([str(m["role"]) for m in item.messages if m["role"] not in ROLE_NAMES])

    def settle() -> None:
        """Adds what becomes of the records held."""
        nonlocal n_units
        if not held:
            return
        guard.blame([record.row for record in held])
        begun_items = [begun for record in held for begun in record.begun]
        texts = [text for begun in begun_items for text in begun.texts]
        ids = encoder.ids([*texts, *(record.draft.text() for record in held if record.draft is not None)])
        encoded_items = iter(encoder.finish(begun_items, ids[: len(texts)]))
        drafted = iter(ids[len(texts) :])
        for record in held:
            if record.draft is not None and settle_usual(record, next(drafted)):
                continue
            row, parsed, own, begun, draft, line = record
            if parsed is None:
                parsed = _parsed(parse(line), encoder.recipe, chunk, row)
            if draft is None:
                branches = join(parsed, [next(encoded_items) for _ in begun], encoder.recipe)
            else:  # it is not usual after all
                branches = encode_all(encoder, parsed)
            encoded = branches.encoded
            out.counts.update(encoded.counts)
            if encoded.dropped:
                out.dropped += [
                    {"source": chunk.source, "row": row, "turn": turn, "policy": why} for turn, why in encoded.dropped
                ]
            if encoded.refused is not None:
                _reject(out, chunk, row, RecordError(f"{chunk.place(row)}: {encoded.refused}", encoded.refused.reason))
                continue
            out.kept += 1
            if paired:
                encoded.documents = [
                    document if document.pair is None else replace(document, pair=n_units + of)
                    for document, of in zip(encoded.documents, branches.of, strict=True)
                ]
                units.extend(n_units + of for of in branches.of)
                n_units += branches.of[-1] + 1
            if keyed:
                used = sorted(set(branches.of))
                place = {number: len(key_rows) + k for k, number in enumerate(used)}
                document_keys.extend(place[number] for number in branches.of)
                key_rows.extend([row - chunk.first_row] * len(used))
                keys.extend(b"".join(own[number] for number in used))
            out.loss_tokens += sum(map(count_loss, encoded.documents))
            lengths.extend([len(document) for document in encoded.documents])
            add_role_names(parsed)
            for item in parsed.items:
                if isinstance(item, Conversation) and proof is not None and (proof < 0 or row < proof):
                    _prove(encoder, item, out, chunk.place(row))
            for document in encoded.documents:
                documents.add(document)
        held.clear()
        guard.blame(None)

    def write() -> None:
        """Writes the documents that are settled."""
        guard.leave()
        table = documents.take()
        if writer is None:
            out.runs += int(pc.sum(pc.list_value_length(table["runs"])).as_py() or 0)
        else:
            writer.write_table(table)

    read = usual.read if usual is not None and reads_lines else None
    for row, record in chunk.records(_judge(chunk, guard), read) if chunk.take != 0 else ():
        if limit is not None and limit <= 0:
            break
        if row - chunk.first_row == chunk.take:
            break
        limit = None if limit is None else limit - 1
        out.records += 1
        parsed: Read | None = None
        draft: _core.Draft | None = None
        line = b""
        try:
            if isinstance(record, RecordError):
                raise record
            if isinstance(record, Drafted):
                draft, line = record
            else:
                parsed = _parsed(record, encoder.recipe, chunk, row)
        except RecordError as error:
            settle()
            held_bytes = 0
            if encoder.recipe.on_bad_record == "stop":
                if "--on-bad-record reject" in str(error):  # which it advises already
                    raise
                raise RecordError(
                    f"{error}. To list such records in rejects.jsonl and go on: --on-bad-record reject", error.reason
                ) from None
            _reject(out, chunk, row, error)
            continue
        own = [key_of(*unit) for unit in parsed.units()] if parsed is not None and (keyed or chunk.share < 1) else []
        if chunk.share < 1 and not in_share(own, chunk.share):
            out.left_out["not_selected"] += 1
            continue
        begun: list[Begun] = []
        if parsed is not None:
            if usual is not None and len(parsed.items) == 1 and not parsed.counts:
                draft = usual.draft(parsed.items[0])
            if draft is None:
                begun = [encoder.begin(item) for item in parsed.items]
        size = sum([part.size for part in begun]) if draft is None else draft.size()
        if held_bytes + size > HELD_BYTES:
            settle()
            held_bytes = 0
        held.append(_Held(row, parsed, own, begun, draft, line))
        held_bytes += size
        if not together or held_bytes > HELD_BYTES or len(held) >= HELD_RECORDS:
            settle()
            held_bytes = 0
        if len(documents) >= STAGE_DOCUMENTS:
            write()
    settle()
    guard.leave()
    if len(documents):
        write()
    if usual is not None:
        counts, loss_tokens = usual.counts()
        out.counts.update(counts)
        out.loss_tokens += loss_tokens
    if 0 <= chunk.take < chunk.count and limit is None:
        out.records += chunk.count - chunk.take
        out.left_out["beyond_cap"] += chunk.count - chunk.take
    out.keys = as_numbers(bytes(keys)).reshape(-1)
    out.units = np.array(units, np.int32)
    out.key_rows, out.document_keys = np.array(key_rows, np.int32), np.array(document_keys, np.int32)
    out.counts.update(chunk.counts)


def _parsed(record: Any, recipe: Recipe, chunk: Chunk, row: int) -> Read:
    try:
        return read_all(record, recipe, source=chunk.source, row=row)
    except RecordError as error:
        raise RecordError(f"{chunk.place(row)}: {error}", error.reason) from None


def _reject(out: Mapped, chunk: Chunk, row: int, error: RecordError) -> None:
    out.rejects.append({"source": chunk.source, "row": row, "reason": error.reason, "message": str(error)})


def _prove(encoder: Encoder, conversation: Conversation, out: Mapped, place: str) -> None:
    given = {
        "tools": conversation.tools,
        "documents": conversation.documents,
        "kwargs": {**encoder.recipe.chat_template_kwargs, **conversation.chat_template_kwargs},
    }
    engine = encoder.template.engine
    trace = engine.trace(wrap(conversation.messages, **given))  # type: ignore[arg-type]
    proof = prove(engine, trace, conversation.messages, **given)  # type: ignore[arg-type]
    out.counts[f"proof_{proof.outcome}"] += 1
    if proof.outcome == "differs":
        raise MaskpipeError(f"{place}: provenance is not proved: {proof.detail}. Please report this template")
