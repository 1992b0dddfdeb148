"""The origin-tracking str is a str: the same text for every operation, and each character keeps its own origin.

Every character of the tracked texts is unique, so the text itself says where each of its characters must have come
from; white space and markup between them come as literal text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateSyntaxError
from markupsafe import Markup

from maskpipe.errors import TemplateError
from maskpipe.template import origin
from maskpipe.template.origin import Tracked, TrackedBool, TrackedFloat, TrackedInt, concat, origins_of, plain, track
from maskpipe.template.render import Engine, wrap

LETTERS = [chr(code) for code in range(0x20000, 0x20020)]

literals = st.text(alphabet=" \n\t<>/|ab%{}'\"\\&é", max_size=4)


@st.composite
def tracked(draw: st.DrawFn) -> str:
    """Literal text and pieces of two leaves, whose characters are LETTERS; leaf 0 has the first half of them."""
    parts: list[str] = []
    for kind in draw(st.lists(st.integers(0, 2), max_size=6)):
        if kind == 2:
            parts.append(draw(literals))
            continue
        leaf = track("".join(LETTERS[kind * 16 : kind * 16 + 16]), kind)
        start = draw(st.integers(0, 15))
        parts.append(leaf[start : draw(st.integers(start, 16))])
    return concat(parts)


def exact(text: Any) -> bool:
    """Is each unique character said to come from its own place, and no other character from anywhere else?"""
    said: dict[int, tuple[int, int]] = {}
    for start, stop, source, first, last in origins_of(text):
        assert 0 <= start < stop <= len(text)
        if source >= 0 and stop - start == last - first:
            said.update({at: (source, first + at - start) for at in range(start, stop)})
    want = {at: divmod(LETTERS.index(char), 16) for at, char in enumerate(plain(text)) if char in LETTERS}
    return {at: said.get(at) for at in want} == want


indices = st.integers(-20, 20)
maybe = st.none() | indices
separators = st.text(alphabet=" \n<a" + LETTERS[3] + LETTERS[20], min_size=1, max_size=2)

OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[st.SearchStrategy[Any], ...]]] = {
    "slice": (lambda s, a, b, c: s[a:b:c], (maybe, maybe, st.sampled_from([None, 1, 2, -1, -3]))),
    "strip": (lambda s, chars: s.strip(chars), (st.none() | separators,)),
    "lstrip": (lambda s, chars: s.lstrip(chars), (st.none() | separators,)),
    "rstrip": (lambda s, chars: s.rstrip(chars), (st.none() | separators,)),
    "split": (lambda s, sep, n: s.split(sep, n), (st.none() | separators, st.integers(-1, 3))),
    "rsplit": (lambda s, sep, n: s.rsplit(sep, n), (st.none() | separators, st.integers(-1, 3))),
    "splitlines": (lambda s, keep: s.splitlines(keep), (st.booleans(),)),
    "partition": (lambda s, sep: s.partition(sep), (separators,)),
    "rpartition": (lambda s, sep: s.rpartition(sep), (separators,)),
    "replace": (lambda s, a, b, n: s.replace(a, b, n), (literals, literals, st.integers(-1, 3))),
    "removeprefix": (lambda s, a: s.removeprefix(a), (separators,)),
    "removesuffix": (lambda s, a: s.removesuffix(a), (separators,)),
    "upper": (lambda s: s.upper(), ()),
    "title": (lambda s: s.title(), ()),
    "capitalize": (lambda s: s.capitalize(), ()),
    "swapcase": (lambda s: s.swapcase(), ()),
    "add": (lambda s, t: s + t, (literals,)),
    "radd": (lambda s, t: t + s, (literals,)),
    "times": (lambda s, n: s * n, (st.integers(0, 3),)),
    "iterate": (lambda s: list(s), ()),
    "zfill": (lambda s, n: s.zfill(n), (st.integers(0, 9),)),
    "ljust": (lambda s, n: s.ljust(n), (st.integers(0, 40),)),
    "rjust": (lambda s, n: s.rjust(n), (st.integers(0, 40),)),
    "expandtabs": (lambda s: s.expandtabs(), ()),
    "in a template": (lambda s: track_format(s) if isinstance(s, Tracked) else f"<{s} {s}>", ()),
    "percent": (lambda s: origin.make("<%s %5d>", ()) % (s, 7), ()),
}


def track_format(text: str) -> str:
    return origin.make("<{} {x}>", ()).format(text, x=text)


@given(st.data(), tracked(), st.sampled_from(sorted(OPERATIONS)))
def test_every_operation_of_str_gives_the_same_text_and_keeps_origins(
    data: st.DataObject, text: str, name: str
) -> None:
    function, arguments = OPERATIONS[name]
    given_arguments = [data.draw(strategy) for strategy in arguments]
    got, want = function(text, *given_arguments), function(plain(text), *given_arguments)
    assert got == want
    for piece in got if isinstance(got, list | tuple) else [got]:
        assert exact(piece), name


@given(st.data(), st.lists(tracked(), max_size=4), tracked())
def test_replacing_joining_and_formatting_with_tracked_text_keeps_origins(
    data: st.DataObject, parts: list[str], separator: str
) -> None:
    joined = origin.join(separator, parts)
    assert joined == plain(separator).join(map(plain, parts))
    assert exact(joined)
    for part in parts:
        template = data.draw(st.sampled_from(["%s", "<%s>", "%%%s %s", "%(a)s"]))
        values: Any = {"a": part} if "(" in template else tuple([part] * template.replace("%%", "").count("%s"))
        text = origin.formatted(lambda text, args: text % args, template, values)
        untracked = {"a": plain(part)} if "(" in template else tuple(map(plain, values))
        assert text == template % untracked
        assert exact(text)
        replaced = origin.make("x-y-x", ()).replace("x", part)
        assert replaced == "x-y-x".replace("x", plain(part))
        assert exact(replaced)


scalars = (
    tracked()
    | st.integers(-(10**12), 10**12).map(TrackedInt)
    | st.floats(allow_nan=True).map(TrackedFloat)
    | st.booleans().map(TrackedBool)
    | st.none()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tracked(), inner, max_size=3), max_leaves=8
)


def untracked(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, TrackedBool):
        return bool(value)
    if isinstance(value, TrackedInt):
        return int(value)
    if isinstance(value, TrackedFloat):
        return float(value)
    if isinstance(value, list):
        return [untracked(entry) for entry in value]
    if isinstance(value, dict):
        return {untracked(key): untracked(entry) for key, entry in value.items()}
    return value


def numbered(value: Any) -> Any:
    """Gives each number a leaf of its own, from 100 on."""
    count = iter(range(100, 1000))

    def walk(value: Any) -> None:
        if isinstance(value, TrackedInt | TrackedFloat | TrackedBool):
            value._origin = next(count)
        for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(entry)

    walk(value)
    return value


@given(
    values.map(numbered),
    st.booleans(),
    st.sampled_from([None, 0, 2, "\t"]),
    st.sampled_from([None, (",", ":")]),
    st.booleans(),
)
def test_json_and_repr_of_tracked_values_are_pythons_own(
    value: Any, ascii_only: bool, indent: Any, spacing: Any, sort_keys: bool
) -> None:
    options = {"ensure_ascii": ascii_only, "indent": indent, "separators": spacing, "sort_keys": sort_keys}
    text = origin.to_json(value, **options)
    assert text == json.dumps(untracked(value), **options)
    assert ascii_only or exact(text)
    assert origin.to_text(value) == str(untracked(value))
    assert exact(origin.to_text(value))
    shown = {source for _, _, source, *_ in origins_of(text) if source >= 100}
    assert shown == {entry._origin for entry in numbers(value)}


def numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [number for entry in value.values() for number in numbers(entry)]
    if isinstance(value, list):
        return [number for entry in value for number in numbers(entry)]
    return [value] if isinstance(value, TrackedInt | TrackedFloat | TrackedBool) else []


SAFE_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda safe, text: safe + text,
    "radd": lambda safe, text: text + safe,
    "twice": lambda safe, text: safe + text + safe,
    "percent": lambda safe, text: safe.replace("%", "") * 1 + text,
    "format": lambda safe, text: (safe.replace("%", "") + "%s")[-2:] % (text,),
    "join": lambda safe, text: safe.join([text, safe, text]),
    "replace": lambda safe, text: safe.replace("a", text),
    "strip then add": lambda safe, text: safe.strip() + text,
    "split then add": lambda safe, text: safe.split("a")[-1] + text,
    "slice then add": lambda safe, text: safe[1:] + text,
    "times": lambda safe, text: safe * 2,
}


@given(tracked(), tracked(), st.sampled_from(sorted(SAFE_OPERATIONS)))
def test_text_marked_safe_escapes_what_is_added_as_markup_does(safe: str, text: str, name: str) -> None:
    operation = SAFE_OPERATIONS[name]
    got = operation(origin.safe(safe), text)
    assert got == str(operation(Markup(plain(safe)), plain(text)))
    assert exact(got)


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", "'lit'", "m.role"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} ~ {pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} + {pair[1]})"),
        st.tuples(inner, st.sampled_from(["upper", "trim", "string", "title", "capitalize", "list | join('-')"])).map(
            lambda pair: f"({pair[0]} | {pair[1]})"
        ),
        inner.map(lambda e: f"({e} | replace('a', b))"),
        inner.map(lambda e: f"({e} | tojson)"),
        inner.map(lambda e: f"({e} | indent(2))"),
        inner.map(lambda e: f"({e}).split(' ')[0]"),
        inner.map(lambda e: f"({e})[::-1]"),
        inner.map(lambda e: f"('%s.' | format({e}))"),
        inner.map(lambda e: f"('%s-%s' % ({e}, 1))"),
        inner.map(lambda e: f"'<{{}}>'.format({e})"),
        inner.map(lambda e: f"({e} if a else b)"),
        inner.map(lambda e: f"(['x', {e}] | join(b))"),
        inner.map(lambda e: f"('<i>' | safe + {e})"),
        inner.map(lambda e: f"wrap({e})"),
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(EXPRESSIONS, st.text(alphabet=[*LETTERS, " ", "\n", "&"], max_size=8), st.booleans())
def test_random_expressions_print_what_plain_jinja_prints(expression: str, content: str, block: bool) -> None:
    body = f"{{% set x %}}{{{{ {expression} }}}}{{% endset %}}{{{{ x }}}}" if block else f"{{{{ {expression} }}}}"
    source = (
        "{% macro wrap(x) %}[{{ x }}]{% endmacro %}{% for m in messages %}{% set a = m.content %}{% set b = m.name %}"
        + body
        + "{% endfor %}"
    )
    messages = [{"role": "user", "content": "".join(LETTERS[:3]) + content, "name": "".join(LETTERS[16:20])}]
    try:
        engine = Engine(source, special_tokens={})
        text = engine.plain(messages)
    except (TemplateError, TemplateSyntaxError):
        return
    traced = engine.trace(wrap(messages))
    assert traced.text == text
    assert "".join(text[start:stop] for start, stop, *_ in traced.origins) == text
    for start, stop, leaf, first, last in traced.origins:
        if leaf >= 0 and stop - start == last - first:
            source_text = traced.leaves[leaf].text[first:last]
            assert text[start:stop].casefold() == source_text.casefold()
