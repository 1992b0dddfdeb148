"""What one YAML text says, as plain values: no tags, no aliases, no key twice, no depth without bound.

Aliases are what YAML bombs are made of: ten lines stand for a billion values. A recipe needs none.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH = 40
"""Levels of nesting; a recipe has three."""


class _Loader(yaml.SafeLoader):
    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read; write the value out",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        if self._level >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels")
        self._level += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._level -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for at, key in enumerate(keys):
            if key in keys[:at]:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice", problem_mark=node.value[at][0].start_mark
                )
        value: dict[Any, Any] = super().construct_mapping(node, deep)
        return value


def parse(text: str | bytes) -> Any:
    """The value of one YAML text. ValueError says in one line what is wrong and where."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())[:300]}") from None
