"""merge: several datasets of one recipe and one tokenizer as one; append: new sources to a dataset.

    A: sources 0 1, rows a…    B: source 0, rows b…   ─▶   sources 0 1 2, rows a… b…, the documents of B from source 2

Rows stay as they are; only source numbers (and the numbers of preference pairs) move up. Nothing is tokenized or packed
again: `repack` of the result is what one preparation of all the sources makes. Memory: one record batch.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskpipe.derived import listed, new_dataset, publish_derived, require_chunks
from maskpipe.errors import MaskpipeError, UsageError
from maskpipe.mapping import Progress
from maskpipe.partial import refuse_taken
from maskpipe.pipeline import prepare
from maskpipe.recipe import Recipe
from maskpipe.shards.chunks import ChunkEntry, read_chunks
from maskpipe.shards.format import CHUNKS, DROPPED, RECIPE, REJECTS
from maskpipe.shards.manifest import Counts, Manifest, ShardRecord
from maskpipe.shards.reader import Dataset, ShardReader
from maskpipe.shards.reader import open as open_dataset
from maskpipe.shards.rows import Rows
from maskpipe.shards.writer import write_rows
from maskpipe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Merged:
    """What a merge made."""

    path: Path
    manifest: Manifest
    parts: tuple[tuple[str, Manifest], ...]
    """Each dataset that went in: its path and manifest."""
    repeated: tuple[str, ...]
    """Names of sources with the bytes of an earlier one."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "path": str(self.path),
            "fingerprint": self.manifest.fingerprint,
            **_numbers(self.manifest),
            "shards": len(self.manifest.shards),
            "repeated_sources": list(self.repeated),
            "parts": [{"path": path, "fingerprint": m.fingerprint, **_numbers(m)} for path, m in self.parts],
        }

    def __str__(self) -> str:
        lines = [f"merged    {len(self.parts)} datasets ({self.path}), {self.seconds:.1f} s"]
        for name, manifest in [*self.parts, ("together", self.manifest)]:
            n = _numbers(manifest)
            lines.append(
                f"          {n['records']:,} records, {n['sequences']:,} sequences, {n['documents']:,} documents, "
                f"{n['tokens']:,} tokens, {n['loss_tokens']:,} with loss   {name}"
            )
        if self.repeated:
            lines.append(f"repeated  {len(self.repeated)} sources are there twice: {', '.join(self.repeated)}")
        return "\n".join(lines)


def _numbers(manifest: Manifest) -> dict[str, int]:
    totals = manifest.totals
    return {
        "sources": len(manifest.sources),
        "records": manifest.records,
        "records_kept": manifest.records_kept,
        "sequences": totals.sequences,
        "documents": totals.documents,
        "tokens": totals.n_tokens,
        "loss_tokens": totals.n_loss,
    }


def merge(datasets: Sequence[str | Path], new: str | Path, *, allow_repeats: bool = False) -> Merged:
    """The rows of all datasets, in the order given, as the new dataset `new`.

    UsageError when recipes or tokenizers differ (naming the first key or file that does), a source is there twice
    (unless `allow_repeats`, which counts it), or `new` is there already; DatasetError when a dataset is damaged. Then
    nothing is published.
    """
    begun = time.monotonic()
    if len(datasets) < 2:
        raise UsageError("merge needs at least two datasets and the new directory")
    with ExitStack() as stack:
        parts = [stack.enter_context(open_dataset(path)) for path in datasets]
        for part in parts[1:]:
            _check_alike(parts[0], part)
        if parts[0].manifest.recipe["deduplicate"]:
            raise UsageError(
                f"{parts[0].path}: its recipe deduplicates, and what the datasets say alike is not known from them; "
                "prepare all sources together"
            )
        repeated = _repeated(parts, allow_repeats)
        chunks, rejects, dropped = _lists(parts)
        fingerprints = [part.manifest.fingerprint for part in parts]
        with new_dataset(new, "merge", parts[0], **{"from": fingerprints}) as partial:
            manifest = publish_derived(
                partial.dataset,
                list(_copy(parts, partial.dataset)),
                recipe=Recipe.from_dict(parts[0].manifest.recipe, where=str(parts[0].path / RECIPE)),
                like=parts[0],
                sources=[source for part in parts for source in part.manifest.sources],
                records_kept=sum(part.manifest.records_kept for part in parts),
                left_out=sum((Counter(part.manifest.left_out) for part in parts), Counter[str]()),
                rejects=rejects,
                dropped=dropped,
                chunks=chunks,
                role_names=sorted({name for part in parts for name in part.manifest.role_names}),
                run={"made_by": "merge", "from": fingerprints},
            )
            _check_conserved(parts, manifest)
        made = tuple((str(part.path), part.manifest) for part in parts)
    return Merged(Path(new), manifest, made, tuple(repeated), time.monotonic() - begun)


