"""The proof: every token of a dataset beside what its source says, by a way that shares nothing with the encoder.

    shards ─stored.py─▶ documents by record ─┐
    source ─▶ record ─expectation.py─▶ documents as they must be ─┴─▶ differences, as findings with places

Only what is embedded in the dataset (recipe, tokenizer, template) and the source itself are used, so it can be done
years later. What cannot be proved is counted by reason, never left out in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskpipe.auditing.exchange import CannotProveError
from maskpipe.auditing.expectation import Begun, Expectation, Expected
from maskpipe.auditing.ids import Spelled
from maskpipe.auditing.stored import Index, Stored
from maskpipe.auditing.together import Taken, Together
from maskpipe.chat import Conversation, Read, read_all
from maskpipe.derived import listed
from maskpipe.errors import RecordError, UsageError
from maskpipe.findings import Finding, Place
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch, Flag, Part, Role, Verdict, verdict_name
from maskpipe.shards.format import DROPPED
from maskpipe.shards.manifest import Source
from maskpipe.shards.reader import Dataset
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer

if TYPE_CHECKING:
    from maskpipe.auditing.report import Report

PLACES = 20
"""Places kept per finding."""
_TOGETHER = 64
"""Records whose texts go to the tokenizer together."""
_BLOCK = 1024
"""Records whose documents are looked up together."""
_NOT_LOSS = np.uint8(0xFF ^ Flag.LOSS)
_Record = tuple[Read | None, list[Stored], list[Begun | str]]
"""A record, its documents, and its conversations begun, or the reasons why nothing can be proved of them. No record:
all is said of it."""


@dataclass
class Proof:
    """What was proved, what differs, and what could not be proved."""

    records: int = 0
    """Records that were looked at, of those in the dataset."""
    documents: int = 0
    """Documents all of whose tokens are as the source says."""
    tokens: int = 0
    """Their tokens."""
    differ: int = 0
    """Documents that differ, or are missing."""
    cannot: dict[str, int] = field(default_factory=dict)
    """Reason → documents of which nothing can be said."""
    cannot_tokens: int = 0
    """Their tokens."""
    two_readings: int = 0
    """Tokens, among those proved, of which role, part and message are one of two that the text allows: data that a
    template shows in a way which its own text could have too. The proof would have found neither wrong."""
    refused_turns: int = 0
    """Turns without loss because the dataset says that they were refused, which the proof took as said."""
    by_pattern: int = 0
    """Records, among those looked at, that were rendered as they are and found to be as others of their shape, which
    were shown with stand-ins (`pattern.py`)."""
    findings: tuple[Finding, ...] = ()

    @property
    def share(self) -> float | None:
        """Documents proved, of those that could be compared; None when none could."""
        compared = self.documents + self.differ
        return self.documents / compared if compared else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what `--format json` prints under `proof`. The keys are stable."""
        return {
            "records": self.records,
            "documents_proved": self.documents,
            "tokens_proved": self.tokens,
            "documents_that_differ": self.differ,
            "documents_not_proved": dict(sorted(self.cannot.items())),
            "tokens_not_proved": self.cannot_tokens,
            "tokens_with_two_readings": self.two_readings,
            "turns_refused_as_said": self.refused_turns,
            "records_by_pattern": self.by_pattern,
        }

    def __str__(self) -> str:
        parts = [f"{self.tokens:,} tokens of {self.documents:,} documents ({self.records:,} records) proved"]
        if self.differ:
            parts.append(f"{self.differ:,} documents differ")
        if self.two_readings:
            parts.append(f"{self.two_readings:,} tokens have two readings")
        if self.cannot:
            parts.append(f"{sum(self.cannot.values()):,} documents cannot be proved")
        return ", ".join(parts)


def prove(dataset: Dataset, source: Any, *, records: int = -1, split: str | None = None) -> Proof:
    """Compares the documents of `records` records (-1: all; else so many, spread over the dataset by a hash) with what
    the source says. `source` is what `prepare` was given, or the same files elsewhere.

    UsageError: the source cannot be read, or has other files than the dataset was made from.
    """
    return _Prover(dataset, source, split).run(records)


