"""Ids are the library's, spans cover every byte once, data writes no control token, cuts are those of inference."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from maskpipe.errors import RecordError, TokenizerError, UsageError
from maskpipe.tokenizer import Encoding, Tokenizer
from maskpipe.tokenizer import tokenizer as tokenizer_module
from maskpipe.tokenizer.nfc import nfc_groups
from tests.made_tokenizers import CONTROL, MADE, added, config_of, from_config, library_of, made, without_added

EXACT = [name for name in MADE if name not in ("word_piece", "byte_level_lower")]
"""Tokenizers that drop no character of a text."""

fragments = st.sampled_from(
    [
        *CONTROL,
        *[token[: len(token) // 2] for token in CONTROL],
        *[token[len(token) // 2 :] for token in CONTROL],
        *["hello", " world", " ", "  ", "\n", "\n\n", "\t", ":", "don't", "1234", "_", "a", "A"],
        *["é", "e\u0301", "\u0338", "\u0301", "Å", "\u1100\u1161\u11a8", "漢字", "🎉", "\u200d", "▁", "\u2028", "\x00"],
        *["\ue000", "\uf8ff", "\x00123,456\x00", "<0x0A>", "<unk>", "<THINK>", "[UNK]", "\ufffd", "\U000f0000"],
    ]
)
texts = st.lists(fragments, max_size=10).map("".join)


@st.composite
def owned_texts(draw: st.DrawFn) -> tuple[str, list[tuple[int, int, frozenset[str] | None]]]:
    """A text of template parts and content parts, and the ranges of the latter."""
    text, ranges = "", []
    for _ in range(draw(st.integers(1, 3))):
        text += draw(texts)
        start = len(text)
        text += draw(texts)
        allowed = draw(st.sampled_from([None, frozenset(), frozenset({"<think>", "</think>"}), frozenset(CONTROL)]))
        ranges.append((start, len(text), allowed))
        text += draw(st.sampled_from(["", "end|>", "\n", "<|im_end|>\n"]))
    return text, ranges


def starts(encoding: Encoding) -> list[int]:
    return [0, *encoding.byte_ends.tolist()][:-1]


def library_ids(name: str, text: str) -> list[int]:
    return list(library_of(name).encode(text, add_special_tokens=False).ids)


def assert_covers(encoding: Encoding, text: str) -> None:
    ends = encoding.byte_ends
    assert encoding.input_ids.dtype == np.int32
    assert ends.dtype == np.int64
    assert len(ends) == len(encoding.input_ids)
    assert (np.diff(ends, prepend=0) >= 0).all()
    assert not len(ends) or ends[-1] == len(text.encode())


# Ids and spans


@pytest.mark.parametrize("name", MADE)
@given(text=texts)
@settings(max_examples=30)
def test_ids_are_the_librarys_and_spans_cover_every_byte_once(name: str, text: str) -> None:
    encoding = made(name).encode(text)
    assert encoding.input_ids.tolist() == library_ids(name, text)
    assert_covers(encoding, text)
    assert encoding.neutralised == ()
    assert encoding.cut_before == ()
    assert len(encoding.input_ids) or not text or name not in EXACT


@pytest.mark.parametrize("name", MADE)
@given(text=texts, block=st.integers(0, 12))
@settings(max_examples=60)
def test_a_long_text_has_the_ids_of_the_whole_although_it_goes_in_blocks(name: str, text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "BLOCK", block)
        assert made(name).ids([text])[0].tolist() == library_ids(name, text)


def test_long_texts_are_cut_before_control_tokens_where_that_is_exact() -> None:
    text = ("<|im_start|>user\nHello world<|im_end|>\n") * 1000
    blocks = made("byte_level")._blocks(text)
    assert len(blocks) == 5 and "".join(blocks) == text
    assert all(block.startswith("<|im_") for block in blocks)
    assert made("byte_level_flags")._blocks(text) == [text]


@pytest.mark.parametrize(
    "name", ["byte_level", "byte_level_prefix", "byte_level_nfc", "replace", "prepend", "metaspace_first"]
)
@given(text=texts)
@settings(max_examples=30)
def test_a_span_holds_the_bytes_of_its_token(name: str, text: str) -> None:
    """NFC and U+2581 aside. A token of no width is a space that the tokenizer adds, or ends in a rewritten group."""
    tokenizer = made(name)
    encoding = tokenizer.encode(text)
    raw = text.encode()
    nfc = name.endswith("nfc")
    spelled = b""
    for id, start, end in zip(encoding.input_ids.tolist(), starts(encoding), encoding.byte_ends.tolist(), strict=True):
        here, token = raw[start:end], tokenizer.token_bytes(id)
        spelled += token
        if not nfc:
            assert here in (token, token[1:]) or here.replace("▁".encode(), b" ") in (token, token[1:])
            assert here or token == b" "
    if nfc:
        assert unicodedata.normalize("NFC", spelled.decode()) == unicodedata.normalize("NFC", text)
    if name == "byte_level":
        assert tokenizer.decode(encoding.input_ids) == text


@pytest.mark.parametrize(
    "name", ["byte_level_flags", "prepend_flags", "metaspace_first_flags", "byte_level_normalized"]
)
@given(text=texts)
@settings(max_examples=50)
def test_added_tokens_cover_what_the_library_says_they_cover(name: str, text: str) -> None:
    """Whitespace that lstrip and rstrip swallow included."""
    encoding = made(name).encode(text)
    theirs = library_of(name).encode(text, add_special_tokens=False)
    control = {made(name).added_tokens[content] for content in CONTROL}
    raw = text.encode()
    seen = 0
    for k, id in enumerate(theirs.ids):
        start, end = theirs.offsets[k]
        if id in control and start >= seen:  # a token in whitespace that was swallowed: the library overlaps itself
            assert (starts(encoding)[k], encoding.byte_ends[k]) == (
                len(text[:start].encode()),
                len(text[:end].encode()),
            )
        seen = max(seen, end)
    assert encoding.byte_ends[-1] == len(raw) if len(encoding.byte_ends) else not raw


def test_text_swallowed_by_a_token_belongs_to_its_span() -> None:
    encoding = made("byte_level_flags").encode("a <|end|>\n\nb")
    assert [made("byte_level_flags").token_bytes(i) for i in encoding.input_ids] == [b"a", b"<|end|>", b"b"]
    assert encoding.byte_ends.tolist() == [1, 11, 12]


def test_single_word_tokens_are_found_only_as_words() -> None:
    tokenizer = made("byte_level_flags")
    assert [t for _, _, t in tokenizer.find_control("x<think> <think>\u0301 <think> <think>_ (<think>)")] == [
        "<think>"
    ] * 2


@pytest.mark.parametrize("word", ["a", "Ⓐ", "9", "_", "\u0301", "\u200d", "漢", "⁀", "𝟗", "Ⅷ"])
@pytest.mark.parametrize("other", [" ", "-", "🎉", "½", "\u2028", "€", "\x1c"])
def test_word_characters_are_the_librarys(word: str, other: str) -> None:
    for text in (f"{word}<think>{other}", f"{other}<think>{word}", f"{other}<think>{other}"):
        encoding = made("byte_level_flags").encode(text)
        found = made("byte_level_flags").added_tokens["<think>"] in encoding.input_ids.tolist()
        assert found == bool([t for *_, t in made("byte_level_flags").find_control(text) if t == "<think>"])
        assert found == (word not in text)


def test_nfc_rewriting_is_counted_and_aligned() -> None:
    encoding = made("byte_level_nfc").encode("ae\u0301b")
    assert encoding.counts == {"nfc_rewritten": 3}
    assert encoding.byte_ends[-1] == 5
    assert 2 not in encoding.byte_ends  # no token ends between a letter and its accent


@given(texts)
def test_nfc_groups_rebuild_the_text_and_its_normal_form(text: str) -> None:
    groups = nfc_groups(text)
    assert "".join(source for source, _ in groups) == text
    assert "".join(normal for _, normal in groups) == unicodedata.normalize("NFC", text)


def test_unknown_characters_are_covered_through_offsets() -> None:
    encoding = made("unknown").encode("hello ☃☃ world<|im_end|>☃")
    assert encoding.counts["offsets_fallback"] > 0
    assert encoding.byte_ends[-1] == len("hello ☃☃ world<|im_end|>☃".encode())


def test_lossy_text_belongs_to_a_neighbour() -> None:
    encoding = made("word_piece").encode("  Héllo   worlds  ")
    assert made("word_piece").decode(encoding.input_ids) == "helloworlds"
    assert encoding.byte_ends.tolist() == [8, 16, 19]


def test_no_text_has_no_tokens() -> None:
    assert len(made("byte_level").encode("").input_ids) == 0
    assert made("word_piece").encode(" \n").byte_ends.tolist() == []


def test_lone_surrogates_are_refused_with_their_place() -> None:
    with pytest.raises(RecordError, match=r"character 2 .*U\+D83C") as caught:
        made("byte_level").encode("ab\ud83c")
    assert caught.value.reason == "lone_surrogate"


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    """T01, T02, T07 as well: the post-processor's own tokens are never added."""
    config = config_of("byte_level")
    start = config["model"]["vocab"]["<|im_start|>"]
    strange = config | {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<think>",
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [start], "tokens": ["<|im_start|>"]}},
        },
    }
    text = "hello world, how are you"
    assert from_config(strange).encode(text).input_ids.tolist() == library_ids("byte_level", text)


