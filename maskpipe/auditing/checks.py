"""The audit of a dataset of maskpipe: its files, then every token of every row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskpipe.auditing.coverage import from_manifest
from maskpipe.auditing.gallery import of_dataset
from maskpipe.auditing.report import Report
from maskpipe.errors import DatasetError
from maskpipe.findings import Finding
from maskpipe.shards.format import MANIFEST
from maskpipe.shards.reader import Dataset

if TYPE_CHECKING:
    from collections.abc import Iterable


def opened(path: str | Path | Dataset) -> Dataset | None:
    """The dataset of maskpipe there; None where there is none. DatasetError for one that does not open."""
    if isinstance(path, Dataset):
        return path
    from maskpipe.remote.dataset import open as open_any
    from maskpipe.remote.storage import is_uri

    sides = ("train", "validation")
    here = Path(path)
    there = is_uri(str(path)) or (here / MANIFEST).exists() or all((here / side / MANIFEST).exists() for side in sides)
    return open_any(path) if there else None


def coverage_of(dataset: Dataset) -> Report:
    """What the manifest says. No row is read, so nothing is checked."""
    return _report(dataset, (), checked=False)


def audit_dataset(dataset: Dataset) -> Report:
    """What is wrong with the dataset, and what it holds."""
    findings = []
    try:
        dataset.verify()
    except DatasetError as error:
        findings.append(Finding("MP501", str(error)))
    return _report(dataset, findings)


def _report(dataset: Dataset, findings: Iterable[Finding], *, checked: bool = True) -> Report:
    totals = dataset.manifest.totals
    return Report(
        name=dataset.name,
        path=str(dataset.path),
        kind="maskpipe",
        rows=len(dataset),
        tokens=totals.n_tokens,
        findings=tuple(findings),
        coverage=from_manifest(dataset),
        checked=checked,
        gallery=of_dataset(dataset),
    )
