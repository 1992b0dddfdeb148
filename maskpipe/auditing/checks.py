"""The audit of a dataset of maskpipe: its files, then every token of every row, in one pass that also counts.

files.py ─┐   shard ─bytes─▶ record batch ─▶ _core.Audit (defects, tallies), Collector, Copies, Ledger
          └──────────────────────────────────▶ findings by code, coverage
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maskpipe import _core
from maskpipe.auditing.copies import Copies
from maskpipe.auditing.coverage import Collector, Coverage, cells, from_manifest
from maskpipe.auditing.defects import DEFECTS, Defect
from maskpipe.auditing.files import Problems, check_files, check_ledger
from maskpipe.auditing.gallery import of_dataset
from maskpipe.auditing.known import Known, learn
from maskpipe.auditing.notes import notes
from maskpipe.auditing.report import Report
from maskpipe.errors import MaskpipeError
from maskpipe.findings import Finding, Place
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.shards.format import MANIFEST
from maskpipe.shards.manifest import Counts, Manifest, fingerprint
from maskpipe.shards.reader import Dataset, ShardReader
from maskpipe.shards.rows import Rows, count, digests, run_arrays, wrong_document, wrong_verdict
from maskpipe.shards.verify import Ledger, check_batches, check_shard_bytes
from maskpipe.tokenizer import Tokenizer

MAX_PLACES = 20
"""Places that a finding names; the first ones. Its count is of all."""


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
    return _report(dataset, (), from_manifest(dataset), checked=False)


def audit_dataset(dataset: Dataset, tokenizer: Tokenizer | None = None) -> Report:
    """What is wrong with the dataset, and what it holds. `tokenizer`: for one that has none inside, or that lies
    elsewhere."""
    return _Pass(dataset, tokenizer).run()


class _Pass:
    """One pass over one dataset."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer | None) -> None:
        self._dataset = dataset
        self._manifest = manifest = dataset.manifest
        self._recipe = Recipe.from_dict(dict(manifest.recipe))
        self._policy = Policy.of(self._recipe)
        self._problems = Problems()
        self._local = type(dataset) is Dataset
        self._tokenizer = tokenizer if tokenizer is not None else self._embedded()
        self._known = self._learned()
        self._core = core_audit(manifest, self._policy, self._recipe, self._known)
        self._collector = Collector(manifest.sequence_length)
        self._copies = Copies()
        self._ends = np.cumsum([shard.rows for shard in manifest.shards]).tolist()

    def run(self) -> Report:
        try:
            self._files()
            self._copied()
        finally:
            self._copies.close()
        manifest = self._manifest
        found = [*self._problems.findings, *self._defects()]
        found += notes(self._dataset, self._policy, self._known)
        if not self._local:
            text = "files that are no shards (recipe, rejects, chunks), and the ledger: only shards are fetched"
            found.append(Finding("MP515", text))
        coverage = from_manifest(self._dataset).values | self._counted()
        return _report(self._dataset, merged(found), Coverage(coverage), checked=bool(manifest.shards))

    # -- what the dataset knows of itself

    def _embedded(self) -> Tokenizer | None:
        if not self._local or not any(file.name == "tokenizer.json" for file in self._manifest.files):
            return None
        try:
            return Tokenizer.load(self._dataset.path)
        except MaskpipeError as error:
            self._problems.add("MP516", f"the tokenizer inside cannot be loaded: {error}", "tokenizer.json")
            return None

    def _learned(self) -> Known:
        size = self._manifest.vocab_size
        if self._tokenizer is None:
            why = (
                "control tokens, BOS, stops and headers: the dataset has no tokenizer inside; give one with --tokenizer"
            )
            return Known.nothing(size, why)
        if self._tokenizer.vocab_size != size:
            self._problems.add(
                "MP516",
                f"the tokenizer has {self._tokenizer.vocab_size} ids, the manifest says {size}",
                "tokenizer.json",
            )
        return learn(self._tokenizer, self._recipe, size)

    # -- the pass

    def _files(self) -> None:
        dataset, manifest, problems = self._dataset, self._manifest, self._problems
        ledger = Ledger(dataset.path, manifest)
        if self._local:
            check_files(dataset.path, manifest, problems)
        row_digests: list[bytes] = []
        for number, entry in enumerate(manifest.shards):
            with problems.under("MP501", entry.name), dataset.shard_open(number):
                check_shard_bytes(dataset.path, entry)
                shard_digests = self._shard(number, ledger)
                if shard_digests is not None:
                    row_digests.append(shard_digests)
        whole = len(row_digests) == len(manifest.shards)
        if whole:
            if fingerprint(manifest, row_digests) != manifest.fingerprint:
                text = "the fingerprint is not that of the rows, the sources and the recipe"
                problems.add("MP516", text, MANIFEST)
            if self._local:
                check_ledger(ledger, problems)

    def _shard(self, number: int, ledger: Ledger) -> bytes | None:
        """The digests of the rows; None where not all rows could be read."""
        entry, problems = self._manifest.shards[number], self._problems
        first = self._ends[number] - entry.rows
        step = 0
        parts: list[Counts] = []
        row_digests: list[bytes] = []
        reader: ShardReader | None = None
        with problems.under("MP502", entry.name):
            reader = ShardReader(self._dataset.path, self._manifest, number)
        if reader is None:
            return None
        try:
            with problems.under("MP501", entry.name):
                check_batches(entry, reader)
            for k in range(reader.n_batches):
                with problems.under("MP502", entry.name):
                    rows = reader.raw_batch(k)
                    if self._batch(rows, first + step, entry.name):
                        parts.append(count(rows))
                        row_digests.append(digests(rows))
                        with problems.under("MP504", entry.name):
                            ledger.add(rows, entry.name)
                step += reader.step
        finally:
            reader.close()
        if len(parts) < reader.n_batches:
            return None
        counts = Counts.total(parts)
        if counts != entry.counts:
            names = [name for name, value in vars(counts).items() if value != getattr(entry.counts, name)]
            problems.add("MP503", f"{entry.name}: {', '.join(names)} differ from what the manifest counts", entry.name)
        return b"".join(row_digests)

    def _batch(self, rows: Rows, first_row: int, name: str) -> bool:
        """Whether the rows hold together, so that more can be asked of them."""
        before = self._core.counts()["row_malformed"]
        audited = self._core.add(**core_arguments(rows), first_row=first_row)
        self._collector.add_documents(audited.document_tokens, audited.document_loss, audited.document_turns)
        self._collector.add_turns(audited.turn_first, audited.turn_last, audited.turn_stop, audited.turn_stop_trained)
        self._copies.add(audited.document_hash, audited.document_origin, audited.document_row, audited.document_tokens)
        if self._core.counts()["row_malformed"] > before:
            return False
        filled = rows.documents["end"][rows.document_offsets[1:] - 1].astype(np.int32)
        self._collector.add_rows(filled, rows.n_loss, np.diff(rows.document_offsets))
        holds = True
        checks = (
            (wrong_document(rows), rows.documents, rows.document_offsets),
            (wrong_verdict(rows), rows.verdicts, rows.verdict_offsets[rows.document_offsets]),
        )
        for problem, entries, offsets in checks:
            if problem is not None:
                index, text = problem
                row = first_row + int(np.searchsorted(offsets, index, side="right")) - 1
                self._problems.findings.append(
                    Finding("MP213", f"{text}: {entries[index].item()}", places=(Place(file=name, row=row),))
                )
                holds = False
        return holds

    def _copied(self) -> None:
        weights = self._recipe.source_weights.values()
        repeats = max([1, *(math.ceil(weight) for weight in weights)])
        found = self._copies.find(repeats=repeats, max_rows=MAX_PLACES)
        if found.repeats and self._recipe.on_too_long != "split":  # pieces of one text may be alike
            text = f"{found.repeats:,} documents stand again in the dataset, with the tokens of the same record"
            self._problems.findings.append(
                Finding("MP507", text, found.repeats, tuple(map(self.place, found.repeat_rows)))
            )
        if found.copies:
            text = (
                f"{found.copies:,} documents ({found.tokens:,} tokens) are copies of {found.originals:,} documents of "
                "other records"
            )
            self._problems.findings.append(
                Finding("MP508", text, found.copies, tuple(map(self.place, found.copy_rows)))
            )

    # -- what came of it

    def place(self, row: int, start: int = -1, end: int = -1, **more: Any) -> Place:
        """A row of the dataset as a Place."""
        number = min(bisect.bisect_right(self._ends, row), len(self._ends) - 1)
        return Place(file=self._manifest.shards[number].name, row=row, start=start, end=end, **more)

    def _defects(self) -> Iterable[Finding]:
        places: dict[str, list[Place]] = {}
        for name, row, start, end, _ in self._core.places():
            places.setdefault(name, []).append(self.place(row, start, end))
        for name, n in self._core.counts().items():
            defect: Defect = DEFECTS[name]
            if n:
                yield Finding(defect.code, defect.say(n), n, tuple(places[name]))

    def _counted(self) -> dict[str, Any]:
        core, manifest = self._core, self._manifest
        by_source = core.by_source()[: len(manifest.sources)]
        names = [source.name for source in manifest.sources]
        values = self._collector.values(self._text)
        return {
            **values,
            "messages": _by_message(core.by_message()),
            "by_source": [
                {"source": k, "name": names[k], "tokens": t, "sampled": s, "loss": loss}
                for k, (t, s, loss) in enumerate(by_source.tolist())
                if t
            ],
            "scripts": _scripts(core.by_script(), self._known.scripts),
        }

    def _text(self, id: int) -> str:
        if self._tokenizer is None or id >= self._tokenizer.vocab_size:
            return ""
        return self._tokenizer.decode([id])


