"""Gallery: where a report gets the rows that it shows.

shortlist of the audit's pass + a way to look at one row ─specimens(findings)─▶ Specimens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maskpipe.auditing.shortlist import ROWS, Shortlist
from maskpipe.auditing.specimens import Specimen, of_sequence
from maskpipe.errors import DatasetError, MaskpipeError
from maskpipe.findings import Finding
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.shards.reader import Dataset, ShardReader, sequence
from maskpipe.shards.reader import Sequence as Row
from maskpipe.tokenizer import Tokenizer

TOKENS = 1 << 18
"""Tokens shown in all, so that a page stays small: 20 rows of 8,192 fit well."""
WINDOW = 1 << 16
"""Tokens shown of one row; of a longer one, those around its first finding."""

Look = Callable[[int, tuple[str, ...], Sequence[Finding]], "Specimen | None"]
"""A row, why it was chosen and all findings → the row; None when it cannot be had."""
Choose = Callable[[Sequence[Finding], int], dict[int, tuple[str, ...]]]
"""Findings and how many rows at most → rows, and why each was chosen: `Shortlist.rows`, of the audit's pass."""


@dataclass(frozen=True)
class Gallery:
    """Rows that may be shown, and how."""

    choose: Choose
    look: Look

    def specimens(self, findings: Sequence[Finding] = (), limit: int = ROWS) -> tuple[list[Specimen], list[int]]:
        """(the rows worth reading, those that were worth it and are not here: no room, or not readable)."""
        chosen = self.choose(findings, limit)
        out: list[Specimen] = []
        missing: list[int] = []
        room = TOKENS
        for row in sorted(chosen, key=lambda row: (not _has_finding(chosen[row], findings), row)):
            specimen = self.look(row, chosen[row], findings)
            specimen = specimen if specimen is None else window(specimen)
            if specimen is None or (len(specimen) > room and out):
                missing.append(row)
                continue
            out.append(specimen)
            room -= len(specimen)
        return sorted(out, key=lambda specimen: specimen.row), sorted(missing)


def window(specimen: Specimen, tokens: int = WINDOW) -> Specimen:
    """All of it, or of a longer one `tokens` around its first finding, else its first ones."""
    if len(specimen) <= tokens:
        return specimen
    start = max(0, specimen.marks[0].start - tokens // 4) if specimen.marks else 0
    return specimen.part(start, start + tokens)


def of_dataset(dataset: Dataset, shortlist: Shortlist | None = None) -> Gallery:
    """Of a dataset of ours. Without the shortlist of a pass over its rows, one is made when it is needed, leaving out
    what is damaged."""
    manifest = dataset.manifest
    names = [source.name for source in manifest.sources]
    policy = Policy.of(Recipe.from_dict(manifest.recipe, where=str(dataset.path)))
    tokenizers: list[Tokenizer | None] = []

    def look(row: int, chosen: tuple[str, ...], findings: Sequence[Finding]) -> Specimen | None:
        if not 0 <= row < len(dataset):
            return None
        if not tokenizers:
            tokenizers.append(_tokenizer(dataset))
        number, within = _shard_of(dataset, row)
        try:
            return of_sequence(
                _read(dataset, row, number, within), row, tokenizer=tokenizers[0], policy=policy,
                file=manifest.shards[number].name, sources=names, chosen=chosen, findings=findings,
            )  # fmt: skip
        except (DatasetError, ValueError, IndexError, OverflowError):  # what does not hold together cannot be drawn
            return None

    def choose(findings: Sequence[Finding], limit: int) -> dict[int, tuple[str, ...]]:
        return (shortlist_of(dataset) if shortlist is None else shortlist).rows(findings, limit)

    return Gallery(choose, look)


def shortlist_of(dataset: Dataset) -> Shortlist:
    """Of every row that can be read."""
    out, first = Shortlist(dataset.manifest.fingerprint), 0
    for number, shard in enumerate(dataset.manifest.shards):
        try:
            reader = ShardReader(dataset.path, dataset.manifest, number)
        except DatasetError:
            first += shard.rows
            continue
        at = first
        for batch in range(reader.n_batches):
            try:
                rows = reader.batch(batch)
            except DatasetError:
                break
            out.add_rows(at, rows)
            at += len(rows)
        reader.close()
        first += shard.rows
    return out


def _shard_of(dataset: Dataset, row: int) -> tuple[int, int]:
    """The shard that holds a row, and the row's place in it."""
    for number, shard in enumerate(dataset.manifest.shards):
        if row < shard.rows:
            return number, row
        row -= shard.rows
    raise IndexError(row)


def _read(dataset: Dataset, row: int, number: int, within: int) -> Row:
    """A row, also one that the format does not allow, if its bytes are those that were written."""
    try:
        return dataset[row]
    except DatasetError:
        with dataset.shard_open(number):
            reader = ShardReader(dataset.path, dataset.manifest, number)
            try:
                batch, place = divmod(within, reader.step)
                return sequence(reader.raw_batch(batch), place)
            finally:
                reader.close()


def _tokenizer(dataset: Dataset) -> Tokenizer | None:
    """The one inside; None when it is not there or cannot be read: ids are then shown instead of texts."""
    try:
        return Tokenizer.load(dataset.path)
    except MaskpipeError:
        return None


def _has_finding(reasons: Sequence[str], findings: Sequence[Finding]) -> bool:
    return any(finding.code in reasons for finding in findings)
