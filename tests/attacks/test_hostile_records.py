"""Hostile and broken input costs one record or one clear error: never a crash, a hang, or another record."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard

from maskpipe.chat import read_record
from maskpipe.errors import RecordError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.sources import limits, open_sources
from maskpipe.strict_json import MAX_DEPTH, depth, parse, refuse_foreign

GOOD = b'{"text": "good"}'

BAD = {
    "duplicate_key": [
        b'{"role": "user", "role": "assistant"}',
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        b'{"a": {"\\u0062": 1, "b": 2}}',
    ],
    "not_json": [
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": 1} {"b": 2}',
        b'{"a": "\x01"}',
        b'{"a": "unclosed}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\x00\x00",
        b"\xef\xbb\xbf{}",
    ],
    "too_deep": [
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    ],
    "lone_surrogate": [
        b'{"text": "\\ud83c"}',
        b'{"text": "\\udf78\\ud83c"}',
        b'{"\\udf78": 1}',
        b'{"messages": [{"role": "user", "content": "half \\uD83C of a cocktail"}]}',
    ],
    "invalid_utf8": [b'{"text": "\xb2"}', b'{"text": "\xed\xa0\x80"}', b'{"text": "\xf0\x9f\x8d"}', b"\xff\xff"],
}
CASES = [(reason, text) for reason, texts in BAD.items() for text in texts]


@pytest.mark.parametrize(("reason", "text"), CASES, ids=lambda value: repr(value)[:40])
def test_a_bad_record_has_a_named_reason_and_costs_only_itself(tmp_path: Path, reason: str, text: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        parse(text)
    assert caught.value.reason == reason
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD, text, GOOD]) + b"\n")
    found = [record for _, _, record in open_sources(tmp_path / "a.jsonl").records()]
    assert [getattr(record, "reason", "good") for record in found] == ["good", reason, "good"]
    assert str(found[1]).startswith("a.jsonl:2: ")
    assert len(str(found[1])) < 400


def test_a_bad_element_of_an_array_costs_only_itself_while_its_end_can_be_found(tmp_path: Path) -> None:
    bad = [
        b'{"a": tru}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\xb2"}',
        b"[" * 5000 + b"]" * 5000,
        b'{"a": "]}\\"", x}',
        b"nope",
    ]
    elements = [GOOD, *[entry for text in bad for entry in (text, GOOD)]]
    (tmp_path / "a.json").write_bytes(b"[\n" + b",\n".join(elements) + b"\n]\n")
    found = [record for _, _, record in open_sources(tmp_path / "a.json").records()]
    reasons = [getattr(record, "reason", "good") for record in found]
    assert reasons[::2] == ["good"] * 7
    assert reasons[1::2] == ["not_json", "duplicate_key", "invalid_utf8", "too_deep", "not_json", "not_json"]


@pytest.mark.parametrize(
    "tail", [b"", b", {", b"} {", b"] {}", b", ]", b' "x', b', {"a": "', b"]]"], ids=lambda tail: tail.decode() or "cut"
)
def test_an_array_that_ends_badly_is_one_more_bad_record_and_keeps_the_rest(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "a.json").write_bytes(b"[" + GOOD + b",\n" + GOOD + tail)
    found = [record for _, _, record in open_sources(tmp_path / "a.json").records()]
    assert [getattr(record, "reason", "good") for record in found] == ["good", "good", "not_json"]
    assert "a.json: record 2: " in str(found[2])


def test_a_valid_surrogate_pair_is_one_character() -> None:
    assert parse(b'"\\ud83c\\udf78 \\\\ud83c"') == "\U0001f378 \\ud83c"


def test_depth_up_to_the_limit_is_fine() -> None:
    value = parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert depth(value) == MAX_DEPTH
    assert parse(json.dumps(["[{" * 500])) == ["[{" * 500]


def test_numbers_keep_their_kind() -> None:
    text = b'{"i": 1, "f": 1.0, "n": -0.0, "e": 1e5, "big": 123456789012345678901234567890}'
    assert (
        json.dumps(parse(text)) == '{"i": 1, "f": 1.0, "n": -0.0, "e": 100000.0, "big": 123456789012345678901234567890}'
    )


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = [loop]
    with pytest.raises(RecordError) as caught:
        refuse_foreign(loop)
    assert caught.value.reason == "too_deep"


def test_overlong_lines_are_skipped_without_holding_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(limits, "MAX_LINE_BYTES", 5000)
    monkeypatch.setattr(limits, "READ_BYTES", 700)
    exact = b'{"text": "' + b"x" * (5000 - 12) + b'"}'
    longer = b'{"text": "' + b"x" * (5001 - 12) + b'"}'
    much = b'{"text": "' + b"x" * 20_000_000 + b'"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD, exact, longer, b"", GOOD, GOOD, much, GOOD, longer]))
    tracemalloc.start()
    sources = open_sources(tmp_path / "a.jsonl")
    found = [(row, record) for _, row, record in sources.records()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row for row, _ in found] == list(range(8))
    assert [getattr(record, "reason", "good") for _, record in found] == [
        *["good", "good", "too_long_line", "good", "good", "too_long_line", "good", "too_long_line"]
    ]
    assert str(found[2][1]).startswith("a.jsonl:3: this line has 5,001 bytes")
    assert str(found[5][1]).startswith("a.jsonl:7: this line has 20,000,012 bytes")
    assert str(found[7][1]).startswith("a.jsonl:9: ")
    assert sources.counts["blank_lines"] == 1
    assert peak < 4_000_000


def test_overlong_array_elements_and_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LINE_BYTES", 500)
    (tmp_path / "a.json").write_bytes(b"[" + b",".join([GOOD, json.dumps({"text": "x" * 500}).encode(), GOOD]) + b"]")
    (tmp_path / "a.txt").write_bytes(b"x" * 501)
    found = [record for _, _, record in open_sources([tmp_path / "a.json", tmp_path / "a.txt"]).records()]
    assert [getattr(record, "reason", "good") for record in found] == ["good", "too_long_line", "good", "too_long_text"]


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_a_compression_bomb_is_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str) -> None:
    monkeypatch.setattr(limits, "EXPANSION_GRACE", 4 << 20)
    zeros = bytes(48 << 20)
    path = tmp_path / f"bomb.jsonl.{pack}"
    path.write_bytes(gzip.compress(zeros) if pack == "gz" else zstandard.compress(zeros, 19))
    del zeros
    with pytest.raises(UsageError, match="compression bomb"):
        list(open_sources(path).chunks())


def test_real_text_may_be_compressed_well(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress((GOOD + b"\n") * 200_000))
    sources = open_sources(tmp_path / "a.jsonl.zst")
    assert sum(chunk.count for chunk in sources.chunks()) == 200_000


def test_no_damaged_file_crashes_or_loses_a_record_silently(tmp_path: Path) -> None:
    """900 damaged copies of a good file: each is read, row by row without gaps, or is one UsageError."""
    messages = [
        {"role": "user", "content": "ü\u2028"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
    ]
    lines = [json.dumps({"messages": messages, "n": number}, ensure_ascii=False).encode() for number in range(8)]
    forms = {
        "a.jsonl": b"\n".join(lines),
        "a.json": b"[" + b",\n".join(lines) + b"]",
        "a.jsonl.gz": gzip.compress(b"\n".join(lines), mtime=0),
    }
    random_bytes = random.Random(11)
    for round_ in range(300):
        for name, good in forms.items():
            content = bytearray(good)
            for _ in range(random_bytes.randint(1, 3)):
                place = random_bytes.randrange(len(content))
                kind = random_bytes.randrange(3)
                if kind == 0:
                    content[place] = random_bytes.randrange(256)
                elif kind == 1:
                    del content[place : place + random_bytes.randrange(1, 40)]
                else:
                    content[place:place] = bytes(random_bytes.choices(b'{}[]",:\\\n\xffu', k=3))
            (tmp_path / name).write_bytes(bytes(content))
            try:
                sources = open_sources(tmp_path / name)
                found = [(row, record) for _, row, record in sources.records()]
            except UsageError as error:
                assert name.endswith(".gz"), (round_, name, error)
                continue
            assert [row for row, _ in found] == list(range(len(found)))
            assert sources.origins[0].records == len(found)
            for _, record in found:
                if not isinstance(record, RecordError):
                    try:
                        read_record(record, Recipe())
                    except RecordError as error:
                        assert error.reason
