"""manifest.json: what a dataset is, and the hash of every byte of it. Opening reads this file and no other.

Parsing is strict: what the format does not name, or what does not add up, is refused (F4-F9, F24-F29). Time, machine,
paths, versions and worker counts are not in it: they go to run.json, outside the dataset's identity.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from maskpipe.errors import DatasetError
from maskpipe.recipe import Recipe
from maskpipe.roles import Part, Role
from maskpipe.shards.format import (
    DROPPED,
    FILE_NAME,
    FORMAT_VERSION,
    LABEL_VERSION,
    MANIFEST,
    MANIFEST_HASH,
    RECIPE,
    REGION_SIZE,
    REJECTS,
    RUN_FILE,
    SHARD_NAME,
    batch_rows,
)

_KEYS = frozenset(f"{role.name.lower()}.{part.name.lower()}" for role in Role for part in Part)
_INT32 = 2**31 - 1
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Counts:
    """What rows hold. Maps go from "role.part" (names of roles.py in lower case) to tokens, without zeros."""

    sequences: int = 0
    documents: int = 0
    """Documents that begin here."""
    fragments: int = 0
    """Documents and parts of documents: what the rows' `documents` list."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """All tokens, padding included."""
    sampled: Mapping[str, int] = field(default_factory=dict)
    loss: Mapping[str, int] = field(default_factory=dict)
    straddles: int = 0
    cuts: int = 0
    """Tokens before which the encoding was cut."""
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """Verdict ("exact", or names of Verdict joined by +) → assistant turns: those of each document, of a split document
    its own turn only; counted where the document begins."""

    @staticmethod
    def total(parts: Iterable[Counts]) -> Counts:
        """The sum of all parts."""
        plain = dict.fromkeys(_PLAIN_COUNTS, 0)
        maps: dict[str, dict[str, int]] = {name: {} for name in _MAP_COUNTS}
        for part in parts:
            for name in _PLAIN_COUNTS:
                plain[name] += getattr(part, name)
            for name, sums in maps.items():
                for key, n in getattr(part, name).items():
                    sums[key] = sums.get(key, 0) + n
        return Counts(**plain, **maps)  # type: ignore[arg-type]

    @property
    def padding(self) -> int:
        return self.tokens.get("padding.none", 0)

    @property
    def n_tokens(self) -> int:
        """Tokens of documents."""
        return sum(self.tokens.values()) - self.padding

    @property
    def n_loss(self) -> int:
        return sum(self.loss.values())

    @property
    def fill(self) -> float:
        """Share of positions that hold a token of a document; 0 without sequences."""
        total = sum(self.tokens.values())
        return round(self.n_tokens / total, 6) if total else 0.0

    @property
    def signals_per_sequence(self) -> float:
        """Mean number of tokens with loss per sequence; 0 without sequences."""
        return round(self.n_loss / self.sequences, 3) if self.sequences else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _PLAIN_COUNTS},
            **{name: dict(sorted(getattr(self, name).items())) for name in _MAP_COUNTS},
        }


_PLAIN_COUNTS = ("sequences", "documents", "fragments", "straddles", "cuts")
_MAP_COUNTS = ("tokens", "sampled", "loss", "verdicts")


@dataclass(frozen=True)
class Source:
    """One input, in the order given; `Document.source` is its index."""

    name: str
    """File name without directories, or another name a person recognises."""
    sha256: str
    """Of the raw input bytes; what a character-level trace needs to find the same text again."""
    records: int

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "records": self.records}


