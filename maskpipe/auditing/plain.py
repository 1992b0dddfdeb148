"""Stock Jinja2 in transformers' setting, for the proof: what it prints, with fewer questions on the way.

The sandbox asks of every attribute whether it is safe, and of every callable whether it may be called. Where the type
of an object is exactly one of these it always answers yes, and the answer is given at once; whatever else comes along
is asked as ever. Nothing of a render is known here but its text.

    dict        an entry that is no attribute of dict, or nothing of that name
    list        an entry by number or slice
    str         its methods that only read
    loop, namespace()   what they hold of text, numbers and truth values
"""

from __future__ import annotations

from types import BuiltinMethodType
from typing import Any

from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maskpipe.template.sandbox import COMPUTED_LATE, OPTIONS, TemplateNamespace, set_up

_OF_DICT = frozenset(dir(dict))
_READS = frozenset(
    (
        *("startswith", "endswith", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition"),
        *("rpartition", "upper", "lower", "title", "capitalize", "find", "rfind", "index", "count", "replace"),
        *("isdigit", "isspace", "isalpha", "isalnum", "islower", "isupper", "removeprefix", "removesuffix"),
    )
)
_HARMLESS = frozenset((str, int, float, bool, type(None)))
_HOLDERS = frozenset((LoopContext, TemplateNamespace))


class Plain(ImmutableSandboxedEnvironment):
    """Prints and refuses what `plain_environment` does."""

    intercepted_binops = COMPUTED_LATE

    def __init__(self, clock: str) -> None:
        super().__init__(**OPTIONS)
        set_up(self, clock)

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict:
            if attribute not in _OF_DICT:
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        elif kind is str:
            if attribute in _READS:
                return getattr(obj, attribute)
        elif kind in _HOLDERS and not attribute.startswith("_"):
            value = getattr(obj, attribute, self)
            if type(value) in _HARMLESS:
                return value
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        kind, by = type(obj), type(argument)
        if kind is dict and by is str:
            if argument in obj:
                return obj[argument]
        elif kind is list and (by is slice or (by is int and -len(obj) <= argument < len(obj))):
            return obj[argument]
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if __obj is TemplateNamespace or (type(__obj) is BuiltinMethodType and type(__obj.__self__) is str):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)