def proved(report: Report, dataset: Dataset, source: Any, records: int) -> Report:
    """The report with the proof against the source in it."""
    found = prove(dataset, source, records=records)
    return replace(report, proof=found).with_findings(found.findings)


def matched_sources(given: Sequence[str], known: Sequence[Source]) -> list[int]:
    """Per given source its number in the dataset: by name where names tell them apart, else by their order."""
    names = [source.name for source in known]
    if len(set(names)) == len(names) and set(given) <= set(names):
        return [names.index(name) for name in given]
    if len(given) == len(names):
        return list(range(len(names)))
    raise UsageError(
        f"the dataset was made from {len(names)} sources ({', '.join(names[:6])}), and {len(given)} are given "
        f"({', '.join(given[:6])}); give the same files, under the same names or in the same order"
    )


def begin_all(expectation: Expectation, read: Read, documents: list[Stored]) -> list[Begun | str]:
    """The conversations of a record, each begun, or the reason why nothing can be proved of it."""
    out: list[Begun | str] = []
    base = 0
    for number, item in enumerate(read.items):
        size = len(item.messages) if isinstance(item, Conversation) else 0
        refused, silent = _refused(documents, base, size)
        try:
            out.append(expectation.begin(number, base, item, refused, silent))
        except CannotProveError as error:
            out.append(str(error))
        base += size
    return out


def finish_all(
    expectation: Expectation, parts: Sequence[Begun | str], tokens: dict[int, list[Spelled]]
) -> tuple[list[Expected], dict[int, str]]:
    """The documents of a record, as the recipe fits them into sequences; and per conversation of which nothing can be
    proved the reason. `tokens`: of each Begun, by its identity, those of its texts."""
    expected: list[Expected] = []
    reasons: dict[int, str] = {}
    for number, part in enumerate(parts):
        if isinstance(part, str):
            reasons[number] = part
            continue
        try:
            made = expectation.finish(part, tokens[id(part)])
            expected += [piece for document in made for piece in expectation.fitted(document)]
        except CannotProveError as error:
            reasons[number] = str(error)
    return expected, reasons


def expected_of(expectation: Expectation, read: Read, documents: list[Stored]) -> tuple[list[Expected], dict[int, str]]:
    """As begin_all and finish_all, for one record."""
    parts = begin_all(expectation, read, documents)
    tokens = {id(part): expectation.speller.spell(part.texts) for part in parts if isinstance(part, Begun)}
    return finish_all(expectation, parts, tokens)


def closest(
    stored: Stored, expected: Sequence[Expected], read: Read, met: AbstractSet[int] = frozenset()
) -> int | None:
    """Which of a record's documents this one is: the most alike of its conversation and turn, those not in `met`
    first; None for none."""
    item = _item_of(stored, read)
    fitting = [k for k, document in enumerate(expected) if document.turn == stored.turn and document.item == item]
    return min(fitting, key=lambda k: (_distance(stored, expected[k]), k in met), default=None)


def _item_of(stored: Stored, read: Read) -> int:
    """The number of the conversation that a document is of."""
    if len(read.items) == 1:
        return 0
    sizes = [len(item.messages) if isinstance(item, Conversation) else 0 for item in read.items]
    return int(np.searchsorted(np.cumsum(sizes), stored.first_message, "right"))


