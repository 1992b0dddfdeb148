"""Caps, weights, duplicates and the validation split: every record is in one place, the same one for any number of
workers, and the same one when the data grows."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maskpipe
from maskpipe import demo_data, partitions
from maskpipe.chat import read_all
from maskpipe.errors import DatasetError, RecordError, UsageError
from maskpipe.keys import SIZE, as_numbers, in_share, key_of, threshold
from maskpipe.partitions import Stage
from maskpipe.recipe import Recipe
from maskpipe.selection import ChunkDocuments, ChunkKeys, Selection
from maskpipe.shards.verify import verify
from maskpipe.sources import limits
from maskpipe.tokenizer import Tokenizer
from maskpipe.trial import dry_run
from tests.reference.selection import expected_sides

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
RECIPE = Recipe(sequence_length=128, on_bad_record="reject")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 700)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 400)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    monkeypatch.setattr(Recipe, "shard_bytes", 4 * 128 * 3)


def record(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a {number}"}]}


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return str(path)


def held(path: Path) -> Counter[tuple[int, int]]:
    """(source, row) of every document of a dataset."""
    verify(path)
    return Counter((document.source, document.row) for document in maskpipe.open(path).documents())


# --- against the slow twin


@st.composite
def chunks(draw: st.DrawFn) -> tuple[list[ChunkKeys], list[ChunkDocuments], list[float]]:
    pool = [draw(st.binary(min_size=SIZE, max_size=SIZE)) for _ in range(draw(st.integers(1, 6)))]
    made: list[ChunkKeys] = []
    documents = []
    row = 0
    for number in range(draw(st.integers(1, 4))):
        keys, rows, conversations = [], [], []
        for record in range(draw(st.integers(0, 6))):
            for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
                conversations += [len(keys)] * draw(st.integers(1, 2))
                keys.append(draw(st.sampled_from(pool)))
                rows.append(record)
        lengths = np.arange(1, len(conversations) + 1, dtype=np.int32)
        made.append(ChunkKeys(number % 2, row, as_numbers(b"".join(keys)), np.array(rows, np.int32)))
        documents.append(ChunkDocuments(f"f{number}", lengths, np.array(conversations, np.int32)))
        row += 6
    return made, documents, draw(st.sampled_from([[1.0, 1.0], [1.0, 2.5], [3.0, 1.25]]))


@settings(max_examples=300, deadline=None)
@given(chunks(), st.booleans(), st.sampled_from([0.0, 0.3, 0.5]))
def test_selection_is_that_of_the_slow_twin(
    given_chunks: tuple[list[ChunkKeys], list[ChunkDocuments], list[float]], deduplicate: bool, validation: float
) -> None:
    made, documents, weights = given_chunks
    recipe = Recipe(deduplicate=deduplicate, validation=validation)
    selection = Selection(made, recipe, weights)
    sides = selection.sides(documents.__getitem__)
    expected = expected_sides(made, documents, weights, deduplicate, validation)
    assert [side.name for side in sides] == list(expected)
    for side in sides:
        want = expected[side.name]
        assert [document for stage in side.stages for document in unpacked(stage, documents)] == want.documents
        assert side.kept == want.kept
        assert +side.left_out == +want.left_out
    assert [tuple(duplicate) for duplicate in selection.duplicates()] == expected[sides[0].name].duplicates


def unpacked(stage: Stage, documents: list[ChunkDocuments]) -> list[tuple[str, int]]:
    whole = next(each for each in documents if each.file == stage.name)
    rows = np.arange(len(whole.lengths)) if stage.rows is None else stage.rows
    assert np.array_equal(whole.lengths[rows], stage.lengths)
    return [(stage.name, int(row)) for row in rows]


# --- keys


def test_keys_are_equal_for_equal_conversations_only() -> None:
    def key(value: Any) -> bytes:
        (item,) = read_all(value, Recipe()).items
        return key_of(item)

    one = record(1)
    tool = {"type": "function", "function": {"name": "f"}}
    same = [one, {"id": 7, **one}, {"conversations": one["messages"]}, {"prompt": "q1", "completion": "a 1"}]
    assert len({key(value) for value in same}) == 1
    other = [record(2), {**one, "tools": [tool]}, {**one, "chat_template_kwargs": {"x": 1}}]
    other.append({"messages": [one["messages"][0], {**one["messages"][1], "weight": 0}]})
    other.append({"messages": [dict(reversed(message.items())) for message in one["messages"]]})
    assert len({key(value) for value in [one, *other]}) == 1 + len(other)


def test_what_says_the_same_is_on_one_side_whatever_its_shape() -> None:
    """Weights, tools, ids, key order, parts or another format must not carry a conversation to the other side."""
    call = {"name": "f", "arguments": {"a": 1, "b": "x"}}
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": "out"},
        {"role": "assistant", "content": "a"},
    ]
    block = {"type": "tool_use", "id": "7", "name": "f", "input": {"b": "x", "a": 1}}
    text_call = {"type": "function", "function": {**call, "arguments": '{"b": "x", "a": 1}'}}
    shapes: list[Any] = [
        {"messages": said},
        {"messages": said, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": said, "chat_template_kwargs": {"x": 1}},
        {"messages": [*said[:3], {**said[3], "weight": 0.5, "id": 9}]},
        {"messages": [dict(reversed(message.items())) for message in said]},
        {"messages": [said[0], {"role": "assistant", "content": None, "tool_calls": [text_call]}, *said[2:]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *said[1:]]},
        {
            "messages": [
                said[0],
                {"role": "assistant", "content": [block]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "7", "content": "out"}]},
                said[3],
            ]
        },
    ]  # fmt: skip
    keys = [key_of(item) for value in shapes for item in read_all(value, Recipe()).items]
    assert len(keys) == len(shapes) == len(set(keys)), "none is an exact duplicate"
    assert len({key[:8] for key in keys}) == 1, "all are on one side"
    others = [
        {"messages": [*said[:3], {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "system", "content": "q"}, *said[1:]]},
        {"messages": said[:1] + said[3:]},
        {"messages": [said[0], {**said[1], "reasoning_content": "hm"}, *said[2:]]},
    ]
    assert len({key_of(read_all(value, Recipe()).items[0])[:8] for value in [shapes[0], *others]}) == 5


def test_records_of_many_conversations_are_taken_no_more_often_than_others() -> None:
    numbers = np.random.default_rng(1).integers(0, 2**64, (3000, 20, 2), np.uint64)
    rows = np.repeat(np.arange(3000, dtype=np.int32), 20)
    chunk = ChunkKeys(0, 0, numbers.reshape(-1, 2), rows)
    documents = ChunkDocuments("f", np.ones(60000, np.int32), np.arange(60000, dtype=np.int32))
    sides = Selection([chunk], Recipe(validation=0.05), [1.25]).sides(lambda number: documents)
    assert abs(sides[1].kept / 3000 - 0.05) < 0.016
    repeated = sum(count["documents_repeated"] for count in sides[0].counts)
    assert abs(repeated / (20 * sides[0].kept) - 0.25) < 0.04
    keys = [[pair.astype(">u8").tobytes() for pair in record] for record in numbers]
    assert abs(np.mean([in_share(record, 0.25) for record in keys]) - 0.25) < 0.04


def test_a_file_named_twice_is_an_error(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [record(1)])
    with pytest.raises(UsageError, match=r"a\.jsonl is named twice.*--source-weight"):
        maskpipe.prepare([a, str(tmp_path / "*.jsonl")], tmp_path / "out", tokenizer=TOKENIZER, recipe=RECIPE)


def test_where_no_record_is_selected_it_says_so(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [record(1), record(2)])
    recipe = dataclasses.replace(RECIPE, source_weights={a: 1e-12})
    with pytest.raises(RecordError, match=r"no record is left of 2 \(2 not_selected\); no dataset was made"):
        maskpipe.prepare(a, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=0)


def test_where_nothing_is_left_nothing_is_kept_and_no_rerun_is_advised(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "Hello?"}]}])
    with pytest.raises(RecordError, match=r"The first: a\.jsonl:1: no turn.*no assistant message$"):
        maskpipe.prepare(a, tmp_path / "out", tokenizer=TOKENIZER, recipe=RECIPE, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_dry_run_names_what_it_does_not_try() -> None:
    recipe = dataclasses.replace(RECIPE, validation=0.5, deduplicate=True, source_weights={"iterable": 2.0})
    trial = dry_run([record(1)], tokenizer=TOKENIZER, recipe=recipe)
    assert trial.not_tried == ["deduplicate", "validation", "source_weights above 1"]
    assert "not tried deduplicate, validation, source_weights above 1: decided over all records" in str(trial)
    assert "not tried" not in str(dry_run([record(1)], tokenizer=TOKENIZER, recipe=RECIPE))


def test_dates_and_bytes_in_arrow_have_keys() -> None:
    days = enumerate(record(1)["messages"], 1)
    said = [{**message, "at": datetime(2020, 1, day), "raw": b"x"} for day, message in days]
    trial = dry_run(
        pa.table({"messages": [said]}), tokenizer=TOKENIZER, recipe=dataclasses.replace(RECIPE, deduplicate=True)
    )
    assert trial.kept == 1


def test_a_share_is_that_share() -> None:
    numbers = as_numbers(b"".join(key_of(read_all(record(n), Recipe()).items[0]) for n in range(4000)))
    for share in (0.01, 0.25, 0.9):
        for column in (0, 1):
            taken = float((numbers[:, column] < np.uint64(threshold(share))).mean())
            assert abs(taken - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    both = (numbers < np.uint64(threshold(0.5))).all(axis=1).mean()
    assert abs(both - 0.25) < 0.03, "the two uses of a key are independent"


# --- whole preparations


@pytest.mark.usefixtures("small_steps")
def test_train_and_validation_are_two_datasets_and_nothing_is_in_both(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [record(n) for n in range(60)])
    recipe = dataclasses.replace(RECIPE, validation=0.2)
    made = maskpipe.prepare(source, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=1)
    train, validation = held(tmp_path / "out/train"), held(tmp_path / "out/validation")
    assert not train & validation and len(train) + len(validation) == 60
    assert made.manifest.left_out == {"other_side": len(validation)}
    assert made.validation is not None and made.validation.left_out == {"other_side": len(train)}
    assert "out/validation" in str(made)
    with pytest.raises(DatasetError, match=r"holds two datasets, .*train and .*validation"):
        maskpipe.open(tmp_path / "out")
    grown = write(tmp_path / "b.jsonl", [record(n) for n in range(99, -1, -1)])
    maskpipe.prepare(grown, tmp_path / "out2", tokenizer=TOKENIZER, recipe=recipe, workers=1)
    again = {99 - row for _, row in held(tmp_path / "out2/validation")}
    assert {row for _, row in validation} == {row for row in again if row < 60}, "stable when data grows"


def test_an_empty_side_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [record(1)] * 5)
    with pytest.raises(RecordError, match=r"leaves the side '(train|validation)' empty") as caught:
        maskpipe.prepare(
            source, tmp_path / "out", tokenizer=TOKENIZER, recipe=dataclasses.replace(RECIPE, validation=0.5)
        )
    assert caught.value.reason == "empty_split_side" and "run the same command again" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_duplicates_are_listed_with_the_record_that_stays(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [record(1), record(2), record(1), "broken"])
    b = write(
        tmp_path / "b.jsonl", [record(3), {"id": 1, **record(2)}, {"prompt": "q1", "completions": ["a 1", "new"]}]
    )
    made = maskpipe.prepare(
        [a, b], tmp_path / "out", tokenizer=TOKENIZER, recipe=dataclasses.replace(RECIPE, deduplicate=True)
    )
    assert held(tmp_path / "out") == {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 2): 1}
    assert made.manifest.left_out == {"duplicate": 2} and made.manifest.rejected == {"not_json": 1}
    lines = [json.loads(line) for line in (tmp_path / "out/duplicates.jsonl").read_text().splitlines()]
    assert lines == [
        {"source": 0, "row": 2, "first_source": 0, "first_row": 0},
        {"source": 1, "row": 1, "first_source": 0, "first_row": 1},
    ]
    assert made.counts["conversations_duplicate"] == 3 and made.counts["tokens_dropped_duplicate"] > 0


def test_caps_take_the_first_records_of_all_that_a_name_stands_for(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write(tmp_path / "d/a.jsonl", [record(n) for n in range(4)])
    write(tmp_path / "d/b.jsonl", [record(n) for n in range(10, 14)])
    write(tmp_path / "d/c.jsonl", [record(n) for n in range(20, 24)])
    recipe = dataclasses.replace(RECIPE, source_caps={str(tmp_path / "d"): 6})
    made = maskpipe.prepare(str(tmp_path / "d"), tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe)
    assert set(held(tmp_path / "out")) == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)}
    assert made.manifest.left_out == {"beyond_cap": 6} and made.manifest.records == 12
    recipe = dataclasses.replace(RECIPE, source_caps={"c.jsonl": 1, "a.jsonl": 3})
    maskpipe.prepare(str(tmp_path / "d"), tmp_path / "out2", tokenizer=TOKENIZER, recipe=recipe)
    assert Counter(source for source, _ in held(tmp_path / "out2")) == {0: 3, 1: 4, 2: 1}


def test_weights_take_a_share_or_repeat(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [record(n) for n in range(200)])
    b = write(tmp_path / "b.jsonl", [record(n) for n in range(1000, 1040)])
    recipe = dataclasses.replace(RECIPE, source_weights={a: 0.3, "b.jsonl": 2.5})
    made = maskpipe.prepare([a, b], tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe)
    found = held(tmp_path / "out")
    taken = {row for source, row in found if source == 0}
    assert 40 < len(taken) < 80 and all(found[0, row] == 1 for row in taken)
    assert {found[1, row] for row in range(40)} == {2, 3}
    assert made.manifest.left_out == {"not_selected": 200 - len(taken)}
    assert made.counts["tokens_repeated"] > 0 and "repeated" in str(made)
    bigger = dataclasses.replace(RECIPE, source_weights={a: 0.6})
    maskpipe.prepare(a, tmp_path / "out2", tokenizer=TOKENIZER, recipe=bigger)
    assert taken < {row for _, row in held(tmp_path / "out2")}, "a larger share holds the smaller one"


def test_names_that_are_no_source_and_bad_amounts_are_errors(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [record(1)])
    for change, says in (
        ({"source_caps": {"b.jsonl": 1}}, r"source_caps: 'b.jsonl' is no source; the sources are .*a.jsonl"),
        ({"source_weights": {a: 0.5, "a.jsonl": 1.0}}, "are both a.jsonl; keep one"),
    ):
        with pytest.raises(UsageError, match=says):
            maskpipe.prepare(a, tmp_path / "out", tokenizer=TOKENIZER, recipe=dataclasses.replace(RECIPE, **change))
    for bad in (
        {"source_caps": {"a": 0}}, {"source_caps": {"a": True}}, {"source_weights": {"a": 0}}, {"validation": 1.0},
        {"source_weights": {"a": float("nan")}}, {"validation": True}, {"shard_size": "1 MB"}, {"shard_size": "0"},
    ):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(bad))):
            dataclasses.replace(RECIPE, **bad)


@pytest.mark.parametrize(
    ("size", "expected"), [("256MiB", 256 << 20), ("1 GiB", 1 << 30), ("4096", 4096), ("8KiB", 8192)]
)
def test_shard_sizes_are_read(size: str, expected: int) -> None:
    assert Recipe(shard_size=size).shard_bytes == expected


def test_shards_have_the_size_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [record(n) for n in range(300)])
    recipe = dataclasses.replace(RECIPE, shard_size="2KiB", packing="none")
    made = maskpipe.prepare(source, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe)
    assert [shard.rows for shard in made.manifest.shards] == [4] * 75


def test_an_iterator_that_can_be_read_once_is_enough_for_any_weight(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, source_weights={"iterable": 3.0})
    maskpipe.prepare((record(n) for n in range(5)), tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe)
    assert held(tmp_path / "out") == {(0, row): 3 for row in range(5)}


# --- random mixes of everything


def mix(rng: random.Random, folder: Path) -> tuple[list[str], dict[str, Any]]:
    sources = []
    for name in ("a", "b", "c")[: rng.randint(1, 3)]:
        records: list[Any] = []
        for _ in range(rng.randint(1, 25)):
            kind = rng.random()
            number = rng.randint(0, 30)
            if kind < 0.1:
                records.append(rng.choice(["nonsense", '{"messages": []}', '{"prompt": "x", "completion": 3}']))
            elif kind < 0.3:
                answers = [f"a {rng.randint(0, 30)}" for _ in range(rng.randint(1, 3))]
                records.append({"prompt": f"q{number}", "completions": answers})
            else:
                records.append(record(number))
        sources.append(write(folder / f"{name}.jsonl", records))
    change: dict[str, Any] = {"deduplicate": rng.random() < 0.5, "validation": rng.choice([0.0, 0.0, 0.3])}
    for source in sources:
        if rng.random() < 0.3:
            change.setdefault("source_caps", {})[source] = rng.randint(1, 15)
        if rng.random() < 0.5:
            change.setdefault("source_weights", {})[source] = rng.choice([0.5, 0.8, 1.5, 2.0])
    return sources, change


@pytest.mark.usefixtures("small_steps")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9))
def test_every_record_is_kept_or_counted_over_random_mixes(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mix")
    sources, change = mix(random.Random(seed), folder)
    recipe = dataclasses.replace(RECIPE, **change)
    try:
        made = maskpipe.prepare(sources, folder / "out", tokenizer=TOKENIZER, recipe=recipe, workers=1)
    except RecordError as error:
        assert error.reason in ("empty_split_side", "nothing_left")
        return
    manifests = [made.manifest] if made.validation is None else [made.manifest, made.validation]
    names = [""] if made.validation is None else ["train", "validation"]
    rows = [held(folder / "out" / name) for name in names]
    read = sum(len(Path(source).read_text().splitlines()) for source in sources)
    elsewhere = sum(n for reason, n in made.manifest.left_out.items() if reason != "other_side")
    rejected = sum(made.manifest.rejected.values())
    assert read == made.manifest.records == sum(map(len, rows)) + rejected + elsewhere
    for manifest, documents in zip(manifests, rows, strict=True):
        assert manifest.records_kept == len(documents)
        assert read == manifest.records_kept + rejected + sum(manifest.left_out.values())
    if len(rows) == 2:
        said = [
            {json.dumps(said) for source, row in documents for said in contents(sources[source], row)}
            for documents in rows
        ]
        assert not said[0] & said[1], "a conversation is on one side only"
    for name in names:
        for source, cap in change.get("source_caps", {}).items():
            assert all(row < cap for number, row in held(folder / "out" / name) if sources[number] == source)


def contents(path: str, row: int) -> list[Any]:
    read = read_all(json.loads(Path(path).read_text().splitlines()[row]), Recipe())
    return [[message["content"] for message in item.messages] for item in read.items if not hasattr(item, "text")]


@pytest.mark.usefixtures("small_steps")
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    sources, _ = mix(random.Random(4), tmp_path)
    recipe = dataclasses.replace(
        RECIPE, deduplicate=True, validation=0.3, source_weights={sources[0]: 2.5}, source_caps={sources[-1]: 9}
    )
    trees = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        maskpipe.prepare(sources, out, tokenizer=TOKENIZER, recipe=recipe, workers=workers)
        trees.append({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()})
        trees[-1] = {name: data for name, data in trees[-1].items() if not name.endswith("run.json")}
    assert trees[0] == trees[1] and len(trees[0]) > 10