def core_audit(manifest: Manifest, policy: Policy, recipe: Recipe, known: Known) -> _core.Audit:
    """The core's part, for rows of this dataset."""
    turns = None if policy.turns is None else list(policy.turns)
    return _core.Audit(
        (policy.rule, turns, policy.accept_rewritten),
        manifest.sequence_length,
        manifest.vocab_size,
        manifest.pad_id,
        known.ids,
        known.allowed,
        known.marks,
        known.mark_bounds,
        known.headers,
        known.chat_bos,
        known.text_bos,
        known.stops_known,
        recipe.packing == "concat_split",
        MAX_PLACES,
    )


def core_arguments(rows: Rows) -> dict[str, Any]:
    """The arguments of _core.Audit.add but first_row."""
    documents, verdicts, weights = rows.documents, rows.verdicts, rows.weights
    end, role, part, flags, message = run_arrays(rows.runs)
    return {
        "input_ids": np.ascontiguousarray(rows.input_ids).reshape(-1),
        "run_ends": end,
        "run_roles": role,
        "run_parts": part,
        "run_flags": flags,
        "run_messages": message,
        "row_run_offsets": rows.run_offsets,
        "document_ends": documents["end"].copy(),
        "row_document_offsets": rows.document_offsets,
        "n_loss": np.ascontiguousarray(rows.n_loss),
        "sources": documents["source"].copy(),
        "records": documents["row"].copy(),
        "turns": documents["turn"].copy(),
        "starts": documents["start"].copy(),
        "lengths": documents["length"].copy(),
        "pairs": documents["pair"].copy(),
        "branches": documents["branch"].copy(),
        "parents": documents["parent"].copy(),
        "verdict_messages": verdicts["message"].copy(),
        "verdicts": verdicts["verdict"].copy(),
        "verdict_offsets": rows.verdict_offsets,
        "weight_starts": weights["start"].copy(),
        "weight_ends": weights["end"].copy(),
        "weights": weights["weight"].copy(),
        "weight_offsets": rows.weight_offsets,
    }


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of one code and one text for people stay apart; of one code and the same text become one."""
    out: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.code, finding.text)
        if key in out:
            before = out[key]
            places = (*before.places, *finding.places)[:MAX_PLACES]
            finding = Finding(finding.code, finding.text, before.count + finding.count, places)
        out[key] = finding
    return list(out.values())


def _by_message(table: Any) -> dict[str, dict[str, int]]:
    """none, 0, 1, … 15, then 16-31, 32-63, …"""
    bounds = [0, 1, *range(2, 18), *(2**k + 1 for k in range(5, 11)), len(table)]
    names, sums = [], []
    for low, high in itertools.pairwise(bounds):
        first, last = low - 1, high - 2
        plain = "none" if first < 0 else str(first) if first == last else f"{first}-{last}"
        names.append(f"{first}+" if high == len(table) else plain)
        sums.append(table[low:high].sum(axis=0))
    return cells(np.array(sums), names)


def _scripts(table: Any, names: list[str]) -> dict[str, dict[str, int]]:
    found = [(name, t, loss) for name, (t, _, loss) in zip(names, table.tolist(), strict=False) if t]
    return {
        name: {"tokens": t, "loss": loss} for name, t, loss in sorted(found, key=lambda entry: (-entry[1], entry[0]))
    }


def _report(dataset: Dataset, findings: Iterable[Finding], coverage: Coverage, *, checked: bool = True) -> Report:
    totals = dataset.manifest.totals
    return Report(
        name=dataset.name,
        path=str(dataset.path),
        kind="maskpipe",
        rows=len(dataset),
        tokens=totals.n_tokens,
        findings=tuple(findings),
        coverage=coverage,
        checked=checked,
        gallery=of_dataset(dataset),
    )
