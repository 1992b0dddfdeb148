"""Text of the data that a filter, method or operator builds anew is never the template's own text.

Else, where a recipe accepts lost content, a control token inside it would become a real one.
"""

from __future__ import annotations

import os
from pathlib import Path

import jinja2.filters
import pytest

import maskpipe
from maskpipe.chat import Conversation, read_record
from maskpipe.errors import MaskpipeError, TemplateError
from maskpipe.roles import Part
from maskpipe.template.render import Engine, Trace, wrap
from maskpipe.template.spans import spans_of

DEMO = Path(maskpipe.__file__).parent / "demo_data"
TOKEN = "<|done|>"
SPELLINGS = f"q{TOKEN}r &lt;|done|&gt; &#60;&#124;done&#124;&#62; %3C%7Cdone%7C%3E"
LONG = "MASKPIPE_LONG" in os.environ

VALUES = ("c", "[c]", "{'k': c}", "{c: 1}", "[c, m.name]", "[[c]]", "m", "[m]", "m.items()", "(c, 1)", "'%s!'", "c[1:]")
ARGUMENTS = ("", "(c)", "(2)", "('x', 'y')", "('d', c)", "(c, c)", "(3, true)", "('x')", "(width=9)", "(attribute='a')")
OWNERS = ("c", "'a|b'", "'%s'", "'{0:>30}'", "''", "'{0} {1}'", "'{a}'", "'{}'")
GIVEN = ("()", "(c)", "(30, c[:1])", "(['x', c])", "({97: c})", "('a', c)", "(a=c)", "({'a': c})", "(m)")

FILTERS = [
    f"{{{{ {value} | {name}{arguments} }}}}"
    for name in sorted(jinja2.filters.FILTERS)
    for value in (VALUES if LONG else VALUES[:3])
    for arguments in (ARGUMENTS if LONG else ARGUMENTS[:4])
]
METHODS = [
    f"{{{{ ({owner}).{name}{given} }}}}"
    for name in sorted(name for name in dir(str) if not name.startswith("_"))
    for owner in (OWNERS if LONG else OWNERS[:4])
    for given in (GIVEN if LONG else GIVEN[:5])
]
OTHERS = [
    *(f"{{{{ {value} }}}}" for value in VALUES),
    *(f"{{{{ {value} ~ '' }}}}" for value in VALUES),
    *(f"{{{{ '{spec}' % {value} }}}}" for spec in ("%s", "%20s", "%.9s", "%r", "%a", "%(k)s") for value in VALUES),
    "{{ m.values() | list }}",
    "{{ m.keys() }}",
    "{{ m.values() }}",
    "{{ dict(a=c) }}",
    "{{ dict(a=c).items() }}",
    "{{ dict.fromkeys([c]) }}",
    "{{ namespace(a=c) }}",
    "{{ '%s' % namespace(a=c) }}{{ [namespace(a=c)] }}{{ namespace(a=c) | pprint }}{{ [m.items()] | string }}",
    "{{ '{}'.format(namespace(a=c)) }}{{ '{0.a}'.format(namespace(a=c)) }}{{ '{}{}'.format(m.values(), 1) }}",
    "{{ 'a'.replace('a', m.values() | string) }}{{ [m.items()] | join(m.keys()) }}",
    "{{ cycler(c) }}",
    "{{ cycler(c).next() }}",
    "{{ joiner(c) }}",
    "{{ range(3) | map('string') | join(c) }}",
    "{{ strftime_now(c) }}",
    "{{ strftime_now('%Y' ~ c) }}",
    "{{ c.encode() }}",
    "{{ c.encode().decode() }}",
    "{{ c.encode('utf-16').decode('utf-16') }}",
    "{{ ''.join(c.encode().decode()) }}",
    "{{ [c] | map('pprint') | join }}",
    "{{ [c] | map('urlize') | first }}",
    "{{ (c | pprint)[1:-1] ~ '' }}",
    "{{ (c | pprint).strip('\\'') | upper | lower }}",
    "{{ (c | pprint) + (c | urlize) + 'x' }}",
    "{% filter pprint %}{{ c }}{% endfilter %}",
    "{% filter striptags %}{{ c }}{% endfilter %}",
    "{% set x %}{{ c | pprint }}{% endset %}{{ x }}",
    "{% set x = c | pprint %}{{ x[1:] }}{{ x | replace('q', c) }}",
    "{% macro f(x) %}{{ x | pprint }}{% endmacro %}{{ f(c) }}{{ f(c) | urlize }}",
    "{% call strftime_now(c) %}{% endcall %}",
    "{% for x in m.items() %}{{ x }}{% endfor %}",
    "{% for x in c | pprint %}{{ x }}{% endfor %}",
    "{{ '<{}>'.format(c.strip('<>')) }}",
    "{{ '{m[content]} {0.__class__}'.format(c, m=m) }}",
    "{{ '{0[content]}'.format(m) }}",
    "{{ 'abc'.translate({97: c}) }}",
    "{{ 'abc'.translate('abc'.maketrans('a', 'b')) ~ c.translate(c.maketrans('q', 'r')) }}",
    "{{ 'x'.join([c | pprint, c | urlize]) }}",
    "{{ c | pprint | safe }}{{ c | safe | pprint }}{{ c | e | striptags }}",
    "{{ c | tojson | pprint }}{{ [c] | tojson | tojson | striptags }}",
]


