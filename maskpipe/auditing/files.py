"""Bytes, identity and ledger of a dataset's directory: what `maskpipe verify` checks, each problem under its code.

verify stops at the first problem; the audit says all that it can still see behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from maskpipe.errors import DatasetError
from maskpipe.findings import Finding, Place
from maskpipe.shards.chunks import check_tokens, chunks_of
from maskpipe.shards.format import CHUNKS, DUPLICATES
from maskpipe.shards.manifest import File, Manifest
from maskpipe.shards.verify import Ledger, check_file, check_names, check_recipe, read_file


class Problems:
    """Findings of files, one per problem."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    @contextmanager
    def under(self, code: str, file: str = "") -> Iterator[None]:
        """A DatasetError inside becomes a finding of this code."""
        try:
            yield
        except DatasetError as error:
            self.add(code, str(error), file)

    def add(self, code: str, text: str, file: str = "") -> None:
        """One more."""
        self.findings.append(Finding(code, text, places=(Place(file=file),) if file else ()))


def check_files(directory: Path, manifest: Manifest, problems: Problems) -> None:
    """Files that are no shards: there, with the bytes listed, and saying what the manifest says."""
    with problems.under("MP501"):
        check_names(directory, manifest)
    whole = set()
    for entry in manifest.files:
        with problems.under("MP501", entry.name):
            check_file(directory, entry)
            whole.add(entry.name)
    with problems.under("MP516", "recipe.yaml"):
        check_recipe(directory, manifest)
    _check_chunks(directory, manifest, whole, problems)
    _check_duplicates(directory, manifest, whole, problems)


def check_ledger(ledger: Ledger, problems: Problems) -> None:
    """Once all rows were added: every record and every cut document is accounted for."""
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("MP504", ledger.check_kept),
        ("MP505", ledger.check_rejects),
        ("MP504", ledger.check_apart),
        ("MP505", ledger.check_dropped),
        ("MP506", ledger.check_fragments),
    )
    for code, step in steps:
        with problems.under(code):
            step()


def _entry(manifest: Manifest, name: str, whole: set[str]) -> File | None:
    return next((file for file in manifest.files if file.name == name and name in whole), None)


def _check_chunks(directory: Path, manifest: Manifest, whole: set[str], problems: Problems) -> None:
    entry = _entry(manifest, CHUNKS, whole)
    if entry is None:
        return
    where = str(directory / CHUNKS)
    with problems.under("MP505", CHUNKS):
        chunks = chunks_of(read_file(directory, entry), manifest, where)
        with problems.under("MP504", CHUNKS):
            check_tokens(chunks, manifest, where)


def _check_duplicates(directory: Path, manifest: Manifest, whole: set[str], problems: Problems) -> None:
    entry = _entry(manifest, DUPLICATES, whole)
    if entry is None:
        return
    lines = read_file(directory, entry).count(b"\n")
    counted = manifest.left_out.get("duplicate", 0)
    if lines != counted:
        problems.add("MP505", f"{directory / DUPLICATES}: has {lines} lines, the manifest counts {counted}", DUPLICATES)