# Control tokens in content


def control_in_content(tokenizer: Tokenizer, encoding: Encoding, text: str, ranges: list[Any]) -> Iterator[str]:
    """Control tokens that hold a character of content and are not wholly inside a range that allows them."""
    by_id = {tokenizer.added_tokens[content]: content for content in tokenizer.control}
    raw = text.encode()
    for id, start, end in zip(encoding.input_ids.tolist(), starts(encoding), encoding.byte_ends.tolist(), strict=True):
        if id not in by_id:
            continue
        place = raw[start:end].find(by_id[id].encode())
        if place < 0:
            assert by_id[id] in ("[UNK]", "<unk>")  # the model's word for what it does not know
            continue
        core = start + place
        for first, last, allowed in ranges:
            begin, stop = len(text[:first].encode()), len(text[:last].encode())
            inside = begin <= core and core + len(by_id[id].encode()) <= stop and by_id[id] in (allowed or ())
            if core < stop and core + len(by_id[id].encode()) > begin and begin < stop and not inside:
                yield by_id[id]


@pytest.mark.parametrize("name", EXACT)
@given(owned_texts())
@settings(max_examples=30)
def test_data_writes_no_control_token(name: str, case: tuple[str, list[Any]]) -> None:
    text, ranges = case
    tokenizer = made(name)
    encoding = tokenizer.encode(text, content=ranges)
    assert_covers(encoding, text)
    assert list(control_in_content(tokenizer, encoding, text, ranges)) == []
    for start, end, token in encoding.neutralised:
        assert text[start:end] == token
        assert any(first < end and start < last for first, last, _ in ranges)
    if not encoding.neutralised:
        assert encoding.input_ids.tolist() == library_ids(name, text)


