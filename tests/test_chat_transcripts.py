"""A transcript is cut where its turns begin, and nowhere else; what can be cut in two ways is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chats import at, chat, refusal, turns

HH = "\n\nHuman: Hi\n\nAssistant: Hello \n\nHuman: you\nAssistant: no turn\n\nAssistant: Fine\n"


def test_blank_lines_begin_turns_and_other_lines_do_not() -> None:
    read = chat({"chosen": HH}, columns={"chosen": "messages"})
    assert turns(read) == [
        ("user", "Hi"),
        ("assistant", "Hello "),
        ("user", "you\nAssistant: no turn"),
        ("assistant", "Fine\n"),
    ]
    for message, path in zip(read.messages, read.paths, strict=True):
        assert at({"chosen": HH}, path) == message["content"]


def test_lines_begin_turns_of_display_strings() -> None:
    read = chat({"messages_display": "user: a\n\nb\nassistant: c\ntool: {}\nassistant: d"})
    assert turns(read) == [("user", "a\n\nb"), ("assistant", "c"), ("tool", "{}"), ("assistant", "d")]


def test_a_call_that_the_string_does_not_show_is_refused() -> None:
    error = refusal({"messages_display": "user: a\nassistant: None\ntool: {}\nassistant: d"})
    assert error.reason == "call_not_shown" and "character 8" in str(error)
    assert turns(chat({"messages_display": "user: a\nassistant: None\nuser: b"}))[1] == ("assistant", "None")


said = st.text("ab :\n", max_size=12).filter(lambda text: "\n\n" not in f"\n{text}\n" and not text.endswith("\n"))


@given(st.lists(st.tuples(st.sampled_from(["Human", "Assistant", "System"]), said), min_size=1, max_size=6))
def test_every_transcript_comes_back_as_its_turns(given_turns: list[tuple[str, str]]) -> None:
    text = "".join(f"\n\n{name}: {said}" for name, said in given_turns)
    names = {"Human": "user", "Assistant": "assistant", "System": "system"}
    assert turns(chat({"messages": text})) == [(names[name], said) for name, said in given_turns]


def test_a_prompt_up_to_the_assistants_name_is_the_chat_before_the_answer() -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: more\n\nAssistant:"
    expected = [("user", "Hi"), ("assistant", "Hello"), ("user", "more"), ("assistant", "Sure")]
    assert turns(chat({"prompt": prompt, "completion": " Sure"})) == expected
    assert turns(chat({"prompt": prompt + " ", "completion": "Sure"})) == expected
    plain = {"prompt": "Human: what is this?", "completion": " x"}
    assert turns(chat(plain)) == [("user", "Human: what is this?"), ("assistant", " x")]


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("Human: a\n\nAssistant: b\nHuman: c", "ambiguous_transcript", "'Human' at character 23"),
        ("\n\nHuman: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d", "ambiguous_transcript", "'User' at character 26"),
        ("\n\nHuman: fix\n\nassistant: x\n\nAssistant: d", "ambiguous_transcript", "'assistant' at character 14"),
        ("user: a\nassistant: b:\nHuman: c\nAssistant: d", "ambiguous_transcript", "'Human' at character 22"),
        ("\n\nHuman: a\n\nAssistant:", "bad_transcript", "answer is missing"),
        ("Once upon a time", "bad_json_column", "JSON text of messages"),
    ],
)
def test_what_can_be_read_in_two_ways_or_none_is_refused(text: str, reason: str, says: str) -> None:
    error = refusal({"messages": text})
    assert error.reason == reason
    assert says in str(error)


def test_other_names_are_mapped() -> None:
    read = chat({"log": "Q: a\nA: b"}, columns={"log": "messages"}, roles={"Q": "user", "A": "assistant"})
    assert turns(read) == [("user", "a"), ("assistant", "b")]


def test_pairs_and_texts_say_how_to_read_a_transcript() -> None:
    error = refusal({"chosen": HH, "rejected": HH})
    assert error.reason == "preference_pair" and "--map chosen=messages" in str(error)
    assert "--map text=messages" in str(refusal({"text": HH}))
    assert "--map log=messages" in str(refusal({"log": HH}))
    assert len(chat({"text": HH}, columns={"text": "messages"}).messages) == 4