@dataclass(frozen=True)
class File:
    """A file of the dataset that is no shard."""

    name: str
    size: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Shard:
    """One Arrow file."""

    name: str
    size: int
    sha256: str
    regions: str
    """xxh3_64 of each REGION_SIZE bytes of the file, 16 hex digits each, one after the other: region k begins at byte
    k * REGION_SIZE and the last one ends with the file, so they tile it."""
    batches: str
    """xxh3_64 of each record batch without its ids (batches.batch_hashes), 16 hex digits each."""
    counts: Counts

    @property
    def rows(self) -> int:
        return self.counts.sequences

    def region_hash(self, region: int) -> str:
        return self.regions[16 * region : 16 * region + 16]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": self.size,
            "sha256": self.sha256,
            "regions": self.regions,
            "batches": self.batches,
            "counts": self.counts.to_dict(),
        }

    @staticmethod
    def from_dict(value: Any, where: str = "shard") -> Shard:
        """DatasetError, beginning with `where`, for anything but a valid entry."""
        entry = _object(
            value, where, {"name": str, "size": int, "sha256": str, "regions": str, "batches": str, "counts": dict}
        )
        counts = _counts(entry["counts"], where)
        shard = Shard(entry["name"], entry["size"], entry["sha256"], entry["regions"], entry["batches"], counts)
        match = SHARD_NAME.fullmatch(shard.name)
        if not match:
            raise DatasetError(f"{where}: {shard.name!r} is no name of a shard; expected part-NNNNN-<16 hex>.arrow")
        _sha256(shard.sha256, where)
        if match[2] != shard.sha256[:16]:
            raise DatasetError(f"{where}: the name {shard.name} does not carry the hash {shard.sha256[:16]}…")
        expected = 16 * -(-shard.size // REGION_SIZE)
        if shard.size < 1 or len(shard.regions) != expected:  # what is no hash in it will equal none
            raise DatasetError(
                f"{where}: {shard.name}: regions do not tile its {shard.size} bytes; expected {expected} hex digits, "
                f"got {len(shard.regions)}"
            )
        if not (shard.regions + shard.batches).isascii():
            raise DatasetError(f"{where}: {shard.name}: regions and batches are no hexadecimal digits")
        return shard


@dataclass(frozen=True)
class ShardRecord:
    """What write_shard returns, and a task's commit record may keep: the manifest's entry, and what the fingerprint
    needs."""

    shard: Shard
    row_digests: bytes
    """32 bytes per row; see rows.digests."""

    def to_dict(self) -> dict[str, Any]:
        return {"shard": self.shard.to_dict(), "row_digests": self.row_digests.hex()}

    @staticmethod
    def from_dict(value: Any) -> ShardRecord:
        entry = _object(value, "shard record", {"shard": dict, "row_digests": str})
        shard = Shard.from_dict(entry["shard"], "shard record")
        try:
            digests = bytes.fromhex(entry["row_digests"])
        except ValueError:
            raise DatasetError("shard record: row_digests is not hexadecimal") from None
        if len(digests) != 32 * shard.rows:
            raise DatasetError(
                f"shard record: {shard.name} has {shard.rows} rows but {len(digests)} bytes of row digests"
            )
        return ShardRecord(shard, digests)


@dataclass(frozen=True)
class Manifest:
    """A dataset."""

    recipe: Mapping[str, Any]
    """Resolved: every key of Recipe, plain values."""
    sequence_length: int
    vocab_size: int
    pad_id: int
    sources: tuple[Source, ...]
    role_names: tuple[str, ...]
    """Names of the data's roles that are Role.OTHER in the shards, sorted."""
    records_kept: int
    """Records with at least one document in the shards."""
    rejected: Mapping[str, int]
    """Reason → records; they are listed in rejects.jsonl."""
    left_out: Mapping[str, int]
    """Reason → records that the recipe leaves out: beyond_cap, not_selected, duplicate, other_side."""
    dropped: Mapping[str, int]
    """Policy → documents of kept or rejected records that it left without a token to train; listed in dropped.jsonl."""
    files: tuple[File, ...]
    """recipe.yaml, rejects.jsonl, dropped.jsonl and what was embedded (tokenizer, template), sorted by name."""
    shards: tuple[Shard, ...]
    """In the order of their rows."""
    fingerprint: str
    """SHA-256 of the logical content and the recipe (F31); the same however the rows are spread over shards."""
    label_version: int = LABEL_VERSION
    format: tuple[int, int] = FORMAT_VERSION

    @cached_property
    def totals(self) -> Counts:
        """The sum of all shards."""
        return Counts.total(shard.counts for shard in self.shards)

    @property
    def records(self) -> int:
        return sum(source.records for source in self.sources)

    @property
    def recipe_sha256(self) -> str:
        return recipe_fingerprint(self.recipe)

    @staticmethod
    def build(
        shards: Sequence[ShardRecord],
        *,
        recipe: Recipe,
        vocab_size: int,
        pad_id: int,
        sources: Sequence[Source],
        records_kept: int,
        rejected: Mapping[str, int],
        dropped: Mapping[str, int],
        files: Mapping[str, bytes | Path],
        left_out: Mapping[str, int] = {},
        role_names: Sequence[str] = (),
    ) -> Manifest:
        """The manifest of these shards, in this order. `files` is everything else that is covered, by name:
        rejects.jsonl, dropped.jsonl (see json_lines) and embedded files, as bytes or a path to copy from; recipe.yaml
        is added.

        DatasetError when something does not add up, before anything is published.
        """
        resolved = recipe.to_dict()
        contents: dict[str, bytes | Path] = {RECIPE: recipe_yaml(resolved), **files}
        manifest = Manifest(
            recipe=resolved,
            sequence_length=recipe.sequence_length,
            vocab_size=vocab_size,
            pad_id=pad_id,
            sources=tuple(sources),
            role_names=tuple(sorted(role_names)),
            records_kept=records_kept,
            rejected=dict(sorted(rejected.items())),
            left_out={reason: n for reason, n in sorted(left_out.items()) if n},
            dropped=dict(sorted(dropped.items())),
            files=tuple(_describe(name, contents[name]) for name in sorted(contents)),
            shards=tuple(record.shard for record in shards),
            fingerprint="",
        )
        digests = (record.row_digests for record in shards)
        manifest = replace(manifest, fingerprint=fingerprint(manifest, digests))
        return Manifest.from_json(manifest.to_json(), where=MANIFEST)

    def to_json(self) -> bytes:
        """UTF-8, one line per key, shard, source and file, so that it diffs well and 10,000 shards parse fast."""
        totals = self.totals
        values: dict[str, Any] = {
            "format": ".".join(map(str, self.format)),
            "label_version": self.label_version,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "recipe_sha256": self.recipe_sha256,
            "sequence_length": self.sequence_length,
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "role_names": list(self.role_names),
            "records": {
                "read": self.records,
                "kept": self.records_kept,
                "rejected": dict(self.rejected),
                "left_out": dict(self.left_out),
            },
            "dropped": dict(self.dropped),
            "totals": {**totals.to_dict(), "fill": totals.fill, "signals_per_sequence": totals.signals_per_sequence},
            "sources": [source.to_dict() for source in self.sources],
            "files": [entry.to_dict() for entry in self.files],
            "shards": [shard.to_dict() for shard in self.shards],
        }
        return (
            "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(value)}" for key, value in values.items()) + "\n}\n"
        ).encode()

    @staticmethod
    def from_json(data: bytes, where: str = MANIFEST) -> Manifest:
        """DatasetError, beginning with `where`, for anything but a valid manifest of a version this code reads."""
        document = _parse(data, where)
        _check_version(document, where)
        entry = _object(document, where, _MANIFEST_KEYS)
        counts = _object(
            entry["records"], f"{where}: records", {"read": int, "kept": int, "rejected": dict, "left_out": dict}
        )
        manifest = Manifest(
            recipe=entry["recipe"],
            sequence_length=entry["sequence_length"],
            vocab_size=entry["vocab_size"],
            pad_id=entry["pad_id"],
            sources=tuple(_source(value, f"{where}: sources[{k}]") for k, value in enumerate(entry["sources"])),
            role_names=tuple(_strings(entry["role_names"], f"{where}: role_names")),
            records_kept=counts["kept"],
            rejected=_counted(counts["rejected"], f"{where}: records.rejected"),
            left_out=_counted(counts["left_out"], f"{where}: records.left_out"),
            dropped=_counted(entry["dropped"], f"{where}: dropped"),
            files=tuple(_file(value, f"{where}: files[{k}]") for k, value in enumerate(entry["files"])),
            shards=tuple(Shard.from_dict(value, f"{where}: shards[{k}]") for k, value in enumerate(entry["shards"])),
            fingerprint=entry["fingerprint"],
            label_version=entry["label_version"],
            format=_version(entry["format"], where),
        )
        _check(manifest, entry, counts["read"], where)
        return manifest