@pytest.mark.parametrize("name", MADE)
@given(owned_texts())
@settings(max_examples=30)
def test_a_neutralised_token_is_encoded_as_if_it_did_not_exist(name: str, case: tuple[str, list[Any]]) -> None:
    """Where every occurrence of some tokens is neutralised, the library without those tokens gives the same ids."""
    text, ranges = case
    encoding = made(name).encode(text, content=ranges)
    rejected = {token for token in CONTROL for _, _, longer in encoding.neutralised if token in longer}
    if not rejected or rejected & {made(name).decode([i]) for i in encoding.input_ids}:
        return
    twin = without_added(config_of(name), rejected)
    assert encoding.input_ids.tolist() == twin.encode(text, add_special_tokens=False).ids


def test_ten_thousand_hostile_contents() -> None:
    """I01, I02: control tokens, halves of them, private-use characters, things that look like our own internals."""
    tokenizer = made("byte_level")
    random_ = random.Random(20261122)
    pieces = [*CONTROL, "\ue000", "\uf8ff", "\U0010ffff", "\x00123,456\x00", "<unk>", " ", "\n", "hi", "é", "🎉"]
    user = tokenizer.encode("<|im_start|>user\n").input_ids.tolist()
    neutralised = 0
    for _ in range(10_000):
        content = "".join(
            piece[: random_.randint(1, len(piece))] if random_.random() < 0.3 else piece[random_.randint(0, 1) :]
            for piece in random_.choices(pieces, k=random_.randint(1, 6))
        )
        text = f"<|im_start|>user\n{content}<|im_end|>\n"
        encoding = tokenizer.encode(text, content=[(17, 17 + len(content), None)])
        assert tokenizer.decode(encoding.input_ids) == text
        found = [i for i in encoding.input_ids.tolist() if i in tokenizer.added_tokens.values()]
        assert found == [tokenizer.added_tokens["<|im_start|>"], tokenizer.added_tokens["<|im_end|>"]]
        assert encoding.input_ids.tolist()[: len(user) - 1] == user[:-1]
        neutralised += bool(encoding.neutralised)
    assert neutralised > 1000


