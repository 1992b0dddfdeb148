"""A dataset packed anew is, byte for byte, what prepare makes of the same sources, or it is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maskpipe
from maskpipe import demo_data, partitions, repack
from maskpipe.errors import DatasetError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.shards.verify import verify
from maskpipe.sources import limits
from maskpipe.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
LONG = os.environ.get("MASKPIPE_LONG") == "1"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "looked",
    "at",
    "the",
    "moon",
    "for",
    "a",
    "while",
    "then",
    "it",
    "slept",
]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few records, partitions of a few chunks, shards and groups of a few rows: every seam is crossed."""
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 4000)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    monkeypatch.setattr(Recipe, "shard_bytes", 4 * 1024 * 3)
    monkeypatch.setattr(repack, "GROUP_TOKENS", 3000)


def prepare(source: Any, out: Path, **recipe: Any) -> Path:
    maskpipe.prepare(source, out, tokenizer=TOKENIZER, recipe=Recipe(**recipe), workers=1)
    return out


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "run.json"}


def same(source: Any, tmp: Path, before: dict[str, Any], after: dict[str, Any]) -> repack.Repacked:
    """Prepares both ways and demands the same bytes; returns what repack says."""
    prepare(source, tmp / "before", **before)
    prepare(source, tmp / "after", **after)
    made = repack.repack(
        tmp / "before", tmp / "again", sequence_length=after["sequence_length"], packing=after.get("packing")
    )
    assert bytes_of(tmp / "again") == bytes_of(tmp / "after")
    verify(tmp / "again")
    return made


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("before", "after"),
    [(1024, 2048), (2048, 1024)],
)
def test_chats_in_rows_of_any_length_are_what_prepare_makes(before: int, after: int, tmp_path: Path) -> None:
    source = demo_data.chats()
    made = same(source, tmp_path, {"sequence_length": before}, {"sequence_length": after})
    assert len(made.before.shards) > 2
    assert not made.counts


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("packing", ["none", "first_fit"])
def test_chats_packed_by_any_method_are_what_prepare_makes(packing: str, tmp_path: Path) -> None:
    first = "best_fit" if packing == "none" else "none"
    same(
        demo_data.chats(),
        tmp_path,
        {"sequence_length": 1000, "packing": first},
        {"sequence_length": 1100, "packing": packing},
    )


@pytest.mark.usefixtures("small_steps")
def test_what_is_too_long_now_is_cut_as_prepare_does(tmp_path: Path) -> None:
    long = [chat(4 + row % 5, 12 + row % 7) for row in range(40)]
    made = same(long, tmp_path, {"sequence_length": 1024}, {"sequence_length": 160})
    assert made.counts["documents_truncated"] > 0
    assert made.before.totals.n_tokens == made.manifest.totals.n_tokens + made.counts["tokens_truncated"]


