"""What a user gave as source → Sources, which reads all of it in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe
from maskpipe.sources.chunk import Chunk, Origin
from maskpipe.sources.objects import from_object
from maskpipe.sources.paths import from_path
from maskpipe.sources.source import Reading, Source


class Sources:
    """Sources in the order given.

    `counts`: ignored_files; after chunks(), blank_lines; after records(), what the chunks counted.
    """

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self._origins: list[Origin] = []
        self.counts: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        return [source.name for source in self._sources]

    @property
    def origins(self) -> list[Origin]:
        """One per source. UsageError before chunks() has been read to its end."""
        if len(self._origins) != len(self._sources):
            raise UsageError("origins are known after all chunks have been read")
        return list(self._origins)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks in order. UsageError: a file that cannot be read or unpacked, or no record in any source."""
        origins: list[Origin] = []
        blank_lines = 0
        for index, source in enumerate(self._sources):
            reading = Reading(index, source.name)
            yield from source.read(reading)
            blank_lines += reading.blank_lines
            origins.append(Origin(source.name, reading.hash.hexdigest(), reading.rows))
        self._origins = origins
        self.counts["blank_lines"] = blank_lines
        if not any(origin.records for origin in origins):
            raise UsageError(f"no records in {', '.join(self.names)}: nothing to read")

    def records(self) -> Iterator[tuple[int, int, Any]]:
        """(source, row, record or RecordError), parsed in this process."""
        for chunk in self.chunks():
            for row, record in chunk.records():
                yield chunk.source, row, record
            self.counts.update(chunk.counts)


def open_sources(source: Any, recipe: Recipe | None = None, *, split: str | None = None) -> Sources:
    """Sources from a path, directory or glob pattern, an HF Dataset, DatasetDict or IterableDataset, a pyarrow Table,
    an iterable of dicts, or a list of these. Nothing is read yet, except to see what a file is.

    `split` chooses one of a DatasetDict, or the files of a directory whose name or folder begins with it.
    UsageError: a path that is missing or unreadable, a file of unknown kind, a split that is not there.
    """
    many = isinstance(source, list | tuple) and bool(source) and not isinstance(source[0], Mapping | list)
    sources: list[Source] = []
    ignored = 0
    for entry in source if many else [source]:
        if isinstance(entry, str | Path):
            found, skipped = from_path(str(entry), split)
            sources += found
            ignored += skipped
        else:
            sources.append(from_object(entry, split))
    if not sources:
        raise UsageError("no source given: pass a file, a directory, a dataset or an iterable of dicts")
    opened = Sources(sources)
    opened.counts["ignored_files"] = ignored
    return opened