def test_halves_from_content_and_template_do_not_combine() -> None:
    tokenizer = made("byte_level")
    text = "<|im_end|>"
    for content in ([(0, 5, None)], [(5, 10, None)], [(0, 5, frozenset(CONTROL))], [(0, 5, None), (5, 10, None)]):
        encoding = tokenizer.encode(text, content=content)
        assert tokenizer.added_tokens[text] not in encoding.input_ids.tolist()
        assert encoding.neutralised == ((0, 10, text),)
        assert tokenizer.decode(encoding.input_ids) == text


def test_a_half_of_content_does_not_take_a_token_from_the_template() -> None:
    config = config_of("byte_level")
    overlapping = config | {"added_tokens": [added(0, "xy", special=True), added(1, "yz", special=True)]}
    overlapping["model"] = config["model"] | {"vocab": {**config["model"]["vocab"]}}
    tokenizer = from_config(overlapping)
    encoding = tokenizer.encode("xyz", content=[(0, 1, None)])
    assert [tokenizer.token_bytes(i) for i in encoding.input_ids] == [b"x", b"yz"]


def test_allowed_tokens_stay_and_are_counted() -> None:
    tokenizer = made("byte_level")
    text = "<|im_start|><think>a</think><|im_end|><|im_end|>"
    encoding = tokenizer.encode(text, content=[(12, 38, frozenset({"<think>", "</think>"}))])
    assert encoding.counts == {"kept": 2, "control_tokens_neutralised": 1}
    assert encoding.neutralised == ((28, 38, "<|im_end|>"),)
    assert encoding.input_ids[-1] == tokenizer.added_tokens["<|im_end|>"]


def test_content_may_stand_beside_a_token_that_swallows_its_whitespace() -> None:
    """The token is the template's own; ids of clean chats are the library's."""
    tokenizer = made("byte_level_flags")
    encoding = tokenizer.encode("<|end|>  hi", content=[(7, 11, None)])
    assert encoding.neutralised == ()
    assert encoding.byte_ends.tolist()[0] == 9


def test_ordinary_vocabulary_is_no_control_token() -> None:
    """Gemma lists runs of newlines as added tokens; no one writes those with intent."""
    config = config_of("byte_level")
    vocabulary = config["model"]["vocab"]
    word = next(entry for entry in vocabulary if entry.isascii() and entry.isalpha() and len(entry) > 2)
    tokens = [*config["added_tokens"], added(vocabulary[word], word)]
    tokenizer = from_config(config | {"added_tokens": tokens})
    assert not tokenizer.is_control(word)
    assert tokenizer.is_control("<think>")
    encoding = tokenizer.encode(f"{word}<think>", content=[(0, len(word) + 7, None)])
    assert encoding.input_ids[0] == vocabulary[word]
    assert encoding.counts == {"control_tokens_neutralised": 1}


