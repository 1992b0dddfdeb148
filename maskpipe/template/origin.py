"""A str that remembers, for every character, where it came from: through slicing, joining, stripping, splitting,
replacing, case mapping and formatting.

    content = Tracked(" Hi ", origin 7)          ' Hi '   [0:4] <- 7[0:4]
    "<u>" + content.strip() + "</u>"             '<u>Hi</u>'   [3:5] <- 7[1:3]

An origin is (start, end, source, source_start, source_end): characters start..end of this string came from characters
source_start..source_end of the source. `source` >= 0 numbers a leaf of the input (render.py keeps the table); a
negative one is literal text of the template, tagged with the message the template's loop stood on (`scaffold`).
Characters no origin covers are literal text that has not been printed yet. Where a mapping is one to one, both sides
have the same length; an escape such as '\\n' keeps the range of the one character that it stands for. Half an escape
(one that is escaped again) has the empty range where that character begins: it says what it stands for, and not that it
shows it. Text that is made of data in a way that nobody can follow (`derived`) has the range from -1 to -1 of its leaf,
or the source UNKNOWN where several leaves went into it.

Python calls the reflected method of a str subclass first, and Jinja2 looks methods up on the object, so overriding
here is enough for everything but C code that joins strings itself; environment.py re-routes those places.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from operator import index
from typing import Any, SupportsIndex

Origin = tuple[int, int, int, int, int]
Origins = tuple[Origin, ...]


def scaffold(message: int) -> int:
    """The source number of literal template text printed while the loop stood on `message` (-1: on none)."""
    return -2 - message


UNKNOWN = -(1 << 40)
"""The source of text that several leaves went into, nobody knows how. render.py gives it a leaf of its own."""


def scaffold_message(source: int) -> int:
    """The message of a scaffold source number."""
    return -2 - source


class Tracked(str):
    """A str with origins. Create it with `track` or `make`; every operation of str gives what str gives."""

    __slots__ = ("_origins",)
    _origins: Origins

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise ValueError("encode() of a text of the data: what its bytes become could pass for the template's own text")

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return str.__repr__(plain(self))

    def __format__(self, spec: str) -> str:
        return str.__format__(plain(self), spec)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return (str, (plain(self),))

    # -- joining

    def __add__(self, other: str) -> str:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return concat([self] * index(times))

    __rmul__ = __mul__

    def join(self, parts: Iterable[str]) -> str:
        return join(self, parts)

    # -- parts of itself

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        size = len(self)
        if isinstance(key, slice):
            start, stop, step = key.indices(size)
            if step == 1:
                return cut(self, start, max(start, stop))
            return concat([cut(self, at, at + 1) for at in range(start, stop, step)])
        at = index(key)
        at = at + size if at < 0 else at
        if not 0 <= at < size:
            raise IndexError("string index out of range")
        return cut(self, at, at + 1)

    def __iter__(self) -> Iterator[str]:
        for at in range(len(self)):
            yield cut(self, at, at + 1)

    def lstrip(self, chars: str | None = None, /) -> str:
        return cut(self, len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return cut(self, 0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return cut(self, start, max(start, len(str.rstrip(self, chars))))

    def removeprefix(self, prefix: str, /) -> str:
        return cut(self, len(prefix), len(self)) if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return cut(self, 0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.rsplit(self, sep, maxsplit), sep)

    def _pieces(self, parts: list[str], sep: str | None) -> list[str]:
        out: list[str] = []
        at = 0
        for part in parts:
            if sep is None:
                at = str.find(self, part, at)
            out.append(cut(self, at, at + len(part)))
            at += len(part) + (len(sep) if sep else 0)
        return out

    def splitlines(self, keepends: bool = False) -> list[str]:
        out: list[str] = []
        at = 0
        for full, line in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            out.append(cut(self, at, at + len(line)))
            at += len(full)
        return out

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(str.rpartition(self, sep))

    def _three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        first, second = len(parts[0]), len(parts[0]) + len(parts[1])
        return cut(self, 0, first), cut(self, first, second), cut(self, second, len(self))

    # -- changed copies

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        left = index(count)
        out: list[str] = []
        if not old:  # str inserts `new` before every character and at the end
            for at in range(len(self)):
                if left != 0:
                    out.append(new)
                    left -= 1
                out.append(cut(self, at, at + 1))
            return concat([*out, new] if left != 0 else out)
        at = 0
        while left != 0:
            found = str.find(self, old, at)
            if found < 0:
                break
            out += (cut(self, at, found), new)
            at = found + len(old)
            left -= 1
        return concat([*out, cut(self, at, len(self))])

    def upper(self) -> str:
        return mapped(self, str.upper)

    def lower(self) -> str:
        return mapped(self, str.lower)

    def casefold(self) -> str:
        return mapped(self, str.casefold)

    def swapcase(self) -> str:
        return mapped(self, str.swapcase)

    def capitalize(self) -> str:
        return mapped(self, str.capitalize)

    def title(self) -> str:
        return mapped(self, str.title)

    def translate(self, table: Any, /) -> str:
        if has_origin(table):
            return str(derived(str.translate(plain(self), table), self, table))
        return mapped(self, lambda text: str.translate(text, table))

    def center(self, width: SupportsIndex, fill: str = " ", /) -> str:
        text = str.center(plain(self), width, fill)
        added = len(text) - len(self)
        left = added // 2 + (added & index(width) & 1)  # where str.center puts the odd one
        return concat((derived(text[:left], fill), self, derived(text[left + len(self) :], fill)))

    def ljust(self, width: SupportsIndex, fill: str = " ", /) -> str:
        return concat((self, derived(str.ljust(plain(self), width, fill)[len(self) :], fill)))

    def rjust(self, width: SupportsIndex, fill: str = " ", /) -> str:
        text = str.rjust(plain(self), width, fill)
        return concat((derived(text[: len(text) - len(self)], fill), self))

    def zfill(self, width: SupportsIndex, /) -> str:
        return aligned(str.zfill(plain(self), width), self)

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        return aligned(str.expandtabs(plain(self), tabsize), self)

    # -- formatting

    def __mod__(self, values: Any) -> str:
        return formatted(lambda text, args: str.__mod__(text, args), self, values)

    def __rmod__(self, template: str) -> str:
        return formatted(lambda text, args: str.__mod__(text, args), template, (self,))

    def format(self, *args: Any, **kwargs: Any) -> str:
        return formatted(lambda text, given: str.format(text, *given[0], **given[1]), self, (args, kwargs), 2)

    def format_map(self, mapping: Mapping[str, Any], /) -> str:  # type: ignore[override]
        return formatted(lambda text, given: str.format_map(text, given), self, dict(mapping))


class Safe(Tracked):
    """Text marked with Jinja2's `safe` filter: what is added to it gets HTML escapes, as markupsafe's Markup does."""

    __slots__ = ()

    def __html__(self) -> str:
        return self

    def __add__(self, other: Any) -> str:
        return safe(concat((self, escaped(other)))) if _can_join(other) else NotImplemented

    def __radd__(self, other: Any) -> str:
        return safe(concat((escaped(other), self))) if _can_join(other) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return safe(Tracked.__mul__(self, times))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return safe(Tracked.__mod__(self, escaped_arguments(values, 1)))

    def format(self, *args: Any, **kwargs: Any) -> str:
        given = escaped_arguments((args, kwargs), 2)
        return safe(Tracked.format(self, *given[0], **given[1]))

    def join(self, parts: Iterable[Any]) -> str:
        return safe(join(self, [escaped(part) for part in parts]))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return safe(Tracked.replace(self, old, escaped(new), count))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return safe(Tracked.__getitem__(self, key))

    def strip(self, chars: str | None = None, /) -> str:
        return safe(Tracked.strip(self, chars))

    def lstrip(self, chars: str | None = None, /) -> str:
        return safe(Tracked.lstrip(self, chars))

    def rstrip(self, chars: str | None = None, /) -> str:
        return safe(Tracked.rstrip(self, chars))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return [safe(part) for part in Tracked.split(self, sep, maxsplit)]

    def upper(self) -> str:
        return safe(Tracked.upper(self))

    def lower(self) -> str:
        return safe(Tracked.lower(self))

    def capitalize(self) -> str:
        return safe(Tracked.capitalize(self))


def safe(text: str) -> str:
    """`text` as Safe, with its origins."""
    out = Safe.__new__(Safe, plain(text))
    out._origins = origins_of(text)
    return out


def escaped(value: Any) -> str:
    """The text of a value with HTML escapes, unless it is marked safe; escapes keep the character they stand for."""
    text = to_text(value)
    if hasattr(value, "__html__"):
        return text
    return mapped(text, _escape) if isinstance(text, Tracked) else _escape(text)


def _escape(text: str) -> str:
    return html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _can_join(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "__html__")


def escaped_arguments(args: Any, depth: int) -> Any:
    """The arguments of a formatter (see `formatted`) with HTML escapes; numbers stay numbers."""
    return _each_argument(args, lambda value: value if isinstance(value, int | float) else escaped(value), depth)


class TrackedInt(int):
    """An int of the input; printing it gives tracked text."""

    _origin: int


class TrackedFloat(float):
    """A float of the input; printing it gives tracked text."""

    _origin: int


class TrackedBool(int):
    """A bool of the input (bool itself cannot be subclassed): compares, hashes and prints as one."""

    _origin: int

    def __str__(self) -> str:
        return "True" if self else "False"

    __repr__ = __str__


def make(text: str, origins: Origins) -> Tracked:
    """`text` with these origins, in order, not overlapping."""
    tracked = Tracked.__new__(Tracked, text)
    tracked._origins = origins
    return tracked


def track(text: str, source: int) -> Tracked:
    """`text` as the whole of leaf `source`."""
    return make(text, ((0, len(text), source, 0, len(text)),) if text else ())


def plain(text: str) -> str:
    """The same characters as an exact str."""
    return str.__str__(text)


def origins_of(value: Any) -> Origins:
    return value._origins if isinstance(value, Tracked) else ()


def concat(parts: Iterable[str]) -> str:
    """`"".join` that keeps origins; an exact str when no part has any."""
    parts = list(parts)
    text = str.join("", parts)
    origins: list[Origin] = []
    at = 0
    for part in parts:
        if isinstance(part, Tracked):
            if at:
                origins.extend([(a + at, b + at, source, c, d) for a, b, source, c, d in part._origins])
            else:
                origins.extend(part._origins)
        at += len(part)
    return make(text, tuple(origins)) if origins else text


def join(separator: str, parts: Iterable[str]) -> str:
    """`separator.join` that keeps origins."""
    out: list[str] = []
    for number, part in enumerate(parts):
        if number and separator:
            out.append(separator)
        if not isinstance(part, str):
            raise TypeError(f"sequence item {number}: expected str instance, {type(part).__name__} found")
        out.append(part)
    return concat(out)


def cut(text: Tracked, start: int, stop: int) -> Tracked:
    """`text[start:stop]` for 0 <= start <= stop."""
    if start == 0 and stop >= len(text):
        return text
    out = []
    for a, b, source, c, d in text._origins:
        if b <= start:
            continue
        if a >= stop:
            break
        left, right = max(a, start), min(b, stop)
        if left >= right:
            continue
        if b - a == d - c:
            out.append((left - start, right - start, source, c + left - a, c + right - a))
        elif right - left == d - c:
            out.append((left - start, right - start, source, c, c))
        else:
            out.append((left - start, right - start, source, c, d))
    return make(str.__getitem__(text, slice(start, stop)), tuple(out))


def mapped(text: Tracked, function: Callable[[str], str]) -> str:
    """A per-character mapping such as upper(); characters that become several ('ﬁ' → 'FI') keep their one source."""
    whole = function(plain(text))
    if len(whole) == len(text):
        return make(whole, text._origins)
    sizes = [len(function(char)) for char in plain(text)]
    if sum(sizes) != len(whole):
        return aligned(whole, text)
    out = []
    at = 0
    for char, size in zip(text, sizes, strict=True):
        origin = origins_of(char)
        if origin and size:
            out.append((at, at + size, *origin[0][2:]))
        at += size
    return make(whole, tuple(out))


def aligned(result: str, *sources: str) -> str:
    """`result` with the origins of the characters of `sources` that appear in it in order: for the few functions
    (wrapping, stripping tags) whose output is their input with something added or taken out. Characters that do not
    appear in it, white space aside, are derived from the sources."""
    source = concat(sources)
    if not origins_of(source):
        return result
    out: list[str] = []
    at = 0
    text = plain(source)
    whole = result.find(text)
    if whole >= 0:
        return concat((result[:whole], source, result[whole + len(text) :]))
    for char in result:
        found = text.find(char, at)
        out.append(source[found] if found >= 0 else char if char.isspace() else derived(char, source))
        at = found + 1 if found >= 0 else at
    return concat(out)


def derived(result: Any, *values: Any) -> Any:
    """`result` as text that comes from the leaves inside `values`, nobody knows from which characters; what has origins
    already, or nothing to do with any leaf, stays as it is. Lists and tuples: each of their entries."""
    if isinstance(result, list | tuple):
        return type(result)([derived(entry, *values) for entry in result])
    if not isinstance(result, str) or isinstance(result, Tracked) or not result:
        return result
    sources = set(_sources(values))
    if not sources:
        return result
    return make(result, ((0, len(result), sources.pop() if len(sources) == 1 else UNKNOWN, -1, -1),))


def _sources(value: Any) -> Iterator[int]:
    """The leaves inside a value."""
    if isinstance(value, Tracked):
        yield from (entry[2] for entry in value._origins if entry[2] >= 0 or entry[2] == UNKNOWN)
    elif isinstance(value, TrackedInt | TrackedFloat | TrackedBool):
        yield value._origin
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _sources(key)
            yield from _sources(entry)
    elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
        for entry in value:
            yield from _sources(entry)
    elif has_origin(value):
        yield UNKNOWN


_FIRST_STAND_IN = 0x10F000


def formatted(function: Callable[[str, Any], str], template: str, args: Any, depth: int = 1) -> str:
    """A C-level formatter, run twice: once for the text, once with one-character stand-ins for the tracked arguments,
    which are then put back. Where the two disagree (a width counts characters), the text is aligned instead.

    `args` are the arguments for `%` (depth 1), or (positional, named) ones for `format` (depth 2).
    """
    values: dict[str, str] = {}

    def stand_in(value: Any) -> Any:
        if not has_origin(value):
            return value
        char = chr(_FIRST_STAND_IN + len(values))
        values[char] = to_text(value)
        return char

    text = function(plain(template), _each_argument(args, _untracked, depth))
    swapped = _each_argument(args, stand_in, depth)
    if chr(_FIRST_STAND_IN) in text or origins_of(template):
        return aligned(text, template, *values.values())
    try:
        pieces = re.split("([\U0010f000-\U0010fffd])", function(plain(template), swapped))
        keys = [key for key in _keys(args, depth) if isinstance(key, Tracked)]
        spliced = concat([values[piece] if piece in values else _between(piece, keys) for piece in pieces])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        spliced = ""
    return spliced if spliced == text else aligned(text, *values.values())


def _between(text: str, keys: list[Tracked]) -> str:
    """What a formatter wrote between the values: a mapping that is shown as it is brings its keys along."""
    found = [key for key in keys if repr(plain(key))[1:-1] in text]
    return str(derived(text, found)) if found else text


def _keys(args: Any, depth: int) -> Iterator[Any]:
    """The keys of the mappings among the arguments of a formatter."""
    if isinstance(args, dict):
        yield from args
        args = tuple(args.values())
    if isinstance(args, tuple) and depth:
        for entry in args:
            yield from _keys(entry, depth - 1)


def _each_argument(args: Any, function: Callable[[Any], Any], depth: int) -> Any:
    """The arguments of a formatter with `function` applied to each."""
    if depth == 0:
        return function(args)
    if isinstance(args, tuple):
        return tuple(_each_argument(entry, function, depth - 1) for entry in args)
    if isinstance(args, dict):
        return {
            plain(key) if isinstance(key, str) else key: _each_argument(entry, function, depth - 1)
            for key, entry in args.items()
        }
    return function(args)


def _untracked(value: Any) -> Any:
    """The value as Python's own formatters print it."""
    if isinstance(value, Tracked):
        return plain(value)
    if isinstance(value, TrackedBool):
        return bool(value)
    if isinstance(value, tuple | list):
        return type(value)(_untracked(entry) for entry in value)
    if isinstance(value, dict):
        return {_untracked(key): _untracked(entry) for key, entry in value.items()}
    return value


