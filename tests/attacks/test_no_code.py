"""Data is never run: no pickle, eval, exec, shell or program in the package, and none while it works. Nothing deletes a
tree either."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layers import PACKAGE

FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "shutil", "pty",
    "code", "codeop", "runpy", "ctypes", "commands", "webbrowser",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
FORBIDDEN_ATTRIBUTES = {
    "system", "popen", "popen2", "spawnl", "spawnv", "spawnve", "spawnvp", "execv", "execve", "execvp", "execl",
    "posix_spawn", "rmtree", "removedirs", "Unpickler", "find_class", "unsafe_load", "full_load", "read_pickle",
    "to_pickle", "deserialize", "PyExtensionType", "load_module",
}  # fmt: skip
FORBIDDEN_TEXT = re.compile(
    r"shell\s*=\s*True|allow_pickle\s*=\s*True|trust_remote_code\s*=\s*True|weights_only\s*=\s*False"
)
FILES = sorted(PACKAGE.rglob("*.py"))


def found_in(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            found += [module] if module in FORBIDDEN_MODULES else []
            found += [name.name for name in node.names if name.name in FORBIDDEN_ATTRIBUTES]
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            found.append(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load":
            loader = ast.unparse(node.args[1]) if len(node.args) > 1 else "none"
            found += [] if loader == "_Loader" else ["yaml.load"]  # strict_yaml's, which is a SafeLoader
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_of_the_package_can_run_data(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert found_in(ast.parse(text)) == []
    assert FORBIDDEN_TEXT.search(text) is None


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from shutil import rmtree", "eval('1')", "import os; os.system('id')", "yaml.load(x, Loader)",
     "import subprocess as s", "f = exec", "builtins.__import__('os').popen('id')", "os.posix_spawn(a, b, c)"],
)  # fmt: skip
def test_the_test_above_would_find_it(text: str) -> None:
    assert found_in(ast.parse(text))


PROGRAM = """
import importlib, pkgutil, sys, tempfile, threading
from pathlib import Path
import maskpipe
from maskpipe import demo_data

for module in pkgutil.walk_packages(maskpipe.__path__, "maskpipe."):
    if not module.name.endswith("__main__") and ".data" not in module.name and ".losses" not in module.name:
        importlib.import_module(module.name)

FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen",
             "pty.spawn", "code.__new__", "marshal.loads", "ctypes.dlopen", "shutil.rmtree", "socket.connect")
seen = []

def importing():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

def hook(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], str):
        return  # a Unix socket: how multiprocessing asks for a worker
    if event in FORBIDDEN and not importing():
        seen.append((event, str(arguments)[:200]))
    if event == "exec" and arguments[0].co_filename != "<template>" and not importing():
        seen.append((event, arguments[0].co_filename))  # a chat template runs in Jinja2's sandbox; nothing else may

sys.addaudithook(hook)
scratch = Path(sys.argv[1])
chats = scratch / "chats.jsonl"
chats.write_bytes(b"\\n".join(demo_data.chats().read_bytes().split(b"\\n")[:-1:6]))
for workers in (0, 2):
    out = scratch / f"out{workers}"
    maskpipe.prepare(chats, out, tokenizer=demo_data.tokenizer(), workers=workers, proof=3)
    dataset = maskpipe.open(out)
    assert sum(len(document) for document in dataset.documents()) == dataset.manifest.totals.n_tokens
    dataset.verify()
print(*seen, sep="\\n")
"""


def test_preparing_and_reading_run_nothing_that_the_data_brought(tmp_path: Path) -> None:
    """Under an audit hook in the process that a person starts, with no worker process and with two. (A worker process
    unpickles the tasks that this one sends it: that is multiprocessing, and no data of others.)"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