def test_a_vocabulary_that_makes_a_control_token_from_text_is_refused() -> None:
    config = config_of("byte_level")
    model = config["model"]
    merges = [["<", "|"], ["<|", ">"]]
    vocabulary = model["vocab"] | {"<|": len(model["vocab"]), "<|>": len(model["vocab"]) + 1}
    merged = config | {
        "model": model | {"vocab": vocabulary, "merges": [*merges, *model["merges"]]},
        "added_tokens": [added(vocabulary["<|>"], "<|>", special=True)],
    }
    tokenizer = from_config(merged)
    with pytest.raises(TokenizerError, match="cannot neutralise '<\\|>'"):
        tokenizer.encode("a<|>b", content=[(0, 5, None)])
    assert len(tokenizer.encode("a<|>b").input_ids) == 3
    assert len(tokenizer.encode("a<|>b", content=[(0, 5, frozenset({"<|>"}))]).input_ids) == 3


def test_whole_words_of_the_vocabulary_do_not_become_control_tokens() -> None:
    """A word-level vocabulary holds its control tokens as words; those words go, too."""
    config = config_of("byte_level")
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "<think>", "hi"])}
    words = config | {
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        "added_tokens": [added(1, "<think>", special=True)],
    }
    tokenizer = from_config(words)
    encoding = tokenizer.encode("hi <think> hi", content=[(3, 10, None)])
    assert encoding.input_ids.tolist() == [2, 0, 2]


@pytest.mark.parametrize("content", [[(0, 3, None), (2, 4, None)], [(-1, 2, None)], [(0, 9, None)], [(3, 1, None)]])
def test_ranges_that_make_no_sense_are_refused(content: list[Any]) -> None:
    with pytest.raises(UsageError, match="content ranges"):
        made("byte_level").encode("hello", content=content)


@pytest.mark.parametrize("cuts", [[3, 2], [-1], [6]])
def test_cuts_that_make_no_sense_are_refused(cuts: list[int]) -> None:
    with pytest.raises(UsageError, match="cuts"):
        made("byte_level").encode("hello", cuts=cuts)


def test_control_tokens_are_found_as_the_library_finds_them() -> None:
    tokenizer = made("byte_level")
    assert tokenizer.find_control("é<|im_start|><|im_<think>") == [
        (1, 13, "<|im_start|>"),
        (13, 17, "<|im"),
        (18, 25, "<think>"),
    ]


# Cuts


CUT = ["byte_level", "byte_level_prefix", "byte_level_nfc", "byte_level_flags", "replace", "prepend", "unknown"]
CUT += ["metaspace_first", "metaspace_always", "metaspace_never"]


def without_prefix(name: str) -> Library:
    """The same tokenizer, adding no space anywhere."""
    config = json.loads(json.dumps(config_of(name)))
    normalizer = config["normalizer"] or {}
    normalizer["normalizers"] = [part for part in normalizer.get("normalizers", []) if part["type"] != "Prepend"]
    pre_tokenizer = config["pre_tokenizer"] or {}
    if pre_tokenizer.get("type") == "ByteLevel":
        pre_tokenizer["add_prefix_space"] = False
    if pre_tokenizer.get("type") == "Metaspace":
        pre_tokenizer["prepend_scheme"] = "never"
    return Library.from_str(json.dumps(config))


def ids_and_ends(library: Library, text: str) -> tuple[list[int], list[int]]:
    encoded = library.encode(text, add_special_tokens=False)
    return list(encoded.ids), [end for _, end in encoded.offsets]


def continuation(name: str, text: str) -> tuple[list[int], list[int]]:
    """Ids and ends of a text that goes on after other text: no space before it, but as ever after its added tokens."""
    found = made(name).find_control(text)
    if not found or name in ("byte_level", "byte_level_nfc", "byte_level_flags"):
        return ids_and_ends(without_prefix(name), text)
    border = found[0][0]
    ids, ends = ids_and_ends(without_prefix(name), text[:border])
    more_ids, more_ends = ids_and_ends(library_of(name), text[border:])
    return ids + more_ids, ends + [border + end for end in more_ends]


