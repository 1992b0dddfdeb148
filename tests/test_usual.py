"""What the core settles by itself is what the encoder makes of the record: the same bytes, counts and rejects."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskpipe import Recipe, Tokenizer, _core, demo_data
from maskpipe.chat import Conversation, read_all
from maskpipe.document import Document
from maskpipe.encoder import Encoded, Encoder
from maskpipe.errors import MaskpipeError, RecordError
from maskpipe.guard import UNGUARDED
from maskpipe.records import Mapped, map_chunk
from maskpipe.sources import Chunk
from maskpipe.strict_json import parse
from maskpipe.usual import FIRST_COMPARED, UsualRecords
from tests.conversations import CHATS, assistant, user

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
GOLDEN = sorted((Path(__file__).parent / "golden" / "templates").glob("*.jinja"))
ENCODER = Encoder(TOKENIZER, Recipe())
WORDS = ["tide", " rope", "\n", "é", "\u0301", "😀", "<|im_end|>", "</think>", "<think>", "▁a", "\u00a0", "\\", '"', ""]


def settled(encoder: Encoder) -> UsualRecords:
    usual = UsualRecords.of(encoder)
    assert usual is not None
    return usual


def mapped(encoder: Encoder, lines: list[str], usual: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Mapped, bytes]:
    payload = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    chunk = Chunk(0, "chats.jsonl", 0, len(lines), "lines", payload, 1)
    sink = io.BytesIO()
    with monkeypatch.context() as patch:
        if not usual:
            patch.setattr(UsualRecords, "of", staticmethod(lambda encoder: None))
        return map_chunk(encoder, chunk, sink, None, UNGUARDED), sink.getvalue()


def some_lines(seed: int, count: int) -> list[str]:
    """Chats as people have them, odd ones and broken ones among them."""
    chance = random.Random(seed)

    def text() -> str:
        return "".join(chance.choice(WORDS[: 2 if chance.random() < 0.7 else None]) for _ in range(chance.randrange(9)))

    out = [json.dumps({"messages": chat.messages, "tools": chat.tools}) for chat in CHATS.values()]
    for number in range(count):
        messages = [entry for _ in range(chance.randrange(1, 4)) for entry in (user(text()), assistant(text()))]
        if chance.random() < 0.2:
            messages.insert(0, {"content": text(), "role": chance.choice(["system", "developer", "tool", "judge"])})
        if chance.random() < 0.1:
            messages[-1]["weight"] = chance.choice([0, 1, 0.5])
        if chance.random() < 0.1:
            messages[-1]["reasoning_content"] = text()
        record: dict[str, Any] = {"messages": messages, "id": chance.choice([number, 1.5, None, "x", [1], {"a": []}])}
        if chance.random() < 0.1:
            record["system"] = text()
        line = json.dumps(record, ensure_ascii=chance.random() < 0.5)
        out.append(line[:-1] if chance.random() < 0.05 else line)
    return out


RECIPES: list[dict[str, Any]] = [
    {},
    {"train_on": ("assistant", "user.content"), "control_tokens_in_content": "keep", "on_content_lost": "count"},
    {"train_on": ("assistant", "turns:0,-1"), "sequence_length": 48, "on_too_long": "truncate", "deduplicate": True},
]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_chunk_becomes_the_same_bytes(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    template = path.read_text(encoding="utf-8")
    lines = some_lines(number, 30)
    encoders = [
        Encoder(TOKENIZER, Recipe(chat_template=template, on_bad_record="reject", **RECIPES[number])) for _ in range(2)
    ]
    for _ in range(2):  # the second time nothing has to be compared or learned
        one, by_core = mapped(encoders[0], lines, True, monkeypatch)
        other, by_python = mapped(encoders[1], lines, False, monkeypatch)
        assert one.to_dict() == other.to_dict()
        assert by_core == by_python


def test_most_chats_are_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(TOKENIZER, Recipe())
    lines = [json.dumps({"messages": [user(f"Which {k}?"), assistant(f"The {k}th.")], "id": k}) for k in range(200)]
    mapped(encoder, lines, True, monkeypatch)
    begun = 0
    begin = Encoder.begin

    def counted(self: Encoder, record: Any) -> Any:
        nonlocal begun
        begun += 1
        return begin(self, record)

    monkeypatch.setattr(Encoder, "begin", counted)
    result, _ = mapped(encoder, lines, True, monkeypatch)
    assert result.kept == 200
    print(f"{begun} of 200 by Python, {FIRST_COMPARED} of them to compare")
    assert FIRST_COMPARED <= begun <= FIRST_COMPARED + 10


def test_a_record_that_python_encodes_otherwise_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(TOKENIZER, Recipe())
    lines = [json.dumps({"messages": [user("Which?"), assistant(f"The {k}th.")]}) for k in range(40)]
    mapped(encoder, lines, True, monkeypatch)
    finish = Encoder.finish

    def spoiled(self: Encoder, *arguments: Any) -> list[Encoded]:
        out = finish(self, *arguments)
        for encoded in out:
            encoded.documents = [
                Document(**{**vars(document), "part_ids": document.part_ids[::-1].copy()})
                for document in encoded.documents
            ]
        return out

    monkeypatch.setattr(Encoder, "finish", spoiled)
    with pytest.raises(MaskpipeError, match="otherwise than Python"):
        mapped(encoder, lines, True, monkeypatch)


# -- lines

READER = settled(ENCODER)
PLAIN = {"messages": [user("Which knot?"), assistant("The bowline.")]}


def warm() -> None:
    for _ in range(10):  # renders are compared before they are trusted
        ENCODER.encode(Conversation(list(PLAIN["messages"])))
        ENCODER.encode(Conversation([*PLAIN["messages"], *PLAIN["messages"]]))


warm()
strings = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(WORDS)
values = st.none() | st.booleans() | st.integers() | st.floats() | strings | st.lists(st.integers(), max_size=2)


@settings(max_examples=300)
@given(
    contents=st.lists(strings, min_size=2, max_size=4),
    beside=st.dictionaries(strings | st.sampled_from(["id", "text", "tools", "system"]), values, max_size=2),
    ascii=st.booleans(),
    harm=st.none() | st.tuples(st.integers(0, 400), st.binary(max_size=2)),
)
@example(contents=["a", "b"], beside={}, ascii=True, harm=(13, b"\\"))
@example(contents=["😀", "b"], beside={}, ascii=True, harm=None)
def test_a_line_is_read_as_the_whole_way_reads_it(
    contents: list[str], beside: dict[str, Any], ascii: bool, harm: tuple[int, bytes] | None
) -> None:
    messages = [{"role": ("user", "assistant")[k % 2], "content": content} for k, content in enumerate(contents)]
    line = json.dumps({**beside, "messages": messages}, ensure_ascii=ascii).encode()
    if harm is not None:
        at = harm[0] % len(line)
        line = line[:at] + harm[1] + line[at + 1 :]
    draft = READER.read(line)
    if draft is None:
        return
    (item,) = read_all(parse(line), ENCODER.recipe).items
    assert isinstance(item, Conversation)
    assert item.tools is None and item.documents is None and not item.chat_template_kwargs
    assert draft.text() == ENCODER.template.engine.plain(item.messages)


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "messages": []}',
        '{"messages": [{"role": "user", "content": "a", "role": "user"}]}',
        '{"messages": [{"role": "user", "content": "a\tb"}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": NaN}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 01}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]} x',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": null}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "chosen": "c"}',
        '{"messages": [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [], "id": 1}',
        '[{"role": "user", "content": "a"}]',
        "",
    ],
)
def test_lines_that_are_not_usual_are_left_to_python(line: str) -> None:
    assert READER.read(line.encode()) is None


@pytest.mark.parametrize("bad", [b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xff"])
def test_bytes_that_are_no_utf8_are_left_to_python(bad: bytes) -> None:
    line = b'{"messages": [{"role": "user", "content": "' + bad + b'"}, {"role": "assistant", "content": "b"}]}'
    assert READER.read(line) is None
    with pytest.raises(RecordError):
        parse(line)


def test_a_plain_line_is_usual() -> None:
    draft = READER.read(json.dumps({**PLAIN, "source": "forum", "score": -1.5, "kept": True, "by": None}).encode())
    assert draft is not None
    assert draft.turns() == [1]
    assert draft.size() == len(draft.text().encode())


def test_documents_say_what_does_not_fit() -> None:
    documents = _core.Documents()
    with pytest.raises(IndexError):
        documents.last()
    document = ENCODER.encode(Conversation(list(PLAIN["messages"]))).documents[0]
    dense = (document.input_ids, document.role_ids, document.part_ids, document.flags, document.message_ids)
    with pytest.raises(ValueError, match="one length"):
        documents.add(dense[0], dense[1], dense[2], dense[3][:-1], dense[4], [], [])
    documents.add(*dense, [1], [0])
    assert all((a == b).all() for a, b in zip(documents.last(), dense, strict=True))
