"""What one JSON text says, with Python's own JSON meaning, or a named error. Never a crash, never a silent choice.

    parse(b'{"a":1,"a":2}')   RecordError duplicate_key: two values for one key, and Python would keep the last
    parse(b'{"a":NaN}')       RecordError not_json
    parse(b'[[[[...')         RecordError too_deep, at MAX_DEPTH levels, not a RecursionError somewhere later
    parse(b'"\\\\ud83c"')       RecordError lone_surrogate; a valid pair is one character
    parse(b'"\\xb2"')          RecordError invalid_utf8, with the byte's offset

Key order, nulls, and the difference between 1 and 1.0 survive. Two thirds of the speed of json.loads: about 60 MB/s a
core on chats.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from maskpipe.errors import RecordError

MAX_DEPTH = 200
"""Levels of nesting. Real records have fewer than 20; Python's parser gives up, depending on its caller, near 900."""

MAX_VALUES = 1_000_000
"""In one text. A value of two bytes takes a hundred in memory; real records have some thousands."""

_INTEGER_BITS = 14_284
"""Any integer of so many bits has at most 4,300 digits: what Python writes and reads."""

Path = tuple[str | int, ...]

_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_WINDOW = 1 << 20
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse(text: bytes | str) -> Any:
    """The value of one JSON text. RecordError: not_json, invalid_utf8, duplicate_key, too_deep,
    too_many_values, lone_surrogate."""
    unpaired = isinstance(text, str) and _SURROGATE.search(text) is not None
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecordError(
                f"invalid UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start} of the record "
                f"({error.reason}). Convert the file to UTF-8",
                reason="invalid_utf8",
            ) from None
    if len(text) > 2 * MAX_VALUES:
        _refuse_too_many_values(text)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 12) : error.pos + 12]
        raise RecordError(f"not JSON: {error.msg} at character {error.pos}, near {near!r}", reason="not_json") from None
    except RecursionError:
        raise _too_deep() from None
    except RecordError:  # a ValueError too
        raise
    except ValueError as error:  # int() refuses more than a few thousand digits
        raise RecordError(f"not JSON that can be used: {error}", reason="not_json") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise _too_deep()
    if "\\ud" in text or "\\uD" in text or unpaired:
        refuse_lone_surrogates(value)
    return value


def depth(value: Any) -> int:
    """Levels of lists and dicts inside each other; 0 for a string or a number. Iterative, so any depth is measured."""
    level = 0
    here = [value] if isinstance(value, list | dict) else []
    while here:
        level += 1
        below: list[Any] = []
        for container in here:
            entries = container.values() if isinstance(container, dict) else container
            below += [entry for entry in entries if isinstance(entry, list | dict)]
        here = below
    return level


def refuse_lone_surrogates(value: Any) -> None:
    """RecordError lone_surrogate, naming the path, if any string or key holds half of a surrogate pair."""
    todo: list[tuple[Path, Any]] = [((), value)]
    while todo:
        path, entry = todo.pop()
        if isinstance(entry, str):
            found = _SURROGATE.search(entry)
            if found:
                raise RecordError(
                    f"{json_path(path)} holds the lone surrogate \\u{ord(found[0]):04x} at character {found.start()}: "
                    "half of a character, which no tokenizer can encode. Repair the data where it was made",
                    reason="lone_surrogate",
                )
        elif isinstance(entry, dict):
            for key, below in entry.items():
                todo += [((*path, "(key)"), key), ((*path, key), below)]
        elif isinstance(entry, list):
            todo += [((*path, index), below) for index, below in enumerate(entry)]


def refuse_foreign(value: Any, path: Path = ()) -> None:
    """RecordError not_json, naming the path, unless everything inside is a JSON value (a tuple counts as a list).

    Templates print any other type somehow, and json.dumps turns some into others; too_deep also ends a cycle.
    """
    todo: list[tuple[Path, Any]] = [(path, value)]
    while todo:
        here, entry = todo.pop()
        if len(here) > MAX_DEPTH + len(path):
            raise _too_deep()
        if isinstance(entry, dict):
            for key, below in entry.items():
                if not isinstance(key, str):
                    raise RecordError(f"{json_path(here)} has the key {key!r}, which is no string", reason="not_json")
                todo.append(((*here, key), below))
        elif isinstance(entry, list | tuple):
            todo += [((*here, index), below) for index, below in enumerate(entry)]
        elif isinstance(entry, float) and not math.isfinite(entry):
            raise RecordError(f"{json_path(here)} is {entry}, which is no JSON number", reason="not_json")
        elif isinstance(entry, int) and entry.bit_length() > _INTEGER_BITS:
            raise RecordError(
                f"{json_path(here)} is an integer of {entry.bit_length():,} bits, more than can be written and read "
                f"again ({_INTEGER_BITS:,}). Make it a string",
                reason="not_json",
            )
        elif entry is not None and not isinstance(entry, str | int | float):
            raise RecordError(
                f"{json_path(here)} is a {type(entry).__module__}.{type(entry).__name__}, which is no JSON value. "
                "Convert it (for example with .tolist(), .isoformat() or str), or leave it out",
                reason="not_json",
            )


def json_path(path: Path) -> str:
    """The path as people write it: ("messages", 3, "content") is $.messages[3].content."""
    text = "$"
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}"
        else:
            text += f"[{json.dumps(step)}]"
    return text


def _refuse_too_many_values(text: str) -> None:
    if sum(map(text.count, "{[,")) <= MAX_VALUES:
        return
    count = at = 0
    window = ""
    while count <= MAX_VALUES and at < len(text):  # what stands inside strings is text
        more = max(_WINDOW, len(window))
        window = _STRING.sub("", window + text[at : at + more])
        at += more
        outside, quote, unfinished = window.partition('"')
        count += sum(map(outside.count, "{[,"))
        window = quote + unfinished
    if count > MAX_VALUES:
        raise RecordError(f"it holds more than {MAX_VALUES:,} values. Is it one record?", reason="too_many_values")


def _too_deep() -> RecordError:
    return RecordError(f"nested deeper than {MAX_DEPTH} levels", reason="too_deep")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise RecordError(
            f"the key {twice!r} stands twice in one object, so one of its values would be lost. Keep one",
            reason="duplicate_key",
        )
    return value


def _constant(name: str) -> NoReturn:
    raise RecordError(f"not JSON: {name} is no JSON number. Write null or a number", reason="not_json")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RecordError(f"the number {text[:40]} is too large: it would become infinity", reason="not_json")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)