def cut_slowly(name: str, text: str, cuts: list[int]) -> tuple[list[int], list[int]]:
    """Ids, and where they were cut, by the definition: every prompt encoded whole."""

    def encode(start: int, end: int) -> tuple[list[int], list[int]]:
        return ids_and_ends(library_of(name), text[:end]) if start == 0 else continuation(name, text[start:end])

    fixed: list[int] = []
    since = 0
    tail, tail_ends = encode(0, len(text))
    cut_before = []
    for cut in sorted(set(cuts) - {0, len(text)}):
        prompt, _ = encode(since, cut)
        # The library's offsets of rewritten text miss a character; elsewhere a token that spans the cut is no prefix.
        prefix = tail[: len(prompt)] == prompt
        if prefix and (not prompt or name == "byte_level_nfc" or tail_ends[len(prompt) - 1] == cut - since):
            continue
        fixed += prompt
        since = cut
        cut_before.append(len(fixed))
        tail, tail_ends = encode(cut, len(text))
    return fixed + tail, cut_before


@pytest.mark.parametrize("name", CUT)
@given(text=texts, places=st.lists(st.floats(0, 1), max_size=4))
@settings(max_examples=50)
def test_cuts_are_what_their_definition_says(name: str, text: str, places: list[float]) -> None:
    cuts = sorted(round(place * len(text)) for place in places)
    encoding = made(name).encode(text, cuts=cuts)
    ids, cut_before = cut_slowly(name, text, cuts)
    assert encoding.input_ids.tolist() == ids
    assert list(encoding.cut_before) == cut_before
    assert_covers(encoding, text)


@pytest.mark.parametrize("name", MADE)
@given(case=owned_texts(), places=st.lists(st.floats(0, 1), max_size=3))
@settings(max_examples=25)
def test_the_fast_way_says_what_the_slow_way_says(name: str, case: tuple[str, list[Any]], places: list[float]) -> None:
    text, content = case
    given_cuts = sorted(round(place * len(text)) for place in places)
    tokenizer = made(name)
    fast = outcome(tokenizer, text, content, given_cuts)
    strings, tokenizer._strings = tokenizer._strings, None
    try:
        assert outcome(tokenizer, text, content, given_cuts) == fast
    finally:
        tokenizer._strings = strings


def outcome(tokenizer: Tokenizer, text: str, content: list[Any], cuts: list[int]) -> Any:
    try:
        encoding = tokenizer.encode(text, content=content, cuts=cuts)
    except TokenizerError as error:
        return str(error)
    values = (encoding.input_ids.tolist(), encoding.byte_ends.tolist(), encoding.cut_before)
    return (*values, encoding.neutralised, encoding.counts)


@pytest.mark.parametrize("name", EXACT)
@given(case=owned_texts(), place=st.floats(0, 1))
@settings(max_examples=25)
def test_what_stands_before_a_cut_is_the_prompt_encoded_alone(
    name: str, case: tuple[str, list[Any]], place: float
) -> None:
    """With control tokens in content, too."""
    text, ranges = case
    cut = round(place * len(text))
    if not 0 < cut < len(text):
        return
    encoding = made(name).encode(text, content=ranges, cuts=[cut])
    before = [(start, min(end, cut), allowed) for start, end, allowed in ranges if start < cut]
    prompt = made(name).encode(text[:cut], content=before)
    n = len(prompt.input_ids)
    assert encoding.input_ids[:n].tolist() == prompt.input_ids.tolist()
    assert encoding.byte_ends[n - 1] == len(text[:cut].encode())
    assert encoding.cut_before in ((), (n,))
    if not encoding.cut_before:
        assert encoding.input_ids.tolist() == made(name).encode(text, content=ranges).input_ids.tolist()
    assert list(control_in_content(made(name), encoding, text, ranges)) == []
    assert_covers(encoding, text)