@pytest.mark.usefixtures("small_steps")
def test_what_is_too_long_now_is_dropped_as_prepare_does(tmp_path: Path) -> None:
    """Turns that reasoned have documents of their own, each longer than the one before, so the first ones still fit."""
    long = [reasoning(4 + row % 5, 12 + row % 7) for row in range(40)]
    drop = {"on_too_long": "drop"}
    made = same(long, tmp_path, {"sequence_length": 1024, **drop}, {"sequence_length": 200, **drop})
    assert made.counts["tokens_dropped_too_long"] > 0
    assert made.manifest.dropped["too_long"] > 40


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"packing": "concat_split"}, {"packing": "concat_split"}),
        ({"packing": "concat_split"}, {"packing": "best_fit", "on_too_long": "split"}),
        ({"packing": "best_fit", "on_too_long": "split"}, {"packing": "concat_split", "on_too_long": "split"}),
        ({"packing": "best_fit", "on_too_long": "split"}, {"packing": "first_fit", "on_too_long": "split"}),
    ],
)
def test_text_that_packing_cuts_is_made_whole_again(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    on_too_long = {"on_too_long": after["on_too_long"]} if "on_too_long" in after else {}
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": words(1 + 13 * row % 190, row)}) + "\n" for row in range(120)))
    same(
        texts,
        tmp_path,
        {"objective": "pretrain", "sequence_length": 400, **before, **on_too_long},
        {"objective": "pretrain", "sequence_length": 96 if before["packing"] == "concat_split" else 400, **after},
    )


@pytest.mark.usefixtures("small_steps")
def test_weighted_chats_in_pretraining_are_made_whole_with_their_weights(tmp_path: Path) -> None:
    records = [weighted(row) for row in range(30)]
    before = {"objective": "pretrain", "packing": "concat_split"}
    same(records, tmp_path, {"sequence_length": 64, **before}, {"sequence_length": 90, **before})


@pytest.mark.usefixtures("small_steps")
def test_records_of_several_conversations_keep_their_order(tmp_path: Path) -> None:
    records = [tree(row) for row in range(25)]
    same(records, tmp_path, {"sequence_length": 300}, {"sequence_length": 400})
    with pytest.raises(UsageError, match="holds several conversations"):
        repack.repack(tmp_path / "before", tmp_path / "short", sequence_length=60)


@settings(max_examples=40 if LONG else 5, suppress_health_check=[HealthCheck.too_slow])
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=12),
    lengths=st.tuples(st.integers(30, 500), st.integers(30, 500)),
)
def test_what_is_allowed_equals_prepare_and_what_is_not_says_why(
    shapes: list[tuple[int, int]], lengths: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the chats and the lengths: the bytes of prepare, or a refusal that a change of records would explain."""
    tmp = tmp_path_factory.mktemp("repack")
    records = [chat(turns, size) for turns, size in shapes]
    try:
        for name, length in zip(("before", "after"), lengths, strict=True):
            prepare(records, tmp / name, sequence_length=length, on_bad_record="reject")
    except maskpipe.RecordError:
        return  # nothing is left at one of the lengths
    before, after = maskpipe.open(tmp / "before").manifest, maskpipe.open(tmp / "after").manifest
    try:
        repack.repack(tmp / "before", tmp / "again", sequence_length=lengths[1])
    except UsageError as error:
        cut = before.totals.n_tokens != after.totals.n_tokens or before.rejected or before.dropped
        truncated = "cut" in str(error)
        assert cut or truncated
        return
    assert bytes_of(tmp / "again") == bytes_of(tmp / "after")


# -- what is refused


@pytest.mark.usefixtures("small_steps")
def test_sources_taken_several_times_are_as_prepare_has_them(tmp_path: Path) -> None:
    records = [chat(1 + row % 3, 4) for row in range(40)] + [tree(row) for row in range(10)]
    recipe = {"source_weights": {"iterable": 2.5}, "validation": 0.2, "on_bad_record": "reject"}
    for length in (1024, 512):
        prepare(records, tmp_path / f"{length}", sequence_length=length, **recipe)
    for side in ("train", "validation"):
        repack.repack(tmp_path / "1024" / side, tmp_path / side, sequence_length=512)
        assert bytes_of(tmp_path / side) == bytes_of(tmp_path / "512" / side)
    with pytest.raises(UsageError, match="source_weights"):
        repack.repack(tmp_path / "1024/train", tmp_path / "short", sequence_length=32)


def test_rows_do_not_grow_where_documents_were_cut(tmp_path: Path) -> None:
    prepare([chat(6, 12)] * 3, tmp_path / "out", sequence_length=160)
    with pytest.raises(UsageError, match=r"3 documents were cut for being longer than 160 tokens.*prepare it anew"):
        repack.repack(tmp_path / "out", tmp_path / "new", sequence_length=1024)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_rows_do_not_grow_where_records_were_rejected(tmp_path: Path) -> None:
    prepare([chat(1, 2), chat(6, 60)], tmp_path / "out", sequence_length=128, on_too_long="drop")
    with pytest.raises(UsageError, match="1 records were rejected for being longer"):
        repack.repack(tmp_path / "out", tmp_path / "new", sequence_length=1024)
    assert repack.repack(tmp_path / "out", tmp_path / "none", packing="none").manifest.totals.sequences == 1


def test_text_that_was_split_stays_split(tmp_path: Path) -> None:
    recipe = {"objective": "pretrain", "on_too_long": "split", "sequence_length": 64}
    prepare([{"text": words(200, 1)}], tmp_path / "out", **recipe)
    with pytest.raises(UsageError, match="1 documents were split"):
        repack.repack(tmp_path / "out", tmp_path / "new", sequence_length=128)


def test_a_record_that_would_be_rejected_is_named(tmp_path: Path) -> None:
    prepare([chat(1, 3), chat(1, 80)], tmp_path / "out", sequence_length=512)
    with pytest.raises(UsageError, match=r"record 1 of source 0 does not fit rows of 64 tokens.*too_long"):
        repack.repack(tmp_path / "out", tmp_path / "new", sequence_length=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_nothing_is_overwritten_and_damage_is_found(tmp_path: Path) -> None:
    prepare(demo_data.chats(), tmp_path / "out", sequence_length=1024)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        repack.repack(tmp_path / "out", tmp_path / "mine", sequence_length=1024)
    for name, match in (("chunks.jsonl", "chunks.jsonl"), ("tokenizer.json", "tokenizer.json"), (None, "region")):
        file = next(tmp_path.glob(f"out/{name or 'part-*.arrow'}"))
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        with pytest.raises(DatasetError, match=match):
            repack.repack(tmp_path / "out", tmp_path / "new", sequence_length=1024)
        file.write_bytes(data)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


# -- records


def words(count: int, seed: int) -> str:
    return " ".join(WORDS[(seed * 7 + k * k) % len(WORDS)] for k in range(count))


def chat(turns: int, size: int) -> dict[str, Any]:
    messages = []
    for turn in range(turns):
        messages += [
            {"role": "user", "content": words(size, turn)},
            {"role": "assistant", "content": words(size + turn, turn + 3)},
        ]
    return {"messages": messages}


def reasoning(turns: int, size: int) -> dict[str, Any]:
    record = chat(turns, size)
    for message in record["messages"][1::2]:
        message["reasoning_content"] = words(5, size)
    return record


def tree(row: int) -> dict[str, Any]:
    """A question, two answers to it, and a follow-up to one: conversations of several lengths, all of one record."""
    follow_up = {"text": words(row, 2), "role": "prompter", "replies": [leaf(5, row)]}
    return {
        "prompt": {
            "text": words(4, row),
            "role": "prompter",
            "replies": [{**leaf(30 - row, 1), "replies": [follow_up] * (row % 2)}, leaf(3 + row, row), leaf(7, row)],
        }
    }


def leaf(size: int, seed: int) -> dict[str, Any]:
    return {"text": words(size, seed), "role": "assistant", "replies": []}


def weighted(row: int) -> dict[str, Any]:
    record = chat(1 + row % 3, 3 + row)
    for number, message in enumerate(record["messages"]):
        if message["role"] == "assistant":
            message["weight"] = [0, 0.5, 1, 2][(row + number // 2) % 4]
    return record
