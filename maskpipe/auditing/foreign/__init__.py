"""Other people's data: what other tools prepared, and the batches that a training loop really gets.

shapes.py              which columns there are, and how each is read
tables.py, arrays.py   files ─▶ stretches of rows       batches.py   tensors of any training loop ─▶ the same
raw.py                 a stretch of rows as its columns say them
rows.py                understood: targets, padding, documents
habits.py              how a template's turns look in ids, learnt from probes
locate.py              where turns stand in these rows
checks.py, tally.py    what is wrong with them
shelf.py               those that a report may show
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from maskpipe.auditing.coverage import Coverage
from maskpipe.auditing.foreign import arrays, tables
from maskpipe.auditing.foreign.batches import stretches_of_batches
from maskpipe.auditing.foreign.checks import Checker
from maskpipe.auditing.foreign.habits import ids_of, learn
from maskpipe.auditing.foreign.locate import Locator
from maskpipe.auditing.foreign.raw import Stretch
from maskpipe.auditing.foreign.rows import Ids, labels_shift, understand
from maskpipe.auditing.foreign.shapes import Reading, recognise
from maskpipe.auditing.foreign.shelf import Shelf
from maskpipe.auditing.report import Report
from maskpipe.errors import UsageError
from maskpipe.tokenizer import Tokenizer


def audit_foreign(
    path: str | Path, tokenizer: str | Path | Tokenizer, *, chat_template: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Report:  # fmt: skip
    """What is wrong with a dataset that another tool prepared: a directory or a file; at most `limit` rows of it.

    UsageError where there is nothing that is known, with what was found.
    """
    loaded = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
    where = Path(path)
    about = ids_of(loaded)
    reading, stretches, about = opened(where, about, limit)
    return _report(where.name or str(path), str(path), reading, stretches, loaded, about, chat_template)


def audit_batches(
    batches: Iterable[Any], tokenizer: str | Path | Tokenizer, *, limit: int | None = None,
    chat_template: str | os.PathLike[str] | None = None,
) -> Report:  # fmt: skip
    """What is wrong with the batches of a training loop, whoever makes them; at most `limit` batches are taken.

    A batch is a mapping (a dict, a BatchEncoding) with input_ids [rows, length] or [length], and labels or a mask of
    the same shape; tensors of any kind that numpy can read. UsageError for what is none.
    """
    loaded = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
    stretches = stretches_of_batches(batches, limit)
    first = next(stretches, None)
    if first is None:
        raise UsageError("no batch came: there is nothing to audit")
    reading = recognise(first.columns, "batch 0", "batches")
    return _report("batches", "", reading, _again(first, stretches), loaded, ids_of(loaded), chat_template)


def opened(path: Path, about: Ids, limit: int | None) -> tuple[Reading, Iterator[Stretch], Ids]:
    """How its columns are read, its rows, and what is known of ids with what the data itself says."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory")
    files = [path] if path.is_file() else tables.saved_files(path)
    root = path.parent if path.is_file() else path
    if files is None:
        found = arrays.find(path, about.vocab_size)
        if found is not None:
            if found.pad_id is not None:
                about = Ids(about.vocab_size, found.pad_id, about.ends)
            return recognise(found.columns, str(path), "olmo", found.about), arrays.stretches(found, path, limit), about
        files = [file for suffix in (".parquet", ".arrow") for file in sorted(path.rglob(f"*{suffix}"))]
    if not files:
        raise UsageError(
            f"{path}: nothing here that the audit can read. It reads datasets of maskpipe, save_to_disk directories, "
            "Parquet and Arrow files with input_ids, and token_ids*.npy with label masks"
        )
    return recognise(tables.column_names(files[0]), str(files[0])), tables.stretches(files, root, limit), about


def _again(first: Stretch, rest: Iterator[Stretch]) -> Iterator[Stretch]:
    yield first
    yield from rest


def _report(
    name: str, path: str, reading: Reading, stretches: Iterator[Stretch], tokenizer: Tokenizer, about: Ids,
    chat_template: str | os.PathLike[str] | None,
) -> Report:  # fmt: skip
    habits = learn(tokenizer, chat_template)
    checker = Checker(tokenizer, about, Locator(tokenizer, habits, about))
    shelf = Shelf(tokenizer, name)
    shift: int | None = None
    for stretch in stretches:
        if shift is None and "labels" in reading.loss:
            shift = labels_shift(stretch)
        rows = understand(stretch, reading, about, shift or 0, checker.tally)
        if rows is not None:
            shelf.add(rows, checker.add(rows), checker.tally)
    checker.finish()
    if not checker.numbers["rows"] and not checker.tally.counts:
        raise UsageError(f"{path or name}: holds no rows")
    read_as = [f"recognised as {reading.shape}", *reading.lines()]
    coverage = checker.coverage() | {"read_as": read_as, "turns_located_by": checker.locator.why or "the chat template"}
    unlocated = checker.numbers["documents"] - checker.numbers["located"]
    if checker.locator.knows_turns:
        text = "{count} documents in which no turn of the template was found: only their structure was checked"
        checker.tally.add("MP321", text, unlocated, [])
    else:
        text = f"turns were not located ({checker.locator.why}): only the structure of {{count}} documents was checked"
        checker.tally.add("MP321", text, checker.numbers["documents"], [])
    return Report(
        name=name,
        path=path,
        kind=reading.shape,
        rows=checker.numbers["rows"],
        tokens=checker.numbers["tokens"],
        findings=checker.tally.findings(),
        coverage=Coverage(coverage),
        gallery=shelf.gallery(),
    )