def test_a_token_that_would_bridge_the_end_of_the_prompt_is_cut() -> None:
    tokenizer = made("byte_level")
    text = "<|im_start|>assistant\n\n\nHello"
    cut = text.index("\n") + 1
    whole = tokenizer.encode(text)
    assert tokenizer.token_bytes(int(whole.input_ids[-3])) == b"\n\n"
    encoding = tokenizer.encode(text, cuts=[cut])
    assert [tokenizer.token_bytes(int(i)) for i in encoding.input_ids[2:5]] == [b"\n", b"\n", b"\n"]
    assert encoding.cut_before == (len(tokenizer.encode(text[:cut]).input_ids),)
    assert encoding.counts == {"cuts": 1}


def test_ids_may_change_at_a_cut_that_no_token_bridges() -> None:
    """GPT-2's pattern looks ahead: spaces before a word are split otherwise than spaces at the end."""
    tokenizer = made("byte_level")
    text = "<|im_start|>a:   b"
    cut = text.index("b") - 1
    assert cut in tokenizer.encode(text).byte_ends
    prompt = tokenizer.encode(text[:cut])
    encoding = tokenizer.encode(text, cuts=[cut])
    assert encoding.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()


def test_a_cut_inside_a_control_token_leaves_two_halves() -> None:
    """T06. At inference the prompt ends with half a token; no other reading of it exists."""
    tokenizer = made("byte_level")
    encoding = tokenizer.encode("a<|im_end|>", cuts=[6])
    assert tokenizer.added_tokens["<|im_end|>"] not in encoding.input_ids.tolist()
    assert tokenizer.decode(encoding.input_ids) == "a<|im_end|>"


# What the files say


def settings_of(**values: Any) -> str:
    return json.dumps(values)


def test_loads_a_directory_a_file_and_embedded_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(config_of("byte_level")))
    (tmp_path / "tokenizer_config.json").write_text(settings_of(eos_token="<|im_end|>", chat_template="old"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "model.safetensors").write_text("large")
    whole = Tokenizer.load(tmp_path)
    assert list(whole.files) == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert whole.name == tmp_path.name
    assert whole.chat_template == "{{ messages }}"
    again = Tokenizer(dict(reversed(whole.files.items())), whole.name)
    assert again.fingerprint == whole.fingerprint
    alone = Tokenizer.load(tmp_path / "tokenizer.json")
    assert alone.fingerprint != whole.fingerprint
    assert (alone.chat_template, alone.eos_token, alone.pad_id, alone.stop_tokens) == (None, "", 0, ())


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "a/b/c", "/no/such"])
def test_what_is_not_there_is_refused_without_the_network(name: str) -> None:
    with pytest.raises(UsageError, match="no such file or directory"):
        Tokenizer.load(name)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no valid JSON"), ("[]", "no model"), ("{}", "no model"), ('{"model": {"vocab": {}}}', "cannot load")],
)
def test_broken_tokenizer_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer({"tokenizer.json": text.encode()}, "broken")


def test_random_tokenization_is_refused() -> None:
    config = config_of("byte_level")
    with pytest.raises(TokenizerError, match="dropout"):
        from_config(config | {"model": config["model"] | {"dropout": 0.1}})