def fingerprint(manifest: Manifest, row_digests: Iterable[bytes]) -> str:
    """F31: SHA-256 over a header of what the rows mean and the digests of all rows in order.

    Rows are hashed one by one and only then chained, so workers hash in parallel, and neither the number of shards nor
    Arrow's encoding has a part in it.
    """
    header = {
        "format": manifest.format[0],
        "label_version": manifest.label_version,
        "recipe": manifest.recipe_sha256,
        "sequence_length": manifest.sequence_length,
        "vocab_size": manifest.vocab_size,
        "pad_id": manifest.pad_id,
        "role_names": list(manifest.role_names),
        "sources": [[source.sha256, source.records] for source in manifest.sources],
    }
    total = hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    for digests in row_digests:
        total.update(digests)
    return total.hexdigest()


def recipe_fingerprint(recipe: Mapping[str, Any]) -> str:
    """Recipe.fingerprint of a resolved recipe's plain values."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def recipe_yaml(recipe: Mapping[str, Any]) -> bytes:
    """The text of recipe.yaml."""
    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return text.encode()


def json_lines(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """The text of rejects.jsonl ({"source": int, "row": int, "reason": str, "message": str}) and dropped.jsonl
    ({"source": int, "row": int, "turn": int, "policy": str}): ASCII JSON, one entry per line, keys sorted."""
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries).encode()


def manifest_hash(data: bytes) -> bytes:
    """The content of manifest.sha256: what `sha256sum manifest.json` prints."""
    return f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode()


_MANIFEST_KEYS: dict[str, type] = {
    "format": str,
    "label_version": int,
    "fingerprint": str,
    "recipe": dict,
    "recipe_sha256": str,
    "sequence_length": int,
    "vocab_size": int,
    "pad_id": int,
    "role_names": list,
    "records": dict,
    "dropped": dict,
    "totals": dict,
    "sources": list,
    "files": list,
    "shards": list,
}
_COUNT_KEYS: dict[str, type] = {**dict.fromkeys(_PLAIN_COUNTS, int), **dict.fromkeys(_MAP_COUNTS, dict)}


def _parse(data: bytes, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            raise DatasetError(f"{where}: the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
        return result

    def refuse(constant: str) -> Any:
        raise DatasetError(f"{where}: {constant} is no JSON number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{where}: not valid JSON: {error}") from None


def _check_version(document: Any, where: str) -> None:
    if not isinstance(document, dict) or not isinstance(document.get("format"), str):
        raise DatasetError(f'{where}: not a maskpipe manifest; it has no "format"')
    major, minor = _version(document["format"], where)
    if major != FORMAT_VERSION[0]:
        raise DatasetError(
            f"{where}: format {major}.{minor} is not known to this maskpipe, which reads {FORMAT_VERSION[0]}.x; "
            "update maskpipe"
        )
    if minor > FORMAT_VERSION[1]:  # a later minor version may add top-level keys, and only such as a reader may ignore
        for key in document.keys() - _MANIFEST_KEYS.keys():
            del document[key]


def _version(text: str, where: str) -> tuple[int, int]:
    parts = text.split(".")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) <= 6 and str(int(p)) == p for p in parts):
        raise DatasetError(f'{where}: {text!r} is no format version such as "1.0"')
    return int(parts[0]), int(parts[1])


def _object(value: Any, where: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """`value` as an object with exactly these keys of these types; integers are at least 0 and fit 64 bits."""
    if type(value) is not dict:
        raise DatasetError(f"{where}: expected an object, got {type(value).__name__}")
    if value.keys() != kinds.keys():
        unknown, missing = sorted(value.keys() - kinds.keys()), sorted(kinds.keys() - value.keys())
        raise DatasetError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; another version of maskpipe wrote it: "
            "prepare the dataset anew with this one"
        )
    for key, kind in kinds.items():
        if type(value[key]) is not kind:
            raise DatasetError(f"{where}: {key} must be {kind.__name__}, got {type(value[key]).__name__}")
        if kind is int and not 0 <= value[key] < 2**63:
            raise DatasetError(f"{where}: {key} is {value[key]}, out of range")
    return value


def _counted(value: Any, where: str, keys: frozenset[str] | None = None) -> dict[str, int]:
    if type(value) is not dict:
        raise DatasetError(f"{where}: expected an object, got {type(value).__name__}")
    for key, number in value.items():
        if type(number) is not int or not 0 < number < 2**63:
            raise DatasetError(f"{where}: {key} must be a positive integer, got {number!r}")
        if keys is not None and key not in keys:
            raise DatasetError(f"{where}: {key!r} is no role and part")
    return value


def _strings(value: Sequence[Any], where: str) -> Sequence[str]:
    if any(type(entry) is not str for entry in value):
        raise DatasetError(f"{where}: expected strings")
    return value


def _sha256(value: str, where: str) -> None:
    if not _SHA256.fullmatch(value):
        raise DatasetError(f"{where}: {value!r} is no SHA-256 in lower-case hex")


def _counts(value: Any, where: str, extra: Mapping[str, type] | None = None) -> Counts:
    entry = _object(value, where, {**_COUNT_KEYS, **(extra or {})})
    for name in _MAP_COUNTS:
        _counted(entry[name], f"{where}: {name}", None if name == "verdicts" else _KEYS)
    return Counts(**{name: entry[name] for name in (*_PLAIN_COUNTS, *_MAP_COUNTS)})


def _source(value: Any, where: str) -> Source:
    source = Source(**_object(value, where, {"name": str, "sha256": str, "records": int}))
    _sha256(source.sha256, where)
    return source


def _file(value: Any, where: str) -> File:
    entry = File(**_object(value, where, {"name": str, "size": int, "sha256": str}))
    if not FILE_NAME.fullmatch(entry.name) or entry.name in (MANIFEST, MANIFEST_HASH, RUN_FILE):
        raise DatasetError(f"{where}: {entry.name!r} is no name that a manifest may list (a-z, 0-9, '.', '_', '-')")
    _sha256(entry.sha256, where)
    return entry


def _wrong_shard(shard: Shard, place: int, length: int) -> str | None:
    """What a shard at this place in a dataset of sequences of `length` cannot be; there may be many, so nothing is said
    of those that are right."""
    counts = shard.counts
    index = SHARD_NAME.fullmatch(shard.name)
    if index is None or index[1] != f"{place:05d}":
        return f"stands at place {place}"
    if shard.rows < 1:
        return "has no rows"
    expected = 16 * -(-shard.rows // batch_rows(length))
    if len(shard.batches) != expected:
        return f"has {len(shard.batches)} hex digits of batches, its {shard.rows} rows need {expected}"
    total = sum(counts.tokens.values())
    if total != shard.rows * length:
        return f"has {shard.rows} rows but {total} tokens"
    if not (shard.rows <= counts.fragments and counts.documents <= counts.fragments):
        return "has documents that do not add up"
    for part, whole in (("loss", counts.loss), ("sampled", counts.sampled)):
        more = [key for key, n in whole.items() if n > counts.tokens.get(key, 0)]
        if more:
            return f"has more {part} than tokens in {more}"
    return None


def _check(manifest: Manifest, entry: Mapping[str, Any], records_read: int, where: str) -> None:
    """What a manifest says more than once must agree."""

    def demand(holds: bool, problem: str) -> None:
        if not holds:
            raise DatasetError(f"{where}: {problem}")

    _sha256(manifest.fingerprint, f"{where}: fingerprint")
    demand(manifest.label_version >= 1, "label_version must be at least 1")
    demand(
        2 <= manifest.sequence_length <= _INT32, f"sequence_length {manifest.sequence_length} is not in [2, 2^31 - 1]"
    )
    demand(1 <= manifest.vocab_size <= _INT32, f"vocab_size {manifest.vocab_size} is not in [1, 2^31 - 1]")
    demand(manifest.pad_id < manifest.vocab_size, f"pad_id {manifest.pad_id} is not in the vocabulary")
    demand(entry["recipe_sha256"] == manifest.recipe_sha256, "recipe_sha256 is not the hash of recipe")
    length = manifest.recipe.get("sequence_length")
    demand(
        length == manifest.sequence_length,
        f"the recipe asks for sequence_length {length}, the shards have {manifest.sequence_length}",
    )
    demand(records_read == manifest.records, f"{records_read} records read, but the sources have {manifest.records}")
    known = manifest.records_kept + sum(manifest.rejected.values()) + sum(manifest.left_out.values())
    names = list(manifest.role_names)
    demand(names == sorted(set(names)), "role_names are not sorted, each once")
    demand(known == records_read, f"{records_read} records read, but {known} are kept, rejected or left out")
    names = [f.name for f in manifest.files] + [s.name for s in manifest.shards]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    demand(not twice, f"{twice} is listed twice")
    missing = [name for name in (RECIPE, REJECTS, DROPPED) if name not in names]
    demand(not missing, f"{missing} is not listed")
    for k, shard in enumerate(manifest.shards):
        problem = _wrong_shard(shard, k, manifest.sequence_length)
        if problem is not None:
            raise DatasetError(f"{where}: shards[{k}] ({shard.name}) {problem}")
    totals = _counts(entry["totals"], f"{where}: totals", {"fill": float, "signals_per_sequence": float})
    demand(totals == manifest.totals, "totals are not the sum of the shards")
    demand(entry["totals"]["fill"] == totals.fill, "totals.fill does not follow from the counts")
    demand(
        entry["totals"]["signals_per_sequence"] == totals.signals_per_sequence,
        "totals.signals_per_sequence does not follow from the counts",
    )


def _describe(name: str, content: bytes | Path) -> File:
    if isinstance(content, bytes):
        return File(name, len(content), hashlib.sha256(content).hexdigest())
    with content.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return File(name, stream.tell(), digest.hexdigest())


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(entry, separators=(",", ":")) for entry in value) + "\n ]"
    return json.dumps(value)
