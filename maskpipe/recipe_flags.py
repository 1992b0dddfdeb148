"""The recipe's fields as command line flags: made from the dataclass, so that a new field is a flag at once.

    --sequence-length 4096 --train-on assistant+-assistant.reasoning --map dialog=messages --template-arg a=false
      ─▶ RecipeFlags (None where nothing was said) ─▶ resolve(flags, recipe file) ─▶ Recipe

A flag goes before the recipe file, the file before the defaults. Mappings are merged key by key.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

from cyclopts import Group, Parameter

from maskpipe import recipe
from maskpipe.errors import UsageError
from maskpipe.recipe import Recipe

_PAIRS = {
    "chat_template_kwargs": ("--template-arg", "KEY=VALUE", "enable_thinking=false"),
    "control_tokens_allowed": ("--allow-control", "ROLE=TOKEN", "'assistant=<think>'"),
    "columns": ("--map", "OLD=NEW", "dialog=messages"),
    "roles": ("--map-role", "OLD=NEW", "human=user"),
    "source_caps": ("--source-cap", "SOURCE=N", "chats.jsonl=10000"),
    "source_weights": ("--source-weight", "SOURCE=W", "web.jsonl=0.25"),
}
"""Fields that are mappings: flag, form and an example of one entry."""

FLAGS = {name: f"{flag} {form}" for name, (flag, form, _) in _PAIRS.items()}
"""Keys whose flag has another name → that flag."""

_GROUP = Group("Recipe", help="What decides the bytes of the dataset. Every flag is a key of the recipe file too.")


def descriptions() -> dict[str, str]:
    """Field of Recipe → its docstring, on one line."""
    tree = ast.parse(Path(recipe.__file__).read_bytes())
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Recipe")
    out: dict[str, str] = {}
    name = ""
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            out[name] = " ".join(str(node.value.value).split())
            name = ""
    return out


def _flag(field: dataclasses.Field[Any], kind: Any, text: str) -> Any:
    if field.name in _PAIRS:
        flag, form, example = _PAIRS[field.name]
        text = f"{form}, such as {example}; may be repeated. {text}"
        return Annotated[list[str] | None, Parameter(name=flag, help=text, group=_GROUP, negative=())]
    shown: Any = field.default
    if get_origin(kind) is tuple:
        kind, shown = list[str], "+".join(shown)
        text = f"Joined by '+', or repeated. {text}"
    on_off = kind is bool
    return Annotated[
        kind | None,
        Parameter(
            help=text,
            group=_GROUP,
            show_default=str(shown) if shown is not None and not on_off else False,
            negative=None if on_off else (),
            allow_leading_hyphen=field.name == "train_on",
        ),
    ]


def _make() -> type:
    kinds, texts = get_type_hints(Recipe), descriptions()
    return dataclasses.make_dataclass(
        "RecipeFlags",
        [
            (field.name, _flag(field, kinds[field.name], texts[field.name]), dataclasses.field(default=None))
            for field in dataclasses.fields(Recipe)
        ],
        namespace={"__module__": __name__},
        kw_only=True,
        frozen=True,
    )


if TYPE_CHECKING:
    RecipeFlags = Any
else:
    RecipeFlags = _make()


def resolve(flags: RecipeFlags | None, path: Path | None = None, **defaults: Any) -> Recipe:
    """The recipe of a recipe file (None: `defaults`), with the flags that were given in place of its values.

    UsageError for a file that cannot be read, an unknown key or value, or an entry that is no KEY=VALUE.
    """
    values = dict(defaults) if path is None else Recipe.load(path).to_dict()
    for field in dataclasses.fields(Recipe):
        given = None if flags is None else getattr(flags, field.name)
        if given is None:
            continue
        if field.name in _PAIRS:
            given = {**values.get(field.name, {}), **_mapping(field.name, given)}
        elif field.name == "train_on":
            given = [word.strip() for entry in given for word in entry.split("+")]
        values[field.name] = given
    resolved = Recipe.from_dict(values, where="recipe" if path is None else str(path))
    from maskpipe.policy import Policy

    Policy.of(resolved)  # a selector that is none is said here, before anything is read
    return resolved


def _mapping(name: str, entries: list[str]) -> Mapping[str, Any]:
    flag, form, example = _PAIRS[name]
    out: dict[str, Any] = {}
    for entry in entries:
        key, equals, value = entry.rpartition("=") if name.startswith("source_") else entry.partition("=")
        if not key or not equals or not value:
            raise UsageError(f"{flag} {entry}: expected {form}, such as {flag} {example}")
        if name == "chat_template_kwargs":
            out[key] = _json_or_text(value)
        elif name.startswith("source_"):
            try:
                out[key] = int(value) if name == "source_caps" else float(value)
            except ValueError:
                raise UsageError(f"{flag} {entry}: {value!r} is no number") from None
        elif name == "control_tokens_allowed":
            out[key] = (*out.get(key, ()), value)
        else:
            out[key] = value
    return out


def _json_or_text(value: str) -> Any:
    """false, 3, null, ["a"] as JSON says; anything else is a string."""
    try:
        return json.loads(value)
    except ValueError:
        return value