def test_special_tokens_and_stops_come_from_the_settings() -> None:
    vocabulary = config_of("byte_level")["model"]["vocab"]
    tokenizer = from_config(
        config_of("byte_level"),
        **{
            "tokenizer_config.json": settings_of(
                bos_token=None,
                eos_token={"content": "<|im_end|>", "lstrip": False},
                pad_token="<|end|>",
                chat_template=[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
            ),
            "generation_config.json": settings_of(
                eos_token_id=[vocabulary["<|end|>"], vocabulary["<|im_end|>"], 10**9]
            ),
        },
    )
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|end|>"}
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("", "<|im_end|>")
    assert tokenizer.pad_id == vocabulary["<|end|>"]
    assert tokenizer.stop_tokens == ("<|im_end|>", "<|end|>")
    assert tokenizer.chat_template == "d"
    assert tokenizer.special == {"<|im_start|>", "<|im_end|>", "<|end|>"}
    assert tokenizer.added_tokens == {content: vocabulary[content] for content in CONTROL}
    assert tokenizer.vocab_size == len(vocabulary)


def test_padding_is_eos_when_there_is_no_pad_token() -> None:
    tokenizer = from_config(config_of("byte_level"), **{"tokenizer_config.json": settings_of(eos_token="<|im_end|>")})
    assert tokenizer.pad_id == tokenizer.added_tokens["<|im_end|>"]


def test_ids_outside_the_vocabulary_have_no_bytes() -> None:
    tokenizer = made("byte_level")
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(IndexError):
            tokenizer.token_bytes(id)


SETTINGS = {
    "a new token": {"added_tokens_decoder": {"900": {"content": "<new>", "special": True, "normalized": False}}},
    "other flags": {"added_tokens_decoder": {"0": {"content": "<|im_start|>", "special": True, "rstrip": True}}},
    "a name that is no token": {"eos_token": "<eos>", "bos_token": {"__type": "AddedToken", "content": "<bos>"}},
    "extra tokens": {"additional_special_tokens": ["<more>", "<think>"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_of_the_settings_are_added_as_transformers_adds_them(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(json.dumps(config_of("byte_level")))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **SETTINGS[name]})
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    text = "<|im_start|> <new> a <eos> <bos>\n<more><think>hi"
    assert ours.encode(text).input_ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.added_tokens == theirs.get_added_vocab()
    assert ours.special_tokens == theirs.special_tokens_map


# Real tokenizers

REAL = ["bert-base-uncased", "deepseek-v3", "gemma-3", "gpt2", "llama-3.1", "mistral-v0.1", "mistral-v3", "qwen3"]


def real_texts(shared_data: Path) -> list[str]:
    chats = []
    with gzip.open(shared_data / "mix-openai.jsonl.gz", "rt", encoding="utf-8", newline="\n") as lines:
        for line in itertools.islice(lines, 0, 4000, 40):
            chats.append(json.loads(line)["messages"])
    naughty = json.loads((shared_data / "chats/blns/blns.json").read_text(encoding="utf-8"))
    lines_ = (shared_data / "chats/tinker-cookbook/multilingual.txt").read_text(encoding="utf-8").split("\n")
    return ["".join(f"{m['role']}\n{m['content']}\n" for m in chat) for chat in chats] + (naughty + lines_)[::2]


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name: str, shared_data: Path) -> None:
    """Ids, spans, neutralised content and a cut, on real and hostile text."""
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / name)
    library = Library.from_str(tokenizer.files["tokenizer.json"].decode())
    control = sorted(tokenizer.special)[:3]
    before, after = control[0], control[-1]
    for text in real_texts(shared_data):
        text = f"{before}user\n{text}{after}\n"
        encoding = tokenizer.encode(text)
        ids = library.encode(text, add_special_tokens=False).ids
        assert encoding.input_ids.tolist() == ids
        assert_covers(encoding, text)
        if name != "bert-base-uncased":
            assert "offsets_fallback" not in encoding.counts
        if not encoding.counts:  # neither NFC, nor U+2581, nor offsets
            raw = text.encode()
            for id, start, end in zip(ids, starts(encoding), encoding.byte_ends.tolist(), strict=True):
                assert tokenizer.token_bytes(id) in (raw[start:end], b" " + raw[start:end])
        content = [(len(before) + 5, len(text) - len(after) - 1, None)]
        clean = tokenizer.encode(text, content=content)
        assert clean.neutralised or clean.input_ids.tolist() == ids  # Gemma's control tokens include HTML tags
        hostile = text[: content[0][1]] + after + before + text[content[0][1] :]
        ranges = [(content[0][0], content[0][1] + len(after) + len(before), None)]
        guarded = tokenizer.encode(hostile, content=ranges)
        assert len(guarded.neutralised) >= 2
        assert list(control_in_content(tokenizer, guarded, hostile, ranges)) == []
        assert_covers(guarded, hostile)
        cut = content[0][0]
        prompt = tokenizer.encode(text[:cut])
        assert (
            tokenizer.encode(text, cuts=[cut]).input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()
        )
