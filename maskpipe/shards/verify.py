"""verify: every byte and every rule of a dataset, from the files alone.

bytes    each listed file: size, SHA-256, each region's hash; no file that a reader could mistake for a part of it
Arrow    each record batch: validate(full=True), no nulls, the rules of rows
counts   recomputed per shard and equal to the manifest; the fingerprint from every row
ledger   every record of every source is in the shards or in rejects.jsonl, never both; cut documents are complete
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe import strict_yaml
from maskpipe.errors import DatasetError
from maskpipe.shards.batches import batch_hashes
from maskpipe.shards.chunks import read_chunks
from maskpipe.shards.format import (
    CARD_FILE,
    DOCUMENT_DTYPE,
    DROPPED,
    MANIFEST,
    MANIFEST_HASH,
    RECIPE,
    REGION_SIZE,
    REJECTS,
    RUN_FILE,
)
from maskpipe.shards.manifest import Counts, File, Manifest, Shard, fingerprint
from maskpipe.shards.reader import REPAIR, Member, ShardReader, VerifiedFile, read_manifest
from maskpipe.shards.rows import Rows, Structs, count, digests


@dataclass(frozen=True)
class Verified:
    """What was checked, all of it without a finding."""

    files: int
    bytes: int
    sequences: int
    tokens: int
    """Tokens of documents, without padding."""


def verify(path: str | Path) -> Verified:
    """What was checked. DatasetError names the first file that is not what it should be, where, and what to do.

    README.md, run.json, *.html reports and hidden files are outside the dataset. Reads everything once or twice; memory
    is a few MiB, 1 byte per record of the sources, and the fragments of documents that were cut by packing.
    """
    directory = Path(path)
    manifest = Manifest.from_json(read_manifest(directory), where=str(directory / MANIFEST))
    check_names(directory, manifest)
    for entry in manifest.files:
        check_file(directory, entry)
    check_recipe(directory, manifest)
    read_chunks(directory, manifest)
    ledger = Ledger(directory, manifest)
    row_digests = []
    for number in range(len(manifest.shards)):
        row_digests.append(_check_shard(directory, manifest, number, ledger))
    ledger.close()
    if fingerprint(manifest, row_digests) != manifest.fingerprint:
        raise DatasetError(f"{directory / MANIFEST}: the fingerprint is not that of the rows and the recipe; {REPAIR}")
    return Verified(
        files=len(manifest.files) + len(manifest.shards) + 2,
        bytes=sum(f.size for f in manifest.files) + sum(shard.size for shard in manifest.shards),
        sequences=manifest.totals.sequences,
        tokens=manifest.totals.n_tokens,
    )


def check_names(directory: Path, manifest: Manifest) -> None:
    """DatasetError for a listed file that is missing, and for one that a reader could mistake for a part."""
    listed = {f.name for f in manifest.files} | {s.name for s in manifest.shards} | {MANIFEST, MANIFEST_HASH}
    present = set(os.listdir(directory))
    missing = sorted(listed - present)
    if missing:
        raise DatasetError(f"{directory}: {missing[0]} is missing; {REPAIR}")
    outside = {CARD_FILE, RUN_FILE}
    extra = sorted(
        name for name in present - listed - outside if not name.startswith(".") and not name.endswith(".html")
    )
    if extra:
        raise DatasetError(f"{directory}: {extra[0]} is no part of this dataset; move it out of the directory")


def check_file(directory: Path, entry: File) -> None:
    """DatasetError unless the file has the size and the SHA-256 listed."""
    with Member(directory, entry.name) as member:
        member.expect_size(entry.size)
        digest = hashlib.sha256()
        for offset in range(0, entry.size, REGION_SIZE):
            digest.update(member.pread(min(REGION_SIZE, entry.size - offset), offset))
        if digest.hexdigest() != entry.sha256:
            raise DatasetError(f"{member.where}: its bytes are not what the manifest says; {REPAIR}")


def read_file(directory: Path, entry: File) -> bytes:
    """The content of a listed file. DatasetError when it is not what the manifest lists."""
    check_file(directory, entry)
    with Member(directory, entry.name) as member:
        return member.read_all()


def check_recipe(directory: Path, manifest: Manifest) -> None:
    """DatasetError unless recipe.yaml holds the manifest's recipe."""
    with Member(directory, RECIPE) as member:
        try:
            recipe = strict_yaml.parse(member.read_all())
        except ValueError as error:
            raise DatasetError(f"{member.where}: {error}") from None
    if recipe != manifest.recipe:
        raise DatasetError(f"{directory / RECIPE}: is not the recipe in {MANIFEST}; {REPAIR}")


