"""Makes docs/explain.svg, the picture of the README: what `maskpipe explain` shows, as SVG.

python docs/make_picture.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from maskpipe import demo_data, pipeline
from maskpipe.explain import explain, show
from maskpipe.recipe import Recipe

ROW = 7


def main() -> None:
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    encoder = pipeline.encoder_of(demo_data.tokenizer(), Recipe())
    show(explain(demo_data.chats(), ROW, encoder=encoder), console)
    svg = console.export_svg(title=f"maskpipe explain chats.jsonl --row {ROW}", unique_id="explain")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from the network
    Path(__file__).with_name("explain.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
