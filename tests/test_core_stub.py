"""_core.pyi, kept by hand, says exactly what the compiled module has: names, arguments, fields."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from maskpipe import _core

STUB = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text(encoding="utf-8"))
FUNCTIONS = [node for node in STUB.body if isinstance(node, ast.FunctionDef)]
CLASSES = [node for node in STUB.body if isinstance(node, ast.ClassDef)]
TUPLES = [node for node in CLASSES if [base.id for base in node.bases if isinstance(base, ast.Name)] == ["NamedTuple"]]
OTHERS = [node for node in CLASSES if node not in TUPLES]
PUBLIC = sorted(name for name in vars(_core) if not name.startswith("_"))


def test_the_stub_names_everything_in_the_module_and_nothing_else() -> None:
    assert sorted({node.name for node in [*FUNCTIONS, *CLASSES]}) == PUBLIC


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda node: f"{node.name}:{node.lineno}")
def test_arguments_have_the_names_and_the_order_of_the_module(function: ast.FunctionDef) -> None:
    # pybind11 keeps no signature object; the first line of a docstring is `name(a: object, b: int = 0) -> object`.
    line = getattr(_core, function.name).__doc__.splitlines()[0]
    inner = re.fullmatch(rf"{function.name}\((.*)\) -> .*", line)
    assert inner, line
    assert [argument.arg for argument in function.args.args] == re.findall(r"(?:^|, )(\w+):", inner[1])


@pytest.mark.parametrize("stub", OTHERS, ids=lambda node: node.name)
def test_classes_have_the_methods_of_the_module(stub: ast.ClassDef) -> None:
    compiled = getattr(_core, stub.name)
    methods = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert methods == {"__init__"} | {name for name in vars(compiled) if not name.startswith("_")}
    assert (compiled.__module__, compiled.__name__) == ("maskpipe._core", stub.name)


@pytest.mark.parametrize("stub", TUPLES, ids=lambda node: node.name)
def test_named_tuples_have_the_fields_of_the_module(stub: ast.ClassDef) -> None:
    fields = [
        node.target.id for node in stub.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    compiled = getattr(_core, stub.name)
    assert tuple(fields) == compiled._fields
    assert (compiled.__module__, compiled.__name__) == ("maskpipe._core", stub.name)
