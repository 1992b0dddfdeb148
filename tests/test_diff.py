"""diff finds every difference between records, whatever the packing, and says where it begins."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import maskpipe
from maskpipe import demo_data, digests, partitions
from maskpipe.diff import Difference, diff, first_difference
from maskpipe.document import Document
from maskpipe.errors import DatasetError
from maskpipe.repack import repack
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.sources import limits
from tests.made_datasets import chat as made_chat
from tests.made_datasets import publish_documents
from tests.test_repack import LONG, TOKENIZER, chat, leaf, prepare, reasoning, weighted, words


@pytest.fixture
def blocks_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "RUN_RECORDS", 7)
    monkeypatch.setattr(digests, "BLOCK_RECORDS", 5)


def by_record(out: Path) -> dict[tuple[int, int], list[Document]]:
    found = defaultdict(list)
    with maskpipe.open(out) as dataset:
        for document in dataset.documents():
            found[document.source, document.row].append(document)
    return {key: sorted(documents, key=lambda d: (d.turn, len(d))) for key, documents in found.items()}


def slow_twin(a: Path, b: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Everything in memory, document by document."""
    x, y = by_record(a), by_record(b)
    differ = dict.fromkeys(digests.FACTS, 0)
    same = 0
    for key in x.keys() & y.keys():
        facts = [
            {
                "documents": [(d.turn, len(d)) for d in documents],
                "tokens": [d.input_ids.tolist() for d in documents],
                "roles": [(d.role_ids.tolist(), d.part_ids.tolist(), d.message_ids.tolist()) for d in documents],
                "sampled": [(d.flags & 0xFF ^ d.flags & Flag.LOSS).tolist() for d in documents],
                "loss": [d.loss_mask.tolist() for d in documents],
                "weights": [np.ones(len(d)).tolist() if d.weights is None else d.weights.tolist() for d in documents],
                "verdicts": [d.verdicts for d in documents],
            }
            for documents in (x[key], y[key])
        ]
        found = [fact for fact in digests.FACTS if facts[0][fact] != facts[1][fact]]
        differ.update({fact: differ[fact] + 1 for fact in found})
        same += not found
    both = len(x.keys() & y.keys())
    return {"both": both, "same": same, "only_a": len(x) - both, "only_b": len(y) - both}, differ


@pytest.mark.usefixtures("blocks_of_few")
@pytest.mark.parametrize(
    "change",
    [
        {"train_on": ("assistant", "last_turn")},
        {"train_on": ("assistant", "tool.content")},
        {"sequence_length": 1100},
        {"sequence_length": 100},
        {"on_history_rewrite": "accept"},
        {"clock": "2020-01-01T00:00:00"},
    ],
)
def test_another_recipe_makes_the_differences_that_a_slow_look_finds(change: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "chats.jsonl"
    records = [chat(1 + k % 4, 3 + k) for k in range(20)] + [reasoning(1 + k % 3, 4) for k in range(8)]
    source.write_text("".join(json.dumps(record) + "\n" for record in [*records, *map(weighted, range(6))]))
    recipe = {"sequence_length": 1024, "on_bad_record": "reject"}
    a, b = prepare(source, tmp_path / "a", **recipe), prepare(source, tmp_path / "b", **{**recipe, **change})
    found = diff(a, b)
    assert (found.records, found.differ) == slow_twin(a, b)
    assert list(found.recipe) == list(change)
    assert not found.same
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found)


def test_a_dataset_is_the_same_as_itself_and_as_itself_packed_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a = prepare(demo_data.chats(), tmp_path / "a", sequence_length=1024)
    found = diff(a, a)
    assert found.same and found.rows_equal and not found.examples
    assert str(found) == "same      78 records, recipe and tokenizer; packed alike"
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 4000)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    b = prepare(demo_data.chats(), tmp_path / "b", sequence_length=1024)
    found = diff(a, b)
    assert found.same and not found.rows_equal
    assert "packed differently" in str(found)


def test_documents_that_packing_cut_elsewhere_are_the_same(tmp_path: Path) -> None:
    texts = [{"text": words(1 + 13 * row % 190, row)} for row in range(40)]
    recipe = {"objective": "pretrain", "packing": "concat_split"}
    a = prepare(texts, tmp_path / "a", sequence_length=96, **recipe)
    repack(a, tmp_path / "b", sequence_length=400)
    found = diff(a, tmp_path / "b")
    assert list(found.recipe) == ["sequence_length"]
    assert found.records["both"] == found.records["same"] > 30
    chats = [weighted(row) for row in range(20)]
    c = prepare(chats, tmp_path / "c", sequence_length=50, **recipe)
    repack(c, tmp_path / "d", sequence_length=70)
    found = diff(c, tmp_path / "d")
    assert found.records["both"] == found.records["same"] == 20


FACT_OF = {
    "input_ids": "tokens",
    "role_ids": "roles",
    "part_ids": "roles",
    "message_ids": "roles",
    "weights": "weights",
}