def append(
    out: str | Path,
    source: Any,
    new: str | Path,
    *,
    split: str | None = None,
    workers: int | None = None,
    allow_repeats: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """The dataset `out` and, prepared with its recipe and its tokenizer, the new sources, as the new dataset `new`.

    `out` stays as it is. Raises what prepare and merge raise; then nothing is published.
    """
    refuse_taken(new)
    with open_dataset(out) as dataset:
        recipe = Recipe.from_dict(dataset.manifest.recipe, where=str(dataset.path / RECIPE))
        if recipe.deduplicate:
            raise UsageError(
                f"{out}: its recipe compares all records with each other (deduplicate), so new ones cannot be put "
                "behind them; prepare all sources together"
            )
        if recipe.validation:
            raise UsageError(
                f"{out}: is one side of a split, and the new records would go to both. Prepare them with "
                f"--recipe {Path(out) / RECIPE}, then merge train with train and validation with validation: the side "
                "of a record with one conversation depends on its content alone. Where records hold several (trees, "
                "many answers), prepare all sources together: those that share one have to be on one side"
            )
        named = [name for name in ("source_caps", "source_weights") if dataset.manifest.recipe[name]]
        if named:
            raise UsageError(
                f"{out}: its recipe has {' and '.join(named)}, which name its own sources and not new ones; prepare "
                "all sources together"
            )
        require_chunks(dataset, read_chunks(dataset.path, dataset.manifest))
    more = Path(f"{os.path.abspath(new)}.more")  # the same name each time, so that a rerun goes on
    prepare(source, more, tokenizer=Tokenizer.load(out), recipe=recipe, split=split, workers=workers, progress=progress)
    try:
        return merge([out, more], new, allow_repeats=allow_repeats)
    finally:
        for file in more.iterdir():
            file.unlink()
        more.rmdir()


# -- what may be merged


def _check_alike(first: Dataset, other: Dataset) -> None:
    a, b = first.manifest, other.manifest
    keys = [key for key in {**a.recipe, **b.recipe} if a.recipe.get(key, _ABSENT) != b.recipe.get(key, _ABSENT)]
    if keys:
        shown = "; ".join(f"{key} is {_shown(a.recipe, key)} and {_shown(b.recipe, key)}" for key in keys)
        hint = " (repack changes sequence_length and packing)" if {*keys} <= {"sequence_length", "packing"} else ""
        raise UsageError(f"{first.path} and {other.path} have different recipes: {shown}; prepare one anew{hint}")
    if a.label_version != b.label_version or a.format[0] != b.format[0]:
        raise UsageError(
            f"{first.path} and {other.path} were made by versions that label differently (label_version "
            f"{a.label_version} and {b.label_version}); prepare the older one anew"
        )
    files = [
        {file.name: file.sha256 for file in manifest.files if file.name not in (REJECTS, DROPPED, CHUNKS)}
        for manifest in (a, b)
    ]
    names = sorted(name for name in {**files[0], **files[1]} if files[0].get(name) != files[1].get(name))
    if names or (a.vocab_size, a.pad_id) != (b.vocab_size, b.pad_id):
        raise UsageError(
            f"{first.path} and {other.path} have different tokenizers: {', '.join(names) or 'pad_id'} differs; prepare "
            "one anew with the other's tokenizer"
        )


_ABSENT = object()


def _shown(recipe: Any, key: str) -> str:
    text = repr(recipe[key]) if key in recipe else "not there"
    return text if len(text) <= 60 else text[:57] + "…"


def _repeated(parts: Sequence[Dataset], allow: bool) -> list[str]:
    """Names of sources whose bytes an earlier dataset has. UsageError unless those are allowed."""
    seen: dict[str, str] = {}
    out = []
    for part in parts:
        for source in part.manifest.sources:
            if source.sha256 in seen and source.records:
                out.append(source.name)
                if not allow:
                    raise UsageError(
                        f"{part.path}: its source {source.name} is in {seen[source.sha256]} already, byte for byte, so "
                        "its records would be there twice; --allow-repeats takes it anyway"
                    )
        seen.update({source.sha256: str(part.path) for source in part.manifest.sources})
    return out


# -- rows and lists, with sources renumbered


def _lists(parts: Sequence[Dataset]) -> tuple[list[ChunkEntry], list[dict[str, Any]], list[dict[str, Any]]]:
    chunks: list[ChunkEntry] = []
    rejects: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    first = 0
    for part in parts:
        own = require_chunks(part, read_chunks(part.path, part.manifest))
        chunks += [replace(chunk, source=chunk.source + first) for chunk in own]
        for entries, name in ((rejects, REJECTS), (dropped, DROPPED)):
            entries += [{**entry, "source": entry["source"] + first} for entry in listed(part, name)]
        first += len(part.manifest.sources)
    return chunks, rejects, dropped


def _copy(parts: Sequence[Dataset], work: Path) -> Iterator[ShardRecord]:
    index = first_source = first_pair = 0
    for part in parts:
        manifest, last_pair = part.manifest, [-1]
        for number in range(len(manifest.shards)):
            yield write_rows(
                work,
                index,
                _moved(part, number, first_source, first_pair, last_pair),
                sequence_length=manifest.sequence_length,
                pad_id=manifest.pad_id,
                vocab_size=manifest.vocab_size,
                recipe_fingerprint=manifest.recipe_sha256,
            )
            index += 1
        first_source += len(manifest.sources)
        first_pair += last_pair[0] + 1


def _moved(part: Dataset, number: int, first_source: int, first_pair: int, last_pair: list[int]) -> Iterator[Rows]:
    reader = ShardReader(part.path, part.manifest, number)
    try:
        for batch in range(reader.n_batches):
            rows = reader.batch(batch)
            documents = rows.documents.copy()
            documents["source"] += first_source
            last_pair[0] = max(last_pair[0], int(documents["pair"].max()))
            documents["pair"] = np.where(documents["pair"] >= 0, documents["pair"] + first_pair, -1)
            yield replace(rows, documents=documents)
    finally:
        reader.close()


def _check_conserved(parts: Sequence[Dataset], manifest: Manifest) -> None:
    expected = Counts.total(part.manifest.totals for part in parts)
    if manifest.totals != expected or manifest.records != sum(part.manifest.records for part in parts):
        raise MaskpipeError(f"the ledger does not add up: {manifest.totals} merged from {expected}")
