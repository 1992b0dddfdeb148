"""Builds the C++ core (maskpipe._core) from csrc/. Metadata lives in pyproject.toml.

MASKPIPE_SANITIZE=1  AddressSanitizer and UBSan (run the tests with `pytest -s`, else the report is swallowed)
MASKPIPE_DEBUG=1     no optimisation, bounds-checked std::span
"""

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

SANITIZE = os.environ.get("MASKPIPE_SANITIZE") == "1"
DEBUG = SANITIZE or os.environ.get("MASKPIPE_DEBUG") == "1"

compile_args = ["-Wall", "-Wextra"]
link_args = []
if SANITIZE:
    compile_args += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    link_args += ["-fsanitize=address,undefined"]
compile_args += ["-O1", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"] if DEBUG else ["-O3"]

core = Pybind11Extension(
    "maskpipe._core",
    sources=sorted(str(path) for path in Path("csrc").glob("*.cpp")),  # sorted: reproducible builds
    depends=sorted(str(path) for path in Path("csrc").glob("**/*.h")),  # a change rebuilds; ships in the sdist
    cxx_std=20,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

# The default rule recompiles everything: naive_recompile keeps a stale binary when only a header changed.
with ParallelCompile("MASKPIPE_BUILD_JOBS", default=0):
    setup(ext_modules=[core])
