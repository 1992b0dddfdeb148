"""The sandbox with shortcuts prints what stock Jinja2 prints, and refuses what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest

from maskpipe.errors import TemplateError
from maskpipe.template.render import DEFAULT_CLOCK, Engine, wrap
from maskpipe.template.sandbox import ShortcutEnvironment, plain_environment
from tests.conversations import CHATS
from tests.corpus import chat_templates

OWN_TEMPLATES = sorted((Path(__file__).parent / "golden" / "templates").glob("*.jinja"))

VALUES: dict[str, Any] = {
    "text": "  A <b> é\n",
    "empty": "",
    "number": 3,
    "nothing": None,
    "yes": True,
    "items": [{"a": 1, "keys": 2, "_x": 3, "index": 4}, {}],
    "object": {"a": "x", "items": "y", "get": "z", "format": "f", "__class__": "c", "_private": "p", "strip": "s"},
}

PROBES = [
    # attributes: keys, attributes of dict, missing ones, forbidden ones
    *(f"{{{{ {name}.{key} }}}}" for name in VALUES for key in ("a", "items", "get", "strip", "index", "_private")),
    *(f"{{{{ {name}['{key}'] }}}}" for name in VALUES for key in ("a", "items", "strip", "__class__", "_private")),
    *(f"{{{{ {name}.{key} is defined }}}}" for name in VALUES for key in ("a", "keys", "missing", "__class__")),
    *(f"{{{{ {name}.__class__ }}}}" for name in VALUES),
    *(f"{{{{ {name}.__class__.__mro__ }}}}" for name in VALUES),
    *(f"{{{{ {name}.strip.__globals__ }}}}" for name in VALUES),
    *(f"{{{{ {name}.missing.deeper }}}}" for name in VALUES),
    # methods, on what has them, on what does not, and with arguments that do not fit
    *(f"{{{{ {name}.strip() }}}}" for name in VALUES),
    *(f"{{{{ {name}.split('b') }}}}" for name in VALUES),
    *(f"{{{{ {name}.startswith(number) }}}}" for name in VALUES),
    *(f"{{{{ {name}.upper('too', 'many') }}}}" for name in VALUES),
    *(f"{{{{ {name}.count('a') }}}}" for name in VALUES),
    *(f"{{{{ {name}.index('x') }}}}" for name in VALUES),
    *(f"{{{{ {name}.get('a') }}}}" for name in VALUES),
    *(f"{{{{ {name}.get('missing', text) }}}}" for name in VALUES),
    *(f"{{{{ {name}.keys() | list }}}}" for name in VALUES),
    *(f"{{{{ {name}.items() | list }}}}" for name in VALUES),
    "{{ text.strip(undefined_name) }}",
    "{{ undefined_name.strip() }}",
    "{{ text.strip().split('b')[-1].lstrip(' ').upper() }}",
    "{% macro m(x) %}{{ x.strip() }}{% endmacro %}{{ m(text) }}{{ m(nothing) }}",
    # what changes data, or escapes
    "{{ items.append(1) }}{{ items }}",
    "{{ items.pop() }}",
    "{{ object.update({'a': 1}) }}",
    "{{ object.clear() }}",
    "{{ ''.format.__class__ }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(text) }}",
    "{{ text.format_map({'a': 1}) }}",
    "{% set f = text.format %}{{ f.__self__ }}",
    "{{ range(1000000000) }}",
    "{{ self.__init__.__globals__ }}{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    # namespaces and loops
    "{% set ns = namespace(a=1, b=text, f=text.strip) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.b }}{{ ns.f() }}",
    "{% set ns = namespace(a=1) %}{{ ns.missing }}{{ ns.missing is defined }}{{ ns['a'] }}{{ ns._Namespace__attrs }}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set ns = namespace(object) %}{{ ns.a }}{{ ns.items }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "{% for x in items %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
    "{{ loop.previtem }}{{ loop.nextitem }}{{ loop.revindex }}{{ loop.depth }}{{ loop._iterable }}{% endfor %}",
    "{% set loop = object %}{{ loop.first is defined }}{{ loop.a }}{{ loop.index is defined }}",
    "{% for x in items recursive %}{{ loop.depth }}{% if loop.depth < 3 %}{{ loop([{}]) }}{% endif %}{% endfor %}",
    "{% for x in items if x.a %}{{ x.a }}{{ loop.last }}{% endfor %}",
    "{% for k, v in object.items() %}{{ k }}={{ v }} {% endfor %}",
    "{% for x in items %}{% set t = x.a %}{{ t }}{{ namespace(a=loop.index).a }}{% endfor %}",
    # the same name for what is computed and what it is computed from
    "{{ {'a': {'a': text}}.a.a.strip().strip() }}",
    "{{ items[0].a + items[0].keys if items[0].a else items[1].a }}",
]


def outcome(render: Any) -> tuple[str, str]:
    try:
        return "printed", render()
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("probe", PROBES)
def test_shortcuts_print_and_refuse_what_stock_jinja_does(probe: str) -> None:
    want = outcome(lambda: plain_environment(DEFAULT_CLOCK).from_string(probe).render(**VALUES))
    got = outcome(lambda: "".join(ShortcutEnvironment(DEFAULT_CLOCK).load(probe).pieces(dict(VALUES))))
    assert got == want
    assert "mappingproxy" not in got[1] and "<class" not in got[1].replace("<class 'jinja2", "")


def differences(engine: Engine) -> int:
    """How many renders of all chats were compared; each must be the same, or refused with the same words."""
    compared = 0
    for chat in CHATS.values():
        wrapped = wrap(chat.messages, tools=chat.tools, documents=chat.documents, kwargs=chat.kwargs)
        for prompt in (False, True):
            given = {"tools": chat.tools, "documents": chat.documents, "kwargs": chat.kwargs}
            texts = []
            for render in (
                lambda prompt=prompt, given=given, chat=chat: engine.plain(
                    chat.messages, add_generation_prompt=prompt, **given
                ),
                lambda prompt=prompt, wrapped=wrapped: engine.plain_of(wrapped, add_generation_prompt=prompt),
            ):
                try:
                    texts.append(render())
                except TemplateError as error:
                    texts.append(f"refused: {error}")
            assert texts[0] == texts[1]
            compared += not texts[0].startswith("refused")
    return compared


def test_shortcuts_render_our_own_templates_as_stock_jinja_does() -> None:
    engines = [Engine(path.read_text(encoding="utf-8"), special_tokens={"eos_token": "</s>"}) for path in OWN_TEMPLATES]
    assert sum(map(differences, engines)) > 300


@pytest.mark.shared
def test_shortcuts_render_every_template_of_the_corpus_as_stock_jinja_does(shared_data: Path) -> None:
    compared = sum(differences(entry.template.engine) for entry in chat_templates(shared_data))
    print(f"{compared:,} renders are the same")
    assert compared > 16_000


@pytest.mark.parametrize(
    "probe",
    [
        "'a' | center(99999999)",
        "'a' | indent(width=99999999)",
        "[1] | slice(99999999) | list",
        "[1] | batch(99999999, 0) | list",
        "'a' * 99999999",
    ],
)
def test_a_number_in_a_template_does_not_fill_the_memory(probe: str) -> None:
    engine = Engine("{{ " + probe + " }}", special_tokens={})
    for render in (lambda: engine.plain([]), lambda: engine.trace(wrap([])).text):
        with pytest.raises(TemplateError, match="would make"):
            render()