@settings(max_examples=100 if LONG else 8)
@given(
    name=st.sampled_from([*FACT_OF, "loss", "sampled", "verdict"]),
    which=st.integers(0, 7),
    place=st.integers(1, 40),
)
def test_one_changed_token_is_found_and_shown(
    name: str, which: int, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp = tmp_path_factory.mktemp("diff")
    documents = [made_chat(60, row, weighted=row % 3 == 2) for row in range(8)]
    changed = list(documents)
    old = documents[which]
    if name in FACT_OF:
        values = np.ones(60, np.float32) if name == "weights" and old.weights is None else getattr(old, name)
        assert values is not None
        values = values.copy()
        values[place] = {"weights": 0.25, "role_ids": Role.SYSTEM, "part_ids": Part.REASONING}.get(name, 99)
        changed[which] = dataclasses.replace(old, **{name: values})
    elif name == "verdict":
        changed[which] = dataclasses.replace(old, verdicts={1: Verdict.REFUSED, 3: Verdict.EXACT})
    else:
        flags = old.flags.copy()
        flags[place] = {"loss": (flags[place] & ~np.uint8(Flag.STRADDLES)) ^ Flag.LOSS, "sampled": 0}[name]
        changed[which] = dataclasses.replace(old, flags=flags)
    size = TOKENIZER.vocab_size
    for out, given_documents in (("a", documents), ("b", changed)):
        publish_documents(tmp / out, given_documents, files=dict(TOKENIZER.files), vocab_size=max(1000, size))
    found = diff(tmp / "a", tmp / "b")
    assert (found.records, found.differ) == slow_twin(tmp / "a", tmp / "b")
    if found.same:
        assert name == "sampled"
        return
    assert found.records == {"both": 8, "same": 7, "only_a": 0, "only_b": 0}
    (example,) = found.examples
    assert (example["source"], example["row"]) == ("chats.jsonl", which)
    (document,) = example["documents"]
    if name == "verdict":
        assert document["verdicts"][1] == {"1": "refused", "3": "exact"}
    else:
        assert document["position"] == place == first_difference(old, changed[which])
        assert document["at"][0]["id"] == old.input_ids[place]
    assert "chats.jsonl, record" in str(found)


def test_two_completions_that_change_places_are_a_difference(tmp_path: Path) -> None:
    record = {"prompt": {"text": "why", "role": "prompter", "replies": [leaf(5, 1), leaf(5, 2)]}}
    swapped = {"prompt": {**record["prompt"], "replies": record["prompt"]["replies"][::-1]}}  # type: ignore[dict-item]
    for name, given_record in (("a", record), ("b", swapped)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(given_record) + "\n")
        (tmp_path / f"{name}.jsonl").rename(tmp_path / "data.jsonl")
        prepare(tmp_path / "data.jsonl", tmp_path / name, sequence_length=128)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert (found.differ["tokens"], found.differ["documents"]) == (1, 0)
    assert len(found.examples[0]["documents"]) == 2


def test_records_on_one_side_only_say_why(tmp_path: Path) -> None:
    records = [chat(1, 4), chat(1, 300), chat(2, 5)]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    a = prepare(source, tmp_path / "a", sequence_length=1024)
    b = prepare(source, tmp_path / "b", sequence_length=128, on_too_long="drop")
    found = diff(a, b)
    assert found.records == {"both": 2, "same": 2, "only_a": 1, "only_b": 0}
    (example,) = found.examples
    assert example["row"] == 1 and example["differs"] == ["only_a"]
    assert "too_long" in example["rejected"]["b"]
    assert "only in a" in str(found) and "b rejected it: too_long" in str(found)
    assert diff(b, a).records["only_b"] == 1


def test_sources_match_by_bytes_then_by_name(tmp_path: Path) -> None:
    files = {}
    for name, records in (("x", [chat(1, 4)]), ("y", [chat(2, 4)]), ("z", [chat(1, 9)])):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    a = prepare([files["x"], files["y"]], tmp_path / "a", sequence_length=512)
    b = prepare([files["y"], files["x"]], tmp_path / "b", sequence_length=512)
    assert diff(a, b).records == {"both": 2, "same": 2, "only_a": 0, "only_b": 0}
    files["x"].write_text(json.dumps(chat(1, 5)) + "\n")
    c = prepare([files["x"], files["z"]], tmp_path / "c", sequence_length=512)
    found = diff(a, c)
    assert found.sources == {"only_a": ["y.jsonl"], "only_b": ["z.jsonl"], "changed": ["x.jsonl"]}
    assert found.records == {"both": 1, "same": 0, "only_a": 1, "only_b": 1}


def test_a_damaged_dataset_cannot_be_compared(tmp_path: Path) -> None:
    a = prepare([chat(1, 4)], tmp_path / "a", sequence_length=512)
    prepare([chat(1, 4)], tmp_path / "b", sequence_length=512)
    shard = next((tmp_path / "b").glob("part-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError):
        diff(a, tmp_path / "b")
    assert isinstance(diff(a, a), Difference)
