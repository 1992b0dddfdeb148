"""What a user gave as source → Sources, which reads all of it in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe
from maskpipe.sources.amounts import Amounts
from maskpipe.sources.chunk import Chunk, Origin
from maskpipe.sources.hub import from_hub, is_hub_name
from maskpipe.sources.objects import from_object
from maskpipe.sources.paths import from_path
from maskpipe.sources.source import Reading, Source


class Sources:
    """Sources in the order given.

    `counts`: ignored_files; after chunks(), blank_lines; after records(), what the chunks counted.
    """

    def __init__(self, sources: list[Source], recipe: Recipe) -> None:
        self._sources = sources
        self._recipe = recipe
        self._amounts = Amounts.of(recipe, sources)
        self._origins: list[Origin] = []
        self._read = 0  # bytes of the sources that have been read to their end
        self._reading: Reading | None = None
        self.counts: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        return [source.name for source in self._sources]

    @property
    def weights(self) -> list[float]:
        """Per source, how often its records are taken: below 1 a share of them, above 1 some of them several times."""
        return list(self._amounts.weights)

    @property
    def origins(self) -> list[Origin]:
        """One per source. UsageError before chunks() has been read to its end."""
        if len(self._origins) != len(self._sources):
            raise UsageError("origins are known after all chunks have been read")
        return list(self._origins)

    @property
    def share_read(self) -> float | None:
        """How much of the files chunks() has read, 0 to 1; None where a source is no file."""
        sizes = [source.size for source in self._sources]
        total = sum(size or 0 for size in sizes)
        if None in sizes or not total:
            return None
        return min(1.0, (self._read + (self._reading.hash.size if self._reading else 0)) / total)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks in order. UsageError: a file that cannot be read or unpacked, or no record in any source."""
        origins: list[Origin] = []
        blank_lines = 0
        self._amounts.restart(self._recipe)
        for index, source in enumerate(self._sources):
            reading = self._reading = Reading(index, source.name)
            yield from self._taken(source.read(reading))
            self._read, self._reading = self._read + (source.size or 0), None
            blank_lines += reading.blank_lines
            origins.append(Origin(source.name, reading.hash.hexdigest(), reading.rows))
        self._origins = origins
        self.counts["blank_lines"] = blank_lines
        if not any(origin.records for origin in origins):
            raise UsageError(f"no records in {', '.join(self.names)}: nothing to read")

    def _taken(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The chunks with how much of each is taken; those of which nothing is become one."""
        left: Chunk | None = None
        for chunk in map(self._amounts.limit, chunks):
            if chunk.take != 0:
                yield chunk
            else:
                left = chunk if left is None else replace(left, count=left.count + chunk.count)
        if left is not None:
            yield left

    def records(self) -> Iterator[tuple[int, int, Any]]:
        """(source, row, record or RecordError), parsed in this process; caps and weights are not applied."""
        for chunk in self.chunks():
            for row, record in chunk.records():
                yield chunk.source, row, record
            self.counts.update(chunk.counts)


def open_sources(source: Any, recipe: Recipe | None = None, *, split: str | None = None) -> Sources:
    """Sources from a path, directory or glob pattern, a dataset's name (hub.py), an HF Dataset, DatasetDict or
    IterableDataset, a pyarrow Table, an iterable of dicts, or a list of these. Nothing is read yet, except to see what
    a file is.

    `split` chooses one of a named dataset or DatasetDict, or the files of a directory whose name or folder begins with
    it. UsageError: a path that is missing or unreadable, a file of unknown kind, a split that is not there, a cap or
    weight of the recipe for something that is no source.
    """
    many = isinstance(source, list | tuple) and bool(source) and not isinstance(source[0], Mapping | list)
    sources: list[Source] = []
    ignored = 0
    for entry in source if many else [source]:
        if isinstance(entry, str) and is_hub_name(entry):
            sources.append(replace(from_hub(entry, split), given=entry))
        elif isinstance(entry, str | Path):
            found, skipped = from_path(str(entry), split)
            sources += [replace(source, given=str(entry)) for source in found]
            ignored += skipped
        else:
            sources.append(from_object(entry, split))
    _refuse_twice(sources)
    if not sources:
        raise UsageError("no source given: pass a file, a directory, a dataset or an iterable of dicts")
    opened = Sources(sources, recipe or Recipe())
    opened.counts["ignored_files"] = ignored
    return opened


def _refuse_twice(sources: list[Source]) -> None:
    """UsageError where one file is named twice: its records would be there twice, counted nowhere."""
    seen: dict[Path, Source] = {}
    for source in sources:
        if source.file is None:
            continue
        first = seen.setdefault(source.file.resolve(), source)
        if first is not source:
            raise UsageError(
                f"{source.file} is named twice, by {first.given} and by {source.given}: name it once, and to take its "
                f"records twice say --source-weight {first.given}=2"
            )