def check_shard_bytes(directory: Path, entry: Shard) -> None:
    """DatasetError unless the shard has the size, the region hashes and the SHA-256 listed."""
    with Member(directory, entry.name) as member:
        file, digest = VerifiedFile(member, entry), hashlib.sha256()
        for region in range(len(entry.regions) // 16):
            digest.update(file.region(region))
        if digest.hexdigest() != entry.sha256:
            raise DatasetError(f"{member.where}: its bytes are not what the manifest says; {REPAIR}")


def check_batches(entry: Shard, reader: ShardReader) -> None:
    """DatasetError unless the record batches of the shard have the hashes listed."""
    try:
        batches = batch_hashes(reader.file.pread, entry.size)
    except ValueError as error:
        raise reader.wrong(str(error)) from None
    if batches != entry.batches:
        raise DatasetError(f"{reader.member.where}: batches are not the hashes of its record batches; {REPAIR}")


def _check_shard(directory: Path, manifest: Manifest, number: int, ledger: Ledger) -> bytes:
    """The digests of the shard's rows."""
    entry = manifest.shards[number]
    check_shard_bytes(directory, entry)
    reader = ShardReader(directory, manifest, number)
    try:
        check_batches(entry, reader)
        parts, row_digests = [], []
        for k in range(reader.n_batches):
            rows = reader.batch(k)
            parts.append(count(rows))
            row_digests.append(digests(rows))
            ledger.add(rows, entry.name)
    finally:
        reader.close()
    counts = Counts.total(parts)
    if counts != entry.counts:
        names = [name for name, value in vars(counts).items() if value != getattr(entry.counts, name)]
        raise DatasetError(
            f"{directory / entry.name}: {', '.join(names)} differ from what the manifest counts; {REPAIR}"
        )
    return b"".join(row_digests)


class Ledger:
    """Every record is accounted for once, and every cut document is complete."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._kept = [np.zeros(source.records, bool) for source in manifest.sources]
        self._fragments: list[Structs] = []
        self._tokens: list[npt.NDArray[np.int64]] = []

    def add(self, rows: Rows, name: str) -> None:
        documents = rows.documents
        if np.any(documents["source"] >= len(self._kept)):
            raise DatasetError(
                f"{self._directory / name}: a document names a source that the manifest does not list; {REPAIR}"
            )
        for source in np.unique(documents["source"]).tolist():
            of = documents["row"][documents["source"] == source]
            if of.max() >= len(self._kept[source]):
                raise DatasetError(
                    f"{self._directory / name}: a document comes from record {of.max()} of source {source}, which has "
                    f"{len(self._kept[source])} records; {REPAIR}"
                )
            self._kept[source][of] = True
        starts = np.zeros(len(documents), np.int64)
        starts[1:] = documents["end"][:-1]
        starts[rows.document_offsets[:-1]] = 0
        tokens = documents["end"] - starts
        cut = tokens != documents["length"]
        self._fragments.append(documents[cut])
        self._tokens.append(tokens[cut])

    def close(self) -> None:
        """Once all rows were added."""
        self.check_kept()
        self.check_apart()
        self.check_rejects()
        self.check_dropped()
        self.check_fragments()

    def check_kept(self) -> None:
        """As many records are in the shards as the manifest says."""
        kept = sum(int(records.sum()) for records in self._kept)
        if kept != self._manifest.records_kept:
            raise DatasetError(
                f"{self._directory}: the shards hold {kept} records, {MANIFEST} says "
                f"{self._manifest.records_kept}; {REPAIR}"
            )

    def check_rejects(self) -> None:
        """rejects.jsonl lists what the manifest counts."""
        reasons = Counter(entry["reason"] for _, entry in self._rejects())
        if reasons != Counter(self._manifest.rejected):
            raise DatasetError(f"{self._directory / REJECTS}: rejects are not those that {MANIFEST} counts; {REPAIR}")

    def check_apart(self) -> None:
        """No record is in the shards and rejected, or rejected twice."""
        taken = [records.copy() for records in self._kept]
        for where, entry in self._rejects():
            records = taken[entry["source"]]
            if records[entry["row"]]:
                raise DatasetError(
                    f"{where}: record {entry['row']} of source {entry['source']} is kept or rejected already; {REPAIR}"
                )
            records[entry["row"]] = True

    def check_dropped(self) -> None:
        """dropped.jsonl lists what the manifest counts."""
        entries = self._entries(DROPPED, {"source": int, "row": int, "turn": int, "policy": str})
        if Counter(entry["policy"] for _, entry in entries) != Counter(self._manifest.dropped):
            raise DatasetError(
                f"{self._directory / DROPPED}: dropped documents are not those that {MANIFEST} counts; {REPAIR}"
            )

    def _rejects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return self._entries(REJECTS, {"source": int, "row": int, "reason": str, "message": str})

    def _entries(self, name: str, kinds: dict[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
        with Member(self._directory, name) as member:
            text = member.read_all()
        if text and not text.endswith(b"\n"):
            raise DatasetError(f"{member.where}: does not end with a newline; {REPAIR}")
        for number, line in enumerate(text.split(b"\n")[:-1], 1):
            where = f"{member.where}:{number}"
            try:
                entry = json.loads(line)
            except ValueError:
                raise DatasetError(f"{where}: not valid JSON; {REPAIR}") from None
            if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != kinds:
                raise DatasetError(f"{where}: expected the keys {', '.join(kinds)}; {REPAIR}")
            source, row = entry["source"], entry["row"]
            if not (0 <= source < len(self._kept) and 0 <= row < len(self._kept[source])):
                raise DatasetError(f"{where}: names a record that no source has; {REPAIR}")
            yield where, entry

    def check_fragments(self) -> None:
        """The pieces of every document that packing cut meet and cover it."""
        fragments = np.concatenate([np.empty(0, DOCUMENT_DTYPE), *self._fragments])
        tokens = np.concatenate([np.empty(0, np.int64), *self._tokens])
        stops = fragments["start"] + tokens
        key = ("source", "row", "turn", "branch", "length")
        # Of one record there may be several documents alike but for their place: so many must begin, go on and end.
        opened: Counter[tuple[int, ...]] = Counter()
        for fragment, stop in zip(fragments.tolist(), stops.tolist(), strict=True):
            values = dict(zip(DOCUMENT_DTYPE.names or (), fragment, strict=True))
            of = tuple(values[name] for name in key)
            opened[(*of, values["start"])] += 1
            opened[(*of, stop)] -= 1
        for (*document, place), balance in opened.items():
            if place not in (0, document[-1]) and balance != 0:
                raise DatasetError(
                    f"{self._directory}: a document of source {document[0]}, record {document[1]} is not complete "
                    f"at token {place}; {REPAIR}"
                )
        begun = sum(n for (*_, place), n in opened.items() if place == 0)
        ended = -sum(n for (*document, place), n in opened.items() if place == document[-1])
        if begun != ended:
            raise DatasetError(f"{self._directory}: {begun} cut documents begin and {ended} end; {REPAIR}")
