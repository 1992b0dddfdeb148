"""_core.pyi, kept by hand, says exactly what the compiled module has: names, arguments, fields."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import WrapperDescriptorType

import pytest

from maskpipe import _core

STUB = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text(encoding="utf-8"))
FUNCTIONS = [node for node in STUB.body if isinstance(node, ast.FunctionDef)]
CLASSES = [node for node in STUB.body if isinstance(node, ast.ClassDef)]
TUPLES = [node for node in CLASSES if [base.id for base in node.bases if isinstance(base, ast.Name)] == ["NamedTuple"]]
OTHERS = [node for node in CLASSES if node not in TUPLES]
NAMED_TUPLES = [node for node in CLASSES if any(ast.unparse(base) == "NamedTuple" for base in node.bases)]
METHODS = [
    (node.name, method)
    for node in CLASSES
    if node not in NAMED_TUPLES
    for method in node.body
    if isinstance(method, ast.FunctionDef)
]
PUBLIC = sorted(name for name in vars(_core) if not name.startswith("_"))


def compiled_arguments(function: object) -> list[str]:
    # pybind11 keeps no signature object; a docstring begins with `name(a: object, b: int = 0) -> object`.
    line = (function.__doc__ or "").splitlines()[0]
    inner = re.fullmatch(r"\w+\((.*)\) -> .*", line)
    assert inner, line
    return re.findall(r"(?:^|, )(\w+):", inner[1])


def test_the_stub_names_everything_in_the_module_and_nothing_else() -> None:
    assert sorted({node.name for node in [*FUNCTIONS, *CLASSES]}) == PUBLIC


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda node: f"{node.name}:{node.lineno}")
def test_arguments_have_the_names_and_the_order_of_the_module(function: ast.FunctionDef) -> None:
    compiled = compiled_arguments(getattr(_core, function.name))
    assert [argument.arg for argument in function.args.args] == compiled


@pytest.mark.parametrize("stub", NAMED_TUPLES, ids=lambda node: node.name)
def test_named_tuples_have_the_fields_of_the_module(stub: ast.ClassDef) -> None:
    fields = [
        node.target.id for node in stub.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    compiled = getattr(_core, stub.name)
    assert tuple(fields) == compiled._fields
    assert (compiled.__module__, compiled.__name__) == ("maskpipe._core", stub.name)


@pytest.mark.parametrize("stub", [node for node in CLASSES if node not in NAMED_TUPLES], ids=lambda node: node.name)
def test_classes_have_the_methods_of_the_module(stub: ast.ClassDef) -> None:
    compiled = vars(getattr(_core, stub.name))
    no_constructor = isinstance(compiled.get("__init__"), WrapperDescriptorType)  # pybind11's own, which refuses
    public = {name for name in compiled if (name == "__init__" and not no_constructor) or not name.startswith("_")}
    assert {method.name for owner, method in METHODS if owner == stub.name} == public


@pytest.mark.parametrize(("owner", "method"), METHODS, ids=lambda value: getattr(value, "name", value))
def test_methods_have_the_arguments_of_the_module(owner: str, method: ast.FunctionDef) -> None:
    compiled = compiled_arguments(getattr(getattr(_core, owner), method.name))
    assert [argument.arg for argument in method.args.args] == compiled
