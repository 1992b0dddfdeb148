"""Notes: counts that are no defects, and that a person should see before trusting a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from maskpipe.auditing.known import Known
from maskpipe.errors import DatasetError
from maskpipe.findings import Finding
from maskpipe.policy import Policy
from maskpipe.shards.chunks import read_chunks, total_counts

if TYPE_CHECKING:
    from maskpipe.shards.reader import Dataset


def notes(dataset: Dataset, policy: Policy, known: Known) -> Iterator[Finding]:
    """What the manifest and chunks.jsonl count, and what could not be checked."""
    manifest = dataset.manifest
    totals = manifest.totals
    if totals.straddles:
        yield Finding("MP318", f"{totals.straddles:,} tokens straddle the border of sampled text", totals.straddles)
    apart = {name: n for name, n in totals.verdicts.items() if {"history_differs", "refused"} & set(name.split("+"))}
    if apart:
        yield Finding("MP319", _listed(apart), sum(apart.values()))
    if manifest.recipe["objective"] == "sft" and policy.trains_others:
        yield Finding("MP320", f"train_on is {'+'.join(manifest.recipe['train_on'])}")
    for code, counts in (("MP509", manifest.rejected), ("MP510", manifest.dropped), ("MP514", manifest.left_out)):
        if counts:
            yield Finding(code, _listed(counts), sum(counts.values()))
    yield from _of_chunks(dataset)
    for text in known.missing:
        yield Finding("MP515", text)


def chunk_counts(dataset: Dataset) -> Counter[str]:
    """What was counted while the dataset was prepared; empty where it is not known."""
    try:
        return total_counts(read_chunks(dataset.path, dataset.manifest) or ())
    except DatasetError:  # said elsewhere, under its own code
        return Counter()


def _of_chunks(dataset: Dataset) -> Iterator[Finding]:
    counts = chunk_counts(dataset)
    cut, tokens = counts["documents_truncated"] + counts["documents_split"], counts["tokens_truncated"]
    if cut:
        yield Finding("MP511", f"{cut:,} documents were cut to fit a sequence; {tokens:,} tokens are gone", cut)
    if counts["fields_lost"]:
        yield Finding("MP512", f"{counts['fields_lost']:,} fields are not shown by the template", counts["fields_lost"])
    neutralised = counts["control_tokens_neutralised"]
    if neutralised:
        text = f"{neutralised:,} control tokens in content were encoded as ordinary text"
        yield Finding("MP513", text, neutralised)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name.replace('_', ' ').replace('+', ' and ')}" for name, n in sorted(counts.items()))
