"""diff: what two datasets say differently, record by record.

    recipe and tokenizer first, then for every record: is it in both, and are its documents, tokens, roles, sampled
    flags, loss, weights and verdicts the same? Counts of everything; the first records are shown around the first
    token that differs.

Records are the same when they come from the same row of the same source: one with the same bytes or, where bytes
differ, with the same name. How rows are packed is no difference between records. Memory: see digests.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe.derived import listed
from maskpipe.digests import FACTS, RecordIndex, Records, blocks
from maskpipe.document import Document
from maskpipe.encoder import with_loss
from maskpipe.errors import MaskpipeError
from maskpipe.explain import visible
from maskpipe.policy import Policy
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, verdict_name
from maskpipe.shards.documents import table_to_documents
from maskpipe.shards.format import CHUNKS, DROPPED, RECIPE, REJECTS, Branch
from maskpipe.shards.manifest import Manifest
from maskpipe.shards.reader import Dataset
from maskpipe.shards.reader import open as open_dataset
from maskpipe.shards.unpack import join, unpack_shards
from maskpipe.tokenizer import Tokenizer

CONTEXT = 12
"""Tokens shown before the first that differs."""


@dataclass
class Difference:
    """What differs between a and b; `same` when nothing does."""

    a: str
    b: str
    recipe: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Key → its values; a key that one does not have is None there."""
    tokenizer: list[str] = field(default_factory=list)
    """Embedded files that differ, and vocab_size, pad_id, label_version."""
    sources: dict[str, list[str]] = field(default_factory=lambda: {"only_a": [], "only_b": [], "changed": []})
    """Names; changed: the same name with other bytes, compared row by row."""
    records: dict[str, int] = field(default_factory=lambda: {"both": 0, "same": 0, "only_a": 0, "only_b": 0})
    differ: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FACTS, 0))
    """Fact → records in both that differ in it."""
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows_equal: bool = False
    """The packed rows are the same too: both have one fingerprint, or would but for the recipe."""
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Same recipe, tokenizer, sources, and the same of every record."""
        return not (
            self.recipe
            or self.tokenizer
            or any(self.sources.values())
            or self.records["only_a"]
            or self.records["only_b"]
            or any(self.differ.values())
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values with stable keys: what --format json prints."""
        return {
            "same": self.same,
            "a": self.a,
            "b": self.b,
            "recipe": {key: {"a": a, "b": b} for key, (a, b) in self.recipe.items()},
            "tokenizer": self.tokenizer,
            "sources": self.sources,
            "records": self.records,
            "differ": self.differ,
            "totals": {name: {"a": a, "b": b} for name, (a, b) in self.totals.items()},
            "packed_alike": self.rows_equal,
            "examples": self.examples,
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def diff(a: str | Path, b: str | Path, *, examples: int = 5) -> Difference:
    """What the datasets a and b say differently, with that many records shown. DatasetError when one is damaged."""
    with open_dataset(a) as left, open_dataset(b) as right:
        out = Difference(str(a), str(b))
        _compare_heads(left, right, out)
        numbers = _match_sources(left.manifest, right.manifest, out)
        found: list[tuple[int, int, list[str]]] = []
        indexes = [RecordIndex(dataset, own) for dataset, own in zip((left, right), numbers, strict=True)]
        for x, y in blocks(*indexes):
            found += _compare(x, y, out, examples - len(found))
        if not (out.recipe or any(out.sources.values())):
            out.rows_equal = left.manifest.fingerprint == right.manifest.fingerprint
        out.examples = _examples((left, right), numbers, found)
    return out


# -- what is compared


def _compare_heads(left: Dataset, right: Dataset, out: Difference) -> None:
    a, b = left.manifest, right.manifest
    for key in {**a.recipe, **b.recipe}:
        if (key in a.recipe) != (key in b.recipe) or a.recipe.get(key) != b.recipe.get(key):
            out.recipe[key] = (a.recipe.get(key), b.recipe.get(key))
    own = (RECIPE, REJECTS, DROPPED, CHUNKS)
    files = [{f.name: f.sha256 for f in m.files if f.name not in own} for m in (a, b)]
    out.tokenizer = sorted(name for name in {**files[0], **files[1]} if files[0].get(name) != files[1].get(name))
    out.tokenizer += [
        name for name in ("vocab_size", "pad_id", "label_version") if getattr(a, name) != getattr(b, name)
    ]
    counts = (
        ("records", a.records, b.records),
        ("records_kept", a.records_kept, b.records_kept),
        ("sequences", a.totals.sequences, b.totals.sequences),
        ("documents", a.totals.documents, b.totals.documents),
        ("tokens", a.totals.n_tokens, b.totals.n_tokens),
        ("loss_tokens", a.totals.n_loss, b.totals.n_loss),
    )
    out.totals = {name: (x, y) for name, x, y in counts}


def _match_sources(a: Manifest, b: Manifest, out: Difference) -> tuple[list[int], list[int]]:
    """Shared numbers of the sources of a and of b: the k-th with some bytes is the k-th with them, then by names."""
    numbers_a = list(range(len(a.sources)))
    numbers_b = [-1] * len(b.sources)
    taken: set[int] = set()
    for key in ("sha256", "name"):
        free: dict[str, list[int]] = {}
        for number, source in enumerate(a.sources):
            if number not in taken:
                free.setdefault(getattr(source, key), []).append(number)
        for number, source in enumerate(b.sources):
            if numbers_b[number] < 0 and free.get(getattr(source, key)):
                numbers_b[number] = free[getattr(source, key)].pop(0)
                taken.add(numbers_b[number])
                if key == "name":
                    out.sources["changed"].append(source.name)
    out.sources["only_a"] = [source.name for number, source in enumerate(a.sources) if number not in taken]
    out.sources["only_b"] = [s.name for s, number in zip(b.sources, numbers_b, strict=True) if number < 0]
    first = len(a.sources)
    return numbers_a, [first + k if number < 0 else number for k, number in enumerate(numbers_b)]


def _compare(x: Records, y: Records, out: Difference, wanted: int) -> list[tuple[int, int, list[str]]]:
    """Counts the differences of a block; the first `wanted` records that differ, as (source, row, what)."""
    _, in_x, in_y = np.intersect1d(x["row"], y["row"], assume_unique=True, return_indices=True)
    both_x, both_y = x[in_x], y[in_y]
    only_x, only_y = np.delete(x, in_x), np.delete(y, in_y)
    different = np.zeros(len(both_x), bool)
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for fact in FACTS:
        masks[fact] = both_x[fact] != both_y[fact]
        out.differ[fact] += int(masks[fact].sum())
        different |= masks[fact]
    out.records["both"] += len(both_x)
    out.records["same"] += int(len(both_x) - different.sum())
    out.records["only_a"] += len(only_x)
    out.records["only_b"] += len(only_y)
    if wanted <= 0:
        return []
    found = [
        (int(both_x["source"][k]), int(both_x["row"][k]), [fact for fact in FACTS if masks[fact][k]])
        for k in np.flatnonzero(different)[:wanted].tolist()
    ]
    found += [(int(r["source"]), int(r["row"]), ["only_a"]) for r in only_x[:wanted]]
    found += [(int(r["source"]), int(r["row"]), ["only_b"]) for r in only_y[:wanted]]
    return sorted(found)[:wanted]


# -- what is shown of a record


def _examples(
    datasets: tuple[Dataset, Dataset], numbers: Sequence[Sequence[int]], found: Sequence[tuple[int, int, list[str]]]
) -> list[dict[str, Any]]:
    if not found:
        return []
    keys = {(source, row) for source, row, _ in found}
    documents = [_documents(dataset, own, keys) for dataset, own in zip(datasets, numbers, strict=True)]
    why = [_rejected(dataset, own, keys) for dataset, own in zip(datasets, numbers, strict=True)]
    tokenizers = [Tokenizer.load(dataset.path) for dataset in datasets]
    names = {
        shared: source.name
        for dataset, own in zip(datasets[::-1], numbers[::-1], strict=True)
        for shared, source in zip(own, dataset.manifest.sources, strict=True)
    }
    out = []
    for source, row, what in found:
        key = (source, row)
        entry: dict[str, Any] = {"source": names[source], "row": row, "differs": what}
        reasons = {side: rejects[key] for side, rejects in zip("ab", why, strict=True) if key in rejects}
        if reasons:
            entry["rejected"] = reasons
        entry["documents"] = _shown_documents(documents[0].get(key, []), documents[1].get(key, []), tokenizers)
        out.append(entry)
    return out


def _documents(
    dataset: Dataset, numbers: Sequence[int], keys: set[tuple[int, int]]
) -> dict[tuple[int, int], list[Document]]:
    """The documents of some records, in order of their turns, whole ones where packing cut them."""
    own = {(numbers.index(source), row) for source, row in keys if source in numbers}
    rows = np.array(sorted({row for _, row in own}), np.int64)
    parts: dict[tuple[int, int, int, int], list[tuple[int, Document]]] = {}
    whole: dict[tuple[int, int], list[Document]] = {}
    policy = Policy.of(Recipe.from_dict(dataset.manifest.recipe))
    for _, unpacked in unpack_shards(dataset):
        facts = unpacked.facts
        if not len(own):
            break
        near = np.flatnonzero(np.isin(facts["row"], rows))
        chosen = [k for k in near.tolist() if (int(facts["source"][k]), int(facts["row"][k])) in own]
        if not chosen:
            continue
        for k, document in zip(chosen, table_to_documents(unpacked.table.take(chosen)), strict=True):
            key, start, length = (document.source, document.row), int(facts["start"][k]), int(facts["length"][k])
            if len(document) == length:
                whole.setdefault(key, []).append(document)
                continue
            fragments = parts.setdefault((*key, document.turn, length), [])
            fragments.append((start, document))
            if sum(len(fragment) for _, fragment in fragments) == length:
                fragments.sort(key=lambda entry: entry[0])
                joined = join([fragment for _, fragment in fragments], [start for start, _ in fragments])
                whole.setdefault(key, []).append(with_loss(joined, policy))
    return {
        (numbers[source], row): sorted(documents, key=_conversation_and_turn)
        for (source, row), documents in whole.items()
    }


def _conversation_and_turn(document: Document) -> tuple[int, int]:
    """What tells the documents of a record apart: a record may hold several conversations. The prompt of a pair has no
    turns to train, and is told by its messages."""
    own = document.message_ids[document.message_ids >= 0].tolist() if document.branch is Branch.PROMPT else ()
    return min(document.verdicts, default=min(own, default=-1)), document.turn


def _rejected(dataset: Dataset, numbers: Sequence[int], keys: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Why the dataset has no such record: the reason and the message of rejects.jsonl."""
    entries = ((numbers[entry["source"]], entry) for entry in listed(dataset, REJECTS))
    return {
        (source, entry["row"]): f"{entry['reason']}: {entry['message']}"
        for source, entry in entries
        if (source, entry["row"]) in keys
    }


def _shown_documents(a: list[Document], b: list[Document], tokenizers: Sequence[Tokenizer]) -> list[dict[str, Any]]:
    """Of the documents of one record those that differ, by turn; None where one side has no such document."""
    out = []
    for key in sorted({_conversation_and_turn(document) for document in (*a, *b)}):
        left = [document for document in a if _conversation_and_turn(document) == key]
        right = [document for document in b if _conversation_and_turn(document) == key]
        for k in range(max(len(left), len(right))):
            x, y = left[k] if k < len(left) else None, right[k] if k < len(right) else None
            entry: dict[str, Any] = {
                "turn": key[1],
                "tokens": [None if d is None else len(d) for d in (x, y)],
                "loss_tokens": [None if d is None else int(d.loss_mask.sum()) for d in (x, y)],
            }
            if x is not None and y is not None:
                if verdicts(x) != verdicts(y):
                    entry["verdicts"] = [verdicts(x), verdicts(y)]
                position = first_difference(x, y)
                if position is not None:
                    entry["position"] = position
                    entry["before"] = tokenizers[0].decode(x.input_ids[max(0, position - CONTEXT) : position].tolist())
                    entry["at"] = [_token(d, position, t) for d, t in zip((x, y), tokenizers, strict=True)]
                elif "verdicts" not in entry:
                    continue
            out.append(entry)
    return out


def first_difference(a: Document, b: Document) -> int | None:
    """The first token that differs in any fact, or the length of the shorter document; None when they are the same."""
    size = min(len(a), len(b))
    different = np.zeros(size, bool)
    for name in ("input_ids", "role_ids", "part_ids", "flags", "message_ids"):
        different |= getattr(a, name)[:size] != getattr(b, name)[:size]
    if a.weights is not None or b.weights is not None:
        x, y = (np.ones(len(d), np.float32) if d.weights is None else d.weights for d in (a, b))
        different |= x[:size] != y[:size]
    if different.any():
        return int(np.argmax(different))
    return size if len(a) != len(b) else None


def verdicts(document: Document) -> dict[str, str]:
    """Message → name of the verdict."""
    return {str(message): verdict_name(int(verdict)) for message, verdict in sorted(document.verdicts.items())}


def _token(document: Document, position: int, tokenizer: Tokenizer) -> dict[str, Any] | None:
    if position >= len(document):
        return None
    id, flags = int(document.input_ids[position]), int(document.flags[position])
    return {
        "id": id,
        "text": _text(tokenizer, id),
        "role": Role(int(document.role_ids[position])).name.lower(),
        "part": Part(int(document.part_ids[position])).name.lower(),
        "message": int(document.message_ids[position]),
        "loss": bool(flags & Flag.LOSS),
        "flags": [flag.name.lower() for flag in Flag if flags & flag and flag is not Flag.LOSS and flag.name],
        "weight": 1.0 if document.weights is None else float(document.weights[position]),
    }


def _text(tokenizer: Tokenizer, id: int) -> str:
    try:
        return tokenizer.token_bytes(id).decode("utf-8", "backslashreplace")
    except (MaskpipeError, KeyError, IndexError):
        return tokenizer.decode([id])


# -- how it is said


def _lines(d: Difference) -> Iterator[str]:
    if d.same:
        packed = "packed alike" if d.rows_equal else "but packed differently"
        yield f"same      {d.records['both']:,} records, recipe and tokenizer; {packed}"
        return
    yield f"a         {d.a}"
    yield f"b         {d.b}"
    for k, (key, (x, y)) in enumerate(d.recipe.items()):
        yield f"{'recipe' if k == 0 else '':<10}{key}: {_short(x)} -> {_short(y)}"
    if d.tokenizer:
        yield f"tokenizer {', '.join(d.tokenizer)} differ{'s' if len(d.tokenizer) == 1 else ''}"
    words = {"only_a": "only in a", "only_b": "only in b", "changed": "the same name with other bytes"}
    for what, names in d.sources.items():
        if names:
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            yield f"sources   {words[what]}: {', '.join(map(visible, names[:5]))}{more}"
    records = d.records
    yield (
        f"records   {records['both']:,} in both, {records['same']:,} of them the same; "
        f"{records['only_a']:,} only in a, {records['only_b']:,} only in b"
    )
    if any(d.differ.values()):
        yield "differ in " + "   ".join(f"{fact} {n:,}" for fact, n in d.differ.items() if n)
    yield "totals    " + "   ".join(
        f"{name.replace('_', ' ')} {x:,}" + ("" if x == y else f" -> {y:,} ({y - x:+,})")
        for name, (x, y) in d.totals.items()
    )
    for example in d.examples:
        yield ""
        yield from _example_lines(example)


def _example_lines(example: Mapping[str, Any]) -> Iterator[str]:
    words = {"only_a": "only in a", "only_b": "only in b"}
    differs = ", ".join(words.get(what, what) for what in example["differs"])
    yield f"{visible(example['source'])}, record {example['row']:,}: {differs}"
    for side, reason in example.get("rejected", {}).items():
        yield f"  {side} rejected it: {_clip(visible(reason))}"
    for document in example["documents"]:
        turn = "" if document["turn"] < 0 else f" of turn {document['turn']}"
        sizes = [
            "no document" if n is None else f"{n:,} tokens, {loss:,} with loss"
            for n, loss in zip(document["tokens"], document["loss_tokens"], strict=True)
        ]
        yield f"  document{turn}: {sizes[0]}" + ("" if sizes[0] == sizes[1] else f" -> {sizes[1]}")
        if "verdicts" in document:
            x, y = document["verdicts"]
            changed = [m for m in sorted({**x, **y}, key=int) if x.get(m) != y.get(m)]
            for message in changed[:3]:
                yield f"    verdict of message {message}: {x.get(message, 'none')} -> {y.get(message, 'none')}"
        if "position" in document:
            before = _clip(visible(document["before"]), 60, end=True)
            yield f"    first at token {document['position']:,}, after “{before}”"
            for side, token in zip("ab", document["at"], strict=True):
                yield f"      {side}  {_token_line(token)}"


def _token_line(token: Mapping[str, Any] | None) -> str:
    if token is None:
        return "(the document has ended)"
    message = "" if token["message"] < 0 else f" of message {token['message']}"
    weight = "" if token["weight"] == 1 else f", weight {token['weight']:g}"
    flags = "".join(f", {flag.replace('_', ' ')}" for flag in token["flags"])
    return (
        f"{token['id']} “{_clip(visible(token['text']), 30)}”  {token['role']}.{token['part']}{message}  "
        f"{'loss' if token['loss'] else 'no loss'}{flags}{weight}"
    )


def _short(value: Any) -> str:
    return "(not there)" if value is None else _clip(visible(json.dumps(value, ensure_ascii=False)), 60)


def _clip(text: str, width: int = 120, *, end: bool = False) -> str:
    if len(text) <= width:
        return text
    return "…" + text[-(width - 1) :] if end else text[: width - 1] + "…"