# -- text of values that are not strings


def has_origin(value: Any) -> bool:
    """Is anything inside `value` tracked, or may it be (in a view of an object, a namespace, what is no plain data)?"""
    if isinstance(value, Tracked | TrackedInt | TrackedFloat | TrackedBool):
        return True
    if isinstance(value, dict):
        return any(has_origin(key) or has_origin(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return any(has_origin(entry) for entry in value)
    return type(value) not in _HOLD_NOTHING and not isinstance(value, str)


def to_text(value: Any) -> str:
    """`str(value)` that keeps origins, inside containers too."""
    if isinstance(value, str):
        return value
    if isinstance(value, TrackedInt | TrackedFloat | TrackedBool):
        return track(_number_text(value), value._origin)
    if isinstance(value, dict | list | tuple) and has_origin(value):
        return to_repr(value)
    if type(value) in _HOLD_NOTHING or isinstance(value, dict | list | tuple):
        return str(value)
    return _unknown(str(value))


def _unknown(text: str) -> str:
    """The text of a value of which nobody knows what it holds."""
    return make(text, ((0, len(text), UNKNOWN, -1, -1),)) if text else text


_HOLD_NOTHING = frozenset((int, float, bool, complex, type(None), range))


def _number_text(value: TrackedInt | TrackedFloat | TrackedBool) -> str:
    if isinstance(value, TrackedBool):
        return "True" if value else "False"
    return int.__repr__(value) if isinstance(value, TrackedInt) else float.__repr__(value)


def to_repr(value: Any) -> str:
    """`repr(value)` that keeps origins."""
    if isinstance(value, Tracked):
        text = repr(plain(value))
        quote = text[0]  # repr picks it by the whole string

        def escape(char: str) -> str:
            if char in "'\"":
                return "\\" + char if char == quote else char
            return repr(char)[1:-1]

        return concat((quote, _escaped(value, text[1:-1], _REPR_ESCAPES, escape), quote))
    if isinstance(value, TrackedInt | TrackedFloat | TrackedBool):
        return to_text(value)
    if isinstance(value, dict):
        entries: list[str] = []
        for key, entry in value.items():
            entries += (", ", to_repr(key), ": ", to_repr(entry)) if entries else (to_repr(key), ": ", to_repr(entry))
        return concat(("{", *entries, "}"))
    if isinstance(value, list | tuple):
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        return concat((opening, join(", ", [to_repr(entry) for entry in value]), closing))
    return _unknown(repr(value)) if has_origin(value) else repr(value)


_REPR_ESCAPES = re.compile(r"['\"\\]|[^ -~]")
_JSON_ESCAPES = re.compile(r'["\\\x00-\x1f]')
_JSON_ASCII_ESCAPES = re.compile(r'["\\]|[^ -~]')


def _escaped(text: Tracked, whole: str, candidates: re.Pattern[str], escape: Callable[[str], str]) -> str:
    """`whole`, the escaped form of `text`, where an escape keeps the source character that it stands for."""
    if len(whole) == len(text):
        return make(whole, text._origins)
    out: list[str] = []
    done = 0
    for match in candidates.finditer(plain(text)):
        char = match.group()
        replacement = escape(char)
        if replacement != char:
            at = match.start()
            origin = cut(text, at, at + 1)._origins
            out.append(cut(text, done, at))
            out.append(make(replacement, ((0, len(replacement), *origin[0][2:]),)) if origin else replacement)
            done = at + 1
    out.append(cut(text, done, len(text)))
    return concat(out)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """`json.dumps` with transformers' defaults that keeps origins: the `tojson` filter of chat templates."""
    if not has_origin(value):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return concat(_JsonWriter(ensure_ascii, indent, separators, sort_keys).write(value, 0))


class _JsonWriter:
    """What `json.dumps` writes under these options, in pieces that keep origins."""

    def __init__(self, ensure_ascii: bool, indent: Any, separators: Any, sort_keys: bool) -> None:
        self._ensure_ascii = ensure_ascii
        self._escapes = _JSON_ASCII_ESCAPES if ensure_ascii else _JSON_ESCAPES
        usual = (",", ": ") if indent is not None else (", ", ": ")
        self._item_separator: str
        self._key_separator: str
        self._item_separator, self._key_separator = separators or usual
        self._step = " " * indent if isinstance(indent, int) else indent
        self._sort_keys = sort_keys

    def write(self, value: Any, level: int) -> Iterator[str]:
        if not isinstance(value, dict | list | tuple) or not value:
            yield self._scalar(value)
            return
        opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
        line = "" if self._step is None else "\n" + self._step * (level + 1)
        yield opening
        entries: list[tuple[Any, Any]] = (
            list(value.items()) if isinstance(value, dict) else [(None, entry) for entry in value]
        )
        if isinstance(value, dict) and self._sort_keys:
            entries.sort(key=lambda entry: entry[0])
        for number, (key, entry) in enumerate(entries):
            yield (self._item_separator if number else "") + line
            if isinstance(value, dict):
                yield self._key(key)
                yield self._key_separator
            yield from self.write(entry, level + 1)
        if self._step is not None:
            yield "\n" + self._step * level
        yield closing

    def _scalar(self, value: Any) -> str:
        if isinstance(value, Tracked):
            return concat(('"', _escaped(value, self._escape(plain(value)), self._escapes, self._escape), '"'))
        if isinstance(value, TrackedBool):
            return track("true" if value else "false", value._origin)
        if isinstance(value, TrackedInt | TrackedFloat):
            return track(json.dumps(value), value._origin)
        return json.dumps(value, ensure_ascii=self._ensure_ascii)

    def _key(self, key: Any) -> str:
        if isinstance(key, Tracked):
            return self._scalar(key)
        if isinstance(key, str):
            return json.dumps(key, ensure_ascii=self._ensure_ascii)
        return json.dumps({key: 0}).rpartition(": 0")[0][1:]  # json's own spelling of numbers, booleans, null as keys

    def _escape(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=self._ensure_ascii)[1:-1]