def made_by_the_template(trace: Trace) -> list[str]:
    """Control tokens in `trace` of which no character is known to come from data."""
    covered = [False] * len(trace.text)
    for span in spans_of(trace, []):
        if span.source is not None and span.part is not Part.SCAFFOLD:
            covered[span.start : span.end] = [True] * (span.end - span.start)
    found, at = [], trace.text.find(TOKEN)
    while at >= 0:
        if not any(covered[at : at + len(TOKEN)]):
            found.append(trace.text[max(0, at - 20) : at + 30])
        at = trace.text.find(TOKEN, at + 1)
    return found


def attack(template: str) -> tuple[int, int]:
    """(1 if it renders, 1 if it shows the token): no token may be said to be the template's own."""
    source = "{% for m in messages %}{% set c = m.content %}" + template + "{% endfor %}"
    message = {"role": "user", "content": SPELLINGS, "name": f"n{TOKEN}", "a": TOKEN, f"k{TOKEN}": 1}
    try:
        trace = Engine(source, special_tokens={}).trace(wrap([message]))
    except TemplateError:
        return 0, 0
    assert made_by_the_template(trace) == [], template
    return 1, TOKEN in trace.text


@pytest.mark.parametrize("group", [FILTERS, METHODS, OTHERS], ids=["filters", "methods", "others"])
def test_no_way_of_building_text_makes_data_the_templates_own(group: list[str]) -> None:
    rendered, shown = map(sum, zip(*map(attack, group), strict=True))
    print(f"{len(group):,} expressions, {rendered:,} render, {shown:,} of them show the control token")
    assert rendered > len(group) / 5
    assert shown > 25


def test_the_attack_sees_what_it_is_there_for() -> None:
    engine = Engine("{{ bos_token }}{% for m in messages %}{{ m.content }}<|done|>{% endfor %}", special_tokens={})
    assert len(made_by_the_template(engine.trace(wrap([{"role": "user", "content": TOKEN}])))) == 1


@pytest.mark.parametrize(
    "shown", ["m.content | pprint", "m.content | striptags | pprint", "[m.content, m.role] | pprint"]
)
def test_accepting_lost_content_makes_no_control_token_of_it(shown: str) -> None:
    """The way to real tokens: content_lost is counted, and the text that a filter printed is encoded as text."""
    tokenizer = maskpipe.Tokenizer.load(str(DEMO / "tokenizer"))
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'user' %}{{ " + shown + " }}{% else %}"
        "{{ m.content }}{% endif %}<|done|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    messages = [
        {"role": "user", "content": f"Hi {TOKEN} there &lt;|done|&gt;"},
        {"role": "assistant", "content": "Hello"},
    ]
    documents = []
    for policy in ("refuse", "count"):
        recipe = maskpipe.Recipe(chat_template=template, on_content_lost=policy)
        conversation = read_record({"messages": messages}, recipe)
        assert isinstance(conversation, Conversation)
        try:
            documents += maskpipe.encode(conversation, tokenizer, recipe)
        except MaskpipeError as error:
            assert policy == "refuse" and "loses content" in str(error)
    (document,) = documents
    done = tokenizer.encode(TOKEN).input_ids
    assert len(done) == 1
    assert list(document.input_ids).count(done[0]) == 2  # the template's own two
    assert tokenizer.decode([int(token) for token in document.input_ids]).count(TOKEN) == 3  # and one as text
