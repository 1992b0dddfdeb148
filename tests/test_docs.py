"""What the documentation shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = re.compile(r"```python\n(.*?)```\s*```text\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("name", ["README.md"])
def test_examples_print_what_the_page_says(name: str, tmp_path: Path) -> None:
    examples = EXAMPLE.findall((ROOT / name).read_text(encoding="utf-8"))
    assert examples
    for code, output in examples:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == output


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_room_of_the_package_is_on_the_map() -> None:
    on_the_map = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for path in (ROOT / "maskpipe").iterdir():
        if path.suffix == ".py" and not path.name.startswith("_"):
            assert path.name in on_the_map, f"{path.name} is not in docs/ARCHITECTURE.md"
