"""Imports go only rightwards along the flow of the data, and nothing but data/ and losses/ knows torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "maskpipe"
LAYERS = [
    {"errors", "findings", "_core", "proof_texts"},
    {"commit", "durable", "roles", "strict_json", "strict_yaml"},
    {"document", "recipe", "demo_data"},
    {"chat", "policy"},
    {"sources", "template", "tokenizer"},
    {"backends", "encoder", "guard", "pack", "partitions"},
    {"fit", "partial", "pool", "progress", "rules", "shards", "worker"},
    {"digests", "remote"},
    {
        "summary",
        "card",
        "stats",
        "exports",
        "explain",
        "leftovers",
        "branches",
        "pairs",
        "keys",
        "records",
        "selection",
        "tasks",
        "usual",
    },
    {"derived"},
    {"job"},
    {"mapping"},
    {"pipeline", "ranks", "repack", "diff", "auditing", "trial"},
    {"merge"},
    {"cli", "__main__", "demo", "recipe_flags", "recipe_import", "recipes"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TORCH_ROOMS = {"data", "losses"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def runtime_imports(tree: ast.Module) -> set[str]:
    """Modules imported when the code runs: those under `if TYPE_CHECKING` are for readers and type checkers."""
    out: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "maskpipe":
            out |= {f"maskpipe.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out.add(node.module)
        nodes.extend(ast.iter_child_nodes(node))
    return out


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def test_every_room_has_a_place_in_the_flow() -> None:
    assert {room_of(path) for path in modules()} - TORCH_ROOMS <= set(LEVEL)


def test_nothing_imports_what_is_downstream_of_it() -> None:
    wrong = []
    for path in modules():
        room = room_of(path)
        for name in runtime_imports(ast.parse(path.read_text(encoding="utf-8"))):
            parts = name.split(".")
            if parts[0] != "maskpipe" or len(parts) < 2 or parts[1] == room:
                continue
            if LEVEL.get(parts[1], 0) > LEVEL.get(room, len(LAYERS)):
                wrong.append(f"{room} imports {parts[1]}, which is downstream of it")
    assert wrong == []


def test_only_data_and_losses_import_torch() -> None:
    for path in modules():
        if room_of(path) not in TORCH_ROOMS:
            names = runtime_imports(ast.parse(path.read_text(encoding="utf-8")))
            assert not {name.split(".")[0] for name in names} & {"torch", "transformers", "trl"}, path


def test_nothing_that_runs_data_as_code_or_deletes_trees() -> None:
    forbidden = {"eval", "exec", "system", "popen", "rmtree", "Unpickler"}
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = runtime_imports(tree)
        assert not {name.split(".")[0] for name in names} & {"pickle", "subprocess", "shutil", "marshal"}, path
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            assert name not in forbidden, f"{path.name}:{getattr(node, 'lineno', 0)} calls {name}"


def test_importing_maskpipe_and_preparing_imports_no_torch() -> None:
    program = (
        "import sys, maskpipe\n"
        "for name in maskpipe.__all__: getattr(maskpipe, name)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_importing_maskpipe_alone_imports_nothing_heavy() -> None:
    program = "import sys, maskpipe; assert not {'numpy', 'pyarrow', 'tokenizers', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