class _Found:
    """One kind of difference on its way to a Finding."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.count = 0
        self.places: list[Place] = []


class _Prover:
    def __init__(self, dataset: Dataset, source: Any, split: str | None) -> None:
        if type(dataset) is not Dataset:
            raise UsageError(f"{dataset.name}: the proof reads a dataset in a directory; copy it here first")
        self.dataset, self.recipe = dataset, Recipe.from_dict(dataset.manifest.recipe)
        source = list(source) if isinstance(source, Iterator) else source
        self.sources = open_sources(source, self.recipe.replace(source_caps={}, source_weights={}), split=split)
        self.numbers = matched_sources(self.sources.names, dataset.manifest.sources)
        self.expectation = Expectation(Tokenizer.load(dataset.path), self.recipe)
        self.dropped = {(entry["source"], entry["row"], entry["turn"]) for entry in listed(dataset, DROPPED)}
        self.out = Proof()
        self.cannot: Counter[str] = Counter()
        self.found: dict[str, _Found] = {}

    def run(self, records: int) -> Proof:
        index = Index(self.dataset)
        try:
            keys = index.chosen(records)
            changed = self._changed()
            given = set(self.numbers) - changed
            for number in sorted(set((keys >> 40).tolist()) - given):
                own = keys[keys >> 40 == number]
                why = "the source changed" if number in changed else "the source is not given"
                for start in range(0, len(own), _BLOCK):
                    for documents in index.documents(own[start : start + _BLOCK]).values():
                        self._cannot(why, documents)
            self._walk(index, keys[np.isin(keys >> 40, sorted(given))], given)
        finally:
            index.close()
        self.out.cannot = dict(self.cannot)
        notes = [
            Finding("MP611", f"documents cannot be proved: {why}", count) for why, count in sorted(self.cannot.items())
        ]
        if self.out.refused_turns:
            said = "turns without loss were refused when the dataset was made, which the proof takes as said"
            notes.append(Finding("MP611", said, self.out.refused_turns))
        if self.out.two_readings:
            said = "tokens have two readings (data, or the template's own text), and the proof took either"
            notes.append(Finding("MP611", said, self.out.two_readings))
        found = [Finding(code, kind.text, kind.count, tuple(kind.places)) for code, kind in sorted(self.found.items())]
        self.out.findings = (*found, *notes)
        return self.out

    # -- the source

    def _changed(self) -> set[int]:
        """The numbers of the sources whose bytes are not those that were prepared."""
        for _ in self.sources.chunks():
            pass
        out = set()
        for number, origin in zip(self.numbers, self.sources.origins, strict=True):
            known = self.dataset.manifest.sources[number]
            if origin.sha256 != known.sha256:
                out.add(number)
                text = f"{known.name} has SHA-256 {origin.sha256[:12]}…, the manifest says {known.sha256[:12]}…"
                self._add("MP601", text, 1, [Place(source=known.name)])
        return out

    def _walk(self, index: Index, keys: npt.NDArray[np.int64], given: set[int]) -> None:
        """Compares the records with these keys, in the order of the source."""
        together = Together(self.expectation, index)
        seen = self._walk_once(index, together, keys, given)
        while together.again:
            again, together.again = together.again, []
            for taken in again:
                self._count(taken, -1)
            anew = np.array(sorted(key for taken in again for key in taken.keys), np.int64)
            self._walk_once(index, together, anew, given)
        absent = np.setdiff1d(keys, np.array(seen, np.int64))
        for start in range(0, len(absent), _BLOCK):
            for documents in index.documents(absent[start : start + _BLOCK]).values():
                for stored in documents:
                    self._differs("MP602", stored, "documents of records that the source does not have")

    def _walk_once(self, index: Index, together: Together, keys: npt.NDArray[np.int64], given: set[int]) -> list[int]:
        """The keys that the source has."""
        held: list[tuple[int, Any]] = []
        seen: list[int] = []
        for chunk in self.sources.chunks():
            number = self.numbers[chunk.source]
            base = number << 40
            low, high = np.searchsorted(keys, [base | chunk.first_row, base | (chunk.first_row + chunk.count)])
            if low == high or number not in given:
                continue
            rows = frozenset((keys[low:high] - base).tolist())
            for row, record in chunk.records(_only(rows)):
                if row in rows:
                    held.append((base | row, record))
                    seen.append(base | row)
                    if len(held) >= _BLOCK:
                        self._settle(index, together, held)
        self._settle(index, together, held)
        return seen

    def _settle(self, index: Index, together: Together, held: list[tuple[int, Any]]) -> None:
        records = [(key, self._read(record)) for key, record in held]
        held.clear()
        if not records:
            return
        read = {key: one for key, one in records if isinstance(one, Read)}
        first = frozenset(together.begin(list(read.items())))
        stored = index.documents(np.array(sorted(first), np.int64))
        begun = {key: self._begin(together, key, read[key], stored[key]) for key in sorted(first)}
        taken = together.take([(key, one) for key, one in read.items() if key not in first])
        self._count(taken, 1)
        done = frozenset(taken.keys)
        rest = [(key, one) for key, one in records if key not in done]
        stored = index.documents(np.array([key for key, _ in rest if key not in first], np.int64))
        for at in range(0, len(rest), _TOGETHER):
            self._compare_all(
                [
                    begun.get(key) or self._begin(together, key, one, stored[key])
                    for key, one in rest[at : at + _TOGETHER]
                ]
            )

    def _count(self, taken: Taken, sign: int) -> None:
        self.out.records += sign * len(taken.keys)
        self.out.by_pattern += sign * len(taken.keys)
        self.out.documents += sign * taken.documents
        self.out.tokens += sign * taken.tokens

    # -- records

    def _read(self, record: Any) -> Read | RecordError:
        if isinstance(record, RecordError):
            return record
        try:
            return read_all(record, self.recipe)
        except RecordError as error:
            return error

    def _compare_all(self, begun: list[_Record]) -> None:
        self.out.records += len(begun)
        waiting = [part for _, _, parts in begun for part in parts if isinstance(part, Begun)]
        spelled = iter(self.expectation.speller.spell([text for part in waiting for text in part.texts]))
        tokens = {id(part): [next(spelled) for _ in part.texts] for part in waiting}
        for shown, documents, parts in begun:
            if shown is not None:
                expected, reasons = finish_all(self.expectation, parts, tokens)
                self.out.refused_turns += sum(len(part.refused) for part in parts if isinstance(part, Begun))
                self._compare(shown, documents, expected, reasons)

    def _begin(self, together: Together, key: int, read: Read | RecordError, documents: list[Stored]) -> _Record:
        """The conversations of a record, each begun, or the reason why nothing can be proved of it."""
        if isinstance(read, RecordError):
            for stored in documents:
                self._differs("MP602", stored, f"documents of records that cannot be read: {read.reason}")
            return None, [], []
        whole = [stored for stored in documents if stored.branch == Branch.NONE]
        if len(whole) < len(documents):
            self._compare_pair(read, documents)
            return None, [], []
        parts = begin_all(self.expectation, read, whole)
        together.learn(key, parts)
        return read, whole, parts

    def _compare(self, read: Read, documents: list[Stored], expected: list[Expected], reasons: dict[int, str]) -> None:
        """The documents of one record beside those that it must have become."""
        met: set[int] = set()
        for stored in documents:
            number = closest(stored, expected, read, met)
            if number is not None:
                met.add(number)
                self._compare_tokens(stored, expected[number])
            elif reasons:
                self._cannot(reasons.get(_item_of(stored, read), next(iter(reasons.values()))), [stored])
            else:
                self._differs("MP602", stored, "documents that their record does not become")
        if not documents:
            return
        source, record = documents[0].source, documents[0].record
        for number, document in enumerate(expected):
            own = document.turn if document.turn >= 0 else -1
            if number in met or (source, record, own) in self.dropped or document.item in reasons:
                continue
            if (source, record, document.base) in self.dropped and len(read.items) > 1:
                continue
            if self.expectation.loss(document, document.parts, document.roles).any():
                place = Place(source=self._name(source), record=record, message=own)
                self.out.differ += 1
                self._add("MP603", "documents that their record becomes are not in the dataset", 1, [place])

    def _compare_pair(self, read: Read, documents: list[Stored]) -> None:
        """The documents of a record that is a preference pair. Where the prompt is kept once, it is compared with the
        chosen side's."""
        by = {stored.branch: stored for stored in documents}
        sides = [item for item in read.items if isinstance(item, Conversation) and item.side is not None]
        if len(by) < len(documents) or len(sides) != 2 or not {Branch.CHOSEN, Branch.REJECTED} <= set(by):
            self._cannot("several preference pairs in one record", documents)
            return
        made = []
        try:
            for number, side in enumerate(sides):
                begun = self.expectation.begin(number, 0, side, frozenset())
                made.append(self.expectation.finish(begun, self.expectation.speller.spell(begun.texts)))
        except CannotProveError as error:
            self._cannot(str(error), documents)
            return
        if any(len(side) != 1 for side in made):
            self._differs("MP602", by[Branch.CHOSEN], "documents of pairs that their record does not become")
            return
        assert sides[0].side is not None
        chosen, rejected = made[0][0], made[1][0].rejected(sides[0].side.prompt, len(sides[0].messages))
        prompt = by.get(Branch.PROMPT)
        size = 0 if prompt is None else len(prompt)
        if len(chosen) + len(rejected) - size > self.recipe.sequence_length:
            self._cannot("preference pairs that were cut to fit a sequence", documents)
            return
        proved = self.out.documents
        first = by[Branch.CHOSEN]
        self._compare_tokens(first if prompt is None else first.behind(prompt), chosen)
        if prompt is not None and self.out.documents > proved:
            self.out.documents += 1
        self._compare_tokens(by[Branch.REJECTED], rejected.cut(size, len(rejected)))

    # -- tokens

    def _compare_tokens(self, stored: Stored, document: Expected) -> None:
        if len(stored) != len(document) or _distance(stored, document) > max(4, len(stored) // 2):
            at = _first_difference(stored, document)
            self._differs("MP602", stored, "documents that are not the text of their record", at)
            return
        second = np.zeros(len(stored), bool)
        unlike = (stored.roles != document.roles) | (stored.parts != document.parts)
        unlike |= stored.messages != document.messages
        if document.shown is not None:
            for k in np.flatnonzero(unlike).tolist():
                at = int(document.starts[k])
                message = document.local(int(stored.messages[k]))
                second[k] = document.shown.may_be(at, int(stored.roles[k]), int(stored.parts[k]), message)
        parts = np.where(second, stored.parts, document.parts)
        roles = np.where(second, stored.roles, document.roles)
        mine, theirs = document.flags & _NOT_LOSS, stored.flags & _NOT_LOSS
        loss = self.expectation.loss(document, parts, roles)
        loss[[piece.at for piece in stored.pieces]] = False
        has = stored.flags & np.uint8(Flag.LOSS) > 0
        ones = np.ones(len(stored), np.float32)
        weights = [ones if entry.weights is None else entry.weights for entry in (document, stored)]
        wrong = False
        kinds: tuple[tuple[str, str, npt.NDArray[np.bool_], Callable[[int], str], Callable[[int], str]], ...] = (
            ("MP604", "tokens whose id is not the one that the source gives", stored.ids != document.ids,
             lambda k: f"id {stored.ids[k]}", lambda k: f"id {document.ids[k]}"),
            ("MP605", "tokens whose role or part is not that of their text",
             ((stored.roles != document.roles) | (stored.parts != document.parts)) & ~second,
             lambda k: _role(stored.roles[k], stored.parts[k]), lambda k: _role(document.roles[k], document.parts[k])),
            ("MP606", "tokens that belong to another message", (stored.messages != document.messages) & ~second,
             lambda k: f"message {stored.messages[k]}", lambda k: f"message {document.messages[k]}"),
            ("MP607", "tokens that are sampled and should not be, or not and should", mine != theirs,
             lambda k: _flags(int(theirs[k])), lambda k: _flags(int(mine[k]))),
            ("MP608", "tokens with loss that the recipe gives none, or without it", loss != has,
             lambda k: "loss" if has[k] else "no loss", lambda k: "loss" if loss[k] else "no loss"),
            ("MP609", "tokens whose weight is not the record's", weights[0] != weights[1],
             lambda k: f"weight {weights[1][k]:g}", lambda k: f"weight {weights[0][k]:g}"),
        )  # fmt: skip
        for code, text, mask, said, should in kinds:
            if mask.any():
                wrong = True
                first = int(np.argmax(mask))
                shown = document.text[document.starts[first] : document.ends[first]]
                words = f"{text}; the first, {shown!r}: {said(first)}, the source gives {should(first)}"
                self._add(code, words, int(mask.sum()), list(self._places(stored, document, mask)))
        wrong |= self._compare_verdicts(stored, document)
        if wrong:
            self.out.differ += 1
            return
        self.out.documents += 1
        self.out.tokens += len(stored)
        if document.shown is not None:
            self.out.two_readings += int(np.count_nonzero(document.shown.doubtful[document.starts]))

    def _compare_verdicts(self, stored: Stored, document: Expected) -> bool:
        unlike = sorted(
            message
            for message in {**stored.verdicts, **document.verdicts}
            if stored.verdicts.get(message) != document.verdicts.get(message)
        )
        for message in unlike:
            words = [
                "no turn" if verdict is None else verdict_name(verdict)
                for verdict in (stored.verdicts.get(message), document.verdicts.get(message))
            ]
            text = f"turns with another verdict; the first: {words[0]}, its renders show {words[1]}"
            piece = stored.pieces[0]
            place = Place(
                piece.file, piece.row, piece.start, piece.end, self._name(stored.source), stored.record, message
            )
            self._add("MP610", text, 1, [place])
        return bool(unlike)

    # -- what is said

    def _places(self, stored: Stored, document: Expected, mask: npt.NDArray[np.bool_]) -> Iterator[Place]:
        """The runs of a mask as places, the first of them."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0])))).reshape(-1, 2)
        for start, stop in edges[:PLACES].tolist():
            piece = stored.piece_of(start)
            begin = piece.start + start - piece.at
            yield Place(
                piece.file, piece.row, begin, min(begin + stop - start, piece.end), self._name(stored.source),
                stored.record, int(document.messages[start]), field_of(document, start),
            )  # fmt: skip

    def _differs(self, code: str, stored: Stored, text: str, at: int = 0) -> None:
        """A whole document that is not what it must be."""
        self.out.differ += 1
        piece = stored.piece_of(min(at, len(stored) - 1))
        place = Place(
            piece.file, piece.row, piece.start, piece.end, self._name(stored.source), stored.record, stored.turn
        )
        self._add(code, text, 1, [place])

    def _cannot(self, why: str, documents: Sequence[Stored]) -> None:
        self.cannot[why] += len(documents)
        self.out.cannot_tokens += sum(map(len, documents))

    def _add(self, code: str, text: str, count: int, places: list[Place]) -> None:
        kind = self.found.setdefault(code, _Found(text))
        kind.count += count
        kind.places += places[: max(0, PLACES - len(kind.places))]

    def _name(self, source: int) -> str:
        return self.dataset.manifest.sources[source].name


def _only(rows: frozenset[int]) -> Callable[[int, int], RecordError | None]:
    """What spares the other records of a chunk from being parsed."""
    other = RecordError("not looked at", reason="not_looked_at")
    return lambda row, _: None if row in rows else other


def _refused(documents: list[Stored], base: int, size: int) -> tuple[frozenset[int], frozenset[int]]:
    """The messages of a conversation whose turns the dataset calls refused; and those of them of which it says nothing
    else, and which show nothing sampled."""
    said = {
        message - base: verdict
        for stored in documents
        for message, verdict in stored.verdicts.items()
        if verdict & Verdict.REFUSED and base <= message < base + size
    }
    if not said:
        return frozenset(), frozenset()
    loud: set[int] = set()
    for stored in documents:
        if stored.turn < 0:
            loud |= set((stored.messages[stored.flags & np.uint8(Flag.SAMPLED | Flag.STRADDLES) > 0] - base).tolist())
    silent = {message for message, verdict in said.items() if verdict == Verdict.REFUSED and message not in loud}
    return frozenset(said), frozenset(silent)


def _distance(stored: Stored, document: Expected) -> int:
    """How unlike the ids are."""
    size = min(len(stored), len(document))
    unlike = int(np.count_nonzero(stored.ids[:size] != document.ids[:size]))
    return unlike + abs(len(stored) - len(document))


def _first_difference(stored: Stored, document: Expected) -> int:
    size = min(len(stored), len(document))
    unlike = np.flatnonzero(stored.ids[:size] != document.ids[:size])
    return int(unlike[0]) if len(unlike) else size - 1


def field_of(document: Expected, position: int) -> str:
    """The field of the record's conversation that a token's first character is from; "" for the template's text."""
    shown = document.shown
    if shown is None:
        return "text"
    leaf = int(shown.leaf[document.starts[position]])
    if leaf < 0:
        return ""
    path = shown.data.leaves[leaf].path
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _role(role: Any, part: Any) -> str:
    return f"{Role(role).name.lower()} {Part(part).name.lower()}"


def _flags(flags: int) -> str:
    return (
        ", ".join(flag.name.lower().replace("_", " ") for flag in Flag if flags & flag and flag.name) or "not sampled"
    )
