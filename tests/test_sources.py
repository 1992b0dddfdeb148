"""The same records come out, whatever file, dataset or iterable they lie in, and wherever the chunks end."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskpipe.chat import Conversation, read_record
from maskpipe.errors import RecordError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.sources import Chunk, limits, open_sources

CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": 2.0}}}],
}
RECORDS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi\u2028there \U0001f388"}, CALL]},
    {"messages": [{"content": "é\tи", "role": "user"}, {"role": "assistant", "content": "", "note": None}]},
    {"messages": [{"role": "tool", "content": "[]", "name": "f"}], "tools": [{"name": "f", "x": None}], "n": 10**30},
]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def read(source: Any, **options: Any) -> list[Any]:
    return [record for _, _, record in open_sources(source, **options).records()]


def same(records: list[Any], expected: list[Any]) -> bool:
    """Equal with key order and number types, which == does not see."""
    return [json.dumps(record) for record in records] == [json.dumps(record) for record in expected]


# --- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", LINES.rstrip(b"\n")),
        ("a.json", LINES),
        ("a.ndjson", LINES.replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl", b"\n  \n" + LINES.replace(b"\n", b"\n\n")),
        ("a.json", json.dumps(RECORDS).encode()),
        ("a.jsonl", json.dumps(RECORDS, indent=2, ensure_ascii=False).encode()),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(RECORDS, indent=1).encode()),
        ("a.json", b"[\n" + LINES.rstrip(b"\n").replace(b"\n", b"\n,") + b"\n]\n"),
        ("a.json", "\n".join(json.dumps(record, indent=2) for record in RECORDS).encode()),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.jsonl.gz", gzip.compress(LINES[:40], mtime=0) + gzip.compress(LINES[40:], mtime=0) + b"\0" * 9),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.json.zst", zstandard.compress(LINES[:40]) + zstandard.compress(LINES[40:])),
        ("a.jsonl", gzip.compress(LINES, mtime=0)),
    ],
)
def test_json_files_are_told_apart_by_content(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    sources = open_sources(path)
    assert same([record for _, _, record in sources.records()], RECORDS)
    assert [(origin.name, origin.sha256, origin.records) for origin in sources.origins] == [
        (name, hashlib.sha256(content).hexdigest(), 3)
    ]


def test_one_object_over_many_lines_is_one_record_and_a_text_file_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(RECORDS[0], indent=2))
    assert same(read(tmp_path / "one.json"), RECORDS[:1])
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOnce\r\nupon a time\n")
    assert read(tmp_path / "a.txt") == [{"text": "Once\r\nupon a time\n"}]


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf"
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": text}, ensure_ascii=False).replace("\\u000b", "\\u000b") + "\n"
    )
    assert read(tmp_path / "a.jsonl") == [{"text": text}]


def test_rows_count_records_and_errors_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": \n{"text": "b"}\n')
    sources = open_sources(tmp_path / "a.jsonl")
    found = [(row, record) for _, row, record in sources.records()]
    assert [row for row, _ in found] == [0, 1, 2]
    assert found[0][1] == {"text": "a"} and found[2][1] == {"text": "b"}
    error = found[1][1]
    assert isinstance(error, RecordError)
    assert error.reason == "not_json" and str(error).startswith("a.jsonl:3: not JSON")
    assert sources.counts["blank_lines"] == 1
    assert sources.origins[0].records == 3


# --- chunks


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab\n\u2028é", max_size=30), min_size=1, max_size=30),
    chunk_bytes=st.integers(1, 200),
    read_bytes=st.integers(1, 300),
    array=st.booleans(),
    blank=st.booleans(),
)
def test_chunks_are_the_records_in_order_and_depend_on_the_bytes_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    chunk_bytes: int,
    read_bytes: int,
    array: bool,
    blank: bool,
) -> None:
    records = [{"text": text} for text in texts]
    lines = ("\n\n" if blank else "\n").join(json.dumps(record, ensure_ascii=False) for record in records)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records) if array else lines, encoding="utf-8", newline="")
    with monkeypatch.context() as patch:
        patch.setattr(limits, "CHUNK_BYTES", chunk_bytes)
        once = list(open_sources(path).chunks())
        patch.setattr(limits, "READ_BYTES", max(read_bytes, 1))
        again = [pickle.loads(pickle.dumps(chunk)) for chunk in open_sources(path).chunks()]
    assert [(row, record) for chunk in again for row, record in chunk.records()] == list(enumerate(records))
    if not array and read_bytes > 100:  # what the file is, is decided from the first _READ bytes
        assert once == again
    assert [chunk.first_row for chunk in once] == [
        sum(chunk.count for chunk in once[:index]) for index in range(len(once))
    ]
    for chunk in once[:-1]:
        assert len(chunk.payload) >= chunk_bytes
        assert len(chunk.payload) - chunk_bytes < max(len(json.dumps(record).encode()) for record in records) + 3


def test_a_chunk_says_where_each_of_its_records_stands(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + LINES.replace(b"\n", b"\n\n"))
    (chunk,) = open_sources(tmp_path / "a.jsonl").chunks()
    assert [chunk.place(row) for row in range(3)] == ["a.jsonl:2", "a.jsonl:4", "a.jsonl:6"]
    (chunk,) = open_sources(RECORDS).chunks()
    assert chunk.place(2) == "iterable: record 2"


def test_arrow_chunks_hold_about_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"text": "x" * 50, "n": number} for number in range(2000)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=130)
    monkeypatch.setattr(limits, "CHUNK_BYTES", 5000)
    chunks = list(open_sources(tmp_path / "a.parquet").chunks())
    assert [record for chunk in chunks for _, record in chunk.records()] == records
    assert len(chunks) > 10


# --- Arrow, Parquet, datasets


def write_ipc(path: Path, table: pa.Table, stream: bool) -> None:
    opened = pa.ipc.new_stream(path, table.schema) if stream else pa.ipc.new_file(path, table.schema)
    with opened as writer:
        writer.write_table(table)


def every_form(records: list[dict[str, Any]], folder: Path) -> Iterator[tuple[str, Any]]:
    """The records in every form that keeps them exactly or as Arrow keeps them."""
    table = pa.Table.from_pylist(records)
    pq.write_table(table, folder / "a.parquet")
    yield "parquet", folder / "a.parquet"
    write_ipc(folder / "file.arrow", table, stream=False)
    yield "arrow file", folder / "file.arrow"
    write_ipc(folder / "stream.arrow", table, stream=True)
    yield "arrow stream", folder / "stream.arrow"
    dataset = datasets.Dataset.from_list(records)
    yield "dataset", dataset
    yield "selected", dataset.select([2, 0, 1]).select([1, 2, 0])
    yield "iterable dataset", dataset.to_iterable_dataset()
    dataset.save_to_disk(folder / "saved")
    yield "saved", folder / "saved"
    datasets.DatasetDict({"train": dataset}).save_to_disk(folder / "splits")
    yield "saved splits", folder / "splits"
    yield "table", table
    yield "list", records
    yield "generator", (record for record in records)
    yield "untyped stream", datasets.IterableDataset.from_generator(lambda: iter(records))


def test_disjoint_tool_arguments_are_the_same_from_every_form(tmp_path: Path) -> None:
    """C05: a struct column gives every call the keys of all calls, as nulls; they must not reach the template."""
    records = [
        {"messages": [{"role": "user", "content": "go"}, call_of({"zulu": 1, "alpha": "x"})], "tools": [TOOL]},
        {"messages": [{"role": "user", "content": "go"}, call_of({"place": "Bergen"})], "tools": [TOOL]},
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "done"}], "tools": [TOOL]},
    ]
    plain = [read_record(record, Recipe()) for record in records]
    for name, source in every_form(records, tmp_path):
        sources = open_sources(source)
        found = [read_record(record, Recipe()) for _, _, record in sources.records()]
        assert [shown(chat) for chat in found] == [shown(chat) for chat in plain], name
        if name == "parquet":
            assert sources.counts["null_struct_fields_dropped"] == 7  # four tool_calls, three arguments


def call_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def shown(chat: Any) -> str:
    """What a template sees, with key order."""
    assert isinstance(chat, Conversation)
    return json.dumps([[{**m, "tool_calls": m.get("tool_calls")} for m in chat.messages], chat.tools])


def test_json_columns_keep_everything(tmp_path: Path) -> None:
    mixed = [
        [
            {"role": "user", "content": "a", "x": None},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ],
        [CALL, {"role": "tool", "content": {"z": None, "a": 1.0}}],
    ]
    text = [json.dumps(messages) for messages in mixed]
    each = [[json.dumps(message) for message in messages] for messages in mixed]
    columns = {"text": pa.array(text), "each": pa.array(each), "typed": pa.array(text, pa.json_())}
    for name, column in columns.items():
        table = pa.table({"messages": column})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        for source in (table, tmp_path / f"{name}.parquet"):
            found = [read_record(record, Recipe()) for record in read(source)]
            assert same([chat.messages for chat in found if isinstance(chat, Conversation)], mixed), name


def test_a_dataset_loaded_from_mixed_json_keeps_everything(tmp_path: Path) -> None:
    records = [
        {"messages": [{"role": "user", "content": "a"}, CALL]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}, call_of({"other": "x"})]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dataset = datasets.load_dataset(
        "json", data_files=str(tmp_path / "a.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert same(read(dataset), records)


def test_columns_that_are_no_json_do_no_harm_beside_the_chat(tmp_path: Path) -> None:
    table = pa.table(
        {
            "messages": pa.array([RECORDS[1]["messages"]]),
            "at": pa.array([0], pa.timestamp("s")),
            "raw": pa.array([b"\xff"]),
            "kind": pa.array(["a"]).dictionary_encode(),
            "map": pa.array(
                [[("k", {"x": 1, "y": None})]], pa.map_(pa.string(), pa.struct({"x": pa.int8(), "y": pa.int8()}))
            ),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (record,) = read(tmp_path / "a.parquet")
    assert record["kind"] == "a" and record["raw"] == b"\xff" and record["map"] == {"k": {"x": 1}}
    assert isinstance(read_record(record, Recipe()), Conversation)
    assert len(read(datasets.Dataset(table.drop_columns("map")))) == 1


# --- iterables and choices


def test_values_that_are_no_json_are_refused_with_their_path() -> None:
    import datetime

    import numpy as np

    records = [
        {"messages": [{"role": "user", "content": "a"}], "at": datetime.date(2026, 1, 1)},
        {"messages": [{"role": "user", "content": np.str_("fine")}], "n": np.int64(3)},
        {"x": {1: "a"}},
        {"x": [float("nan")]},
        {"n": 10**4300},
        {"text": "ok", "pair": (1, 10**4299)},
        {"text": "\ud83c"},
    ]
    found = read(records)
    assert [getattr(record, "reason", None) for record in found] == ["not_json"] * 5 + [None, "lone_surrogate"]
    for index, says in enumerate(
        [
            "record 0: $.at is a datetime.date",
            "record 1: $.n is a numpy.int64",
            "$.x has the key 1",
            "$.x[0] is nan",
            "$.n is an integer of",
        ]
    ):
        assert says in str(found[index])
    assert found[5] == {"text": "ok", "pair": [1, 10**4299]}


def test_an_iterator_is_read_once_and_a_list_as_often_as_one_likes() -> None:
    once = open_sources(record for record in RECORDS)
    assert same([record for _, _, record in once.records()], RECORDS)
    with pytest.raises(UsageError, match="has been read already"):
        list(once.chunks())
    often = open_sources(RECORDS)
    assert list(often.chunks()) == list(often.chunks())
    assert often.origins == once.origins


def test_the_hash_of_an_iterable_is_that_of_its_json_lines() -> None:
    sources = open_sources(RECORDS)
    list(sources.chunks())
    expected = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
    assert sources.origins[0].sha256 == hashlib.sha256(expected).hexdigest()


def test_many_sources_keep_their_order_and_their_rows(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(LINES)
    (tmp_path / "a.txt").write_text("x")
    sources = open_sources([tmp_path / "b.jsonl", str(tmp_path / "a.txt"), datasets.Dataset.from_list([{"text": "y"}])])
    assert [(source, row) for source, row, _ in sources.records()] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert [origin.name for origin in sources.origins] == ["b.jsonl", "a.txt", "dataset"]


def test_a_directory_is_read_in_order_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("train-1.jsonl", "train-0.jsonl", "sub/test.jsonl", ".hidden.jsonl", "README.md", "LICENSE"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\n")
    sources = open_sources(tmp_path)
    assert sources.names == ["sub/test.jsonl", "train-0.jsonl", "train-1.jsonl"]
    assert sources.counts["ignored_files"] == 2
    assert open_sources(tmp_path, split="train").names == ["train-0.jsonl", "train-1.jsonl"]
    assert open_sources(tmp_path, split="test").names == ["sub/test.jsonl"]
    assert open_sources(str(tmp_path / "train-*.jsonl")).names == ["train-0.jsonl", "train-1.jsonl"]
    with pytest.raises(UsageError, match="begins with the split 'tra'"):
        open_sources(tmp_path, split="tra")


def test_datasets_and_unfinished_work_among_the_sources_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    datasets_and_work = {
        "out": ["manifest.json", "manifest.sha256", "rejects.jsonl"],
        "new.partial": ["job.json", "dataset/part-00000.arrow"],
        "split": ["train/manifest.json", "train/manifest.sha256"],
    }
    for name in (f"{folder}/{file}" for folder, files in datasets_and_work.items() for file in files):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("{}\n")
    sources = open_sources(tmp_path)
    assert (sources.names, sources.counts["ignored_files"]) == (["a.jsonl"], 7)
    for name in ("out", "split"):
        with pytest.raises(UsageError, match=r"is a prepared dataset\. Name what it was prepared from"):
            open_sources(tmp_path / name)


def test_a_split_is_chosen_by_name(tmp_path: Path) -> None:
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list([{"text": "a"}]), "test": datasets.Dataset.from_list([{"text": "b"}])}
    )
    both.save_to_disk(tmp_path / "saved")
    for source in (both, tmp_path / "saved", str(tmp_path / "saved")):
        assert read(source, split="test") == [{"text": "b"}]
        with pytest.raises(UsageError, match="has the splits train, test: choose one with --split"):
            open_sources(source)
        with pytest.raises(UsageError, match="'dev' is not one of them"):
            open_sources(source, split="dev")


def test_a_transformed_dataset_gives_what_its_transform_gives() -> None:
    dataset = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    dataset.set_transform(lambda batch: {"text": [text.upper() for text in batch["text"]]})
    assert read(dataset) == [{"text": "A"}, {"text": "B"}]


# --- what cannot be read says what to do


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.xlsx", b"PK", r"unknown kind of file \.xlsx; known: \.jsonl"),
        ("noname", b"x", r"\(no extension\)"),
        ("a.parquet", b"nope", "does not begin with PAR1"),
        ("a.jsonl", b"", "no records in a.jsonl: nothing to read"),
        ("a.json", b"[]", "no records"),
        ("a.jsonl", b"\n \n", "no records"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "looks like UTF-16"),
        ("a.txt", "abc".encode("utf-16"), "looks like UTF-16"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "the gzip data ends too early"),
        ("a.jsonl.zst", zstandard.compress(LINES * 9)[:-9], "the zstd data ends too early"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:20] + b"xxxxxxxxxxxxxx", "damaged"),
        ("a.parquet", b"PAR1xxxxxxxx", "cannot read it as Parquet"),
        ("a.arrow", b"ARROW1xxxxxx", "cannot read it as Arrow"),
        ("a.arrow", b"xx", "cannot read it as Arrow"),
    ],
)
def test_an_unreadable_file_says_what_to_do(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read(tmp_path / name)


def test_a_missing_source_says_what_to_do(tmp_path: Path) -> None:
    for source, says in (
        (tmp_path / "none.jsonl", "no such file or directory"),
        (str(tmp_path / "*.jsonl"), "no file matches"),
        (tmp_path, "no file to read in this directory"),
        ({"messages": []}, r"one record as \[record\]"),
        (5, "cannot read records from a builtins.int"),
        ([], "no records in iterable"),
    ):
        with pytest.raises(UsageError, match=says):
            read(source)
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(UsageError, match="one file, so it has no split"):
        open_sources(tmp_path / "a.jsonl", split="train")
    with pytest.raises(UsageError, match="origins are known after"):
        _ = open_sources(tmp_path / "a.jsonl").origins


def test_records_of_a_chunk_can_be_read_in_any_process_and_twice() -> None:
    (chunk,) = open_sources(pa.Table.from_pylist([{"m": {"a": 1}}, {"m": {"b": 2}}])).chunks()
    copy: Chunk = pickle.loads(pickle.dumps(chunk))
    for _ in range(2):
        assert list(copy.records()) == [(0, {"m": {"a": 1}}), (1, {"m": {"b": 2}})]
        assert copy.counts["null_struct_fields_dropped"] == 2


def test_an_object_over_many_lines_is_known_even_without_indentation(tmp_path: Path) -> None:
    lines = [json.dumps(message) for message in RECORDS[1]["messages"]]
    (tmp_path / "a.json").write_text('{"messages": [\n' + ",\n".join(lines) + "\n]}\n")
    assert same(read(tmp_path / "a.json"), RECORDS[1:2])
