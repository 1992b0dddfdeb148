"""Makes the pictures of the documentation from the embedded chats.

python docs/make_picture.py

docs/explain.svg: what `maskpipe explain` shows. docs/report.webp: the page of `maskpipe audit --report`, for which
Chromium is needed.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

import maskpipe
from maskpipe import demo, demo_data, pipeline
from maskpipe.explain import explain, show
from maskpipe.job import encoder_of
from maskpipe.recipe import Recipe

ROW = 7


def main() -> None:
    explanation()
    report()


def explanation() -> None:
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    encoder = encoder_of(demo_data.tokenizer(), Recipe())
    show(explain(demo_data.chats(), ROW, encoder=encoder), console)
    svg = console.export_svg(title=f"maskpipe explain chats.jsonl --row {ROW}", unique_id="explain")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from the network
    Path(__file__).with_name("explain.svg").write_text(svg, encoding="utf-8")


def report() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests import browser

    if browser.CHROMIUM is None:
        print("docs/report.webp is as it was: it needs Chromium", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        out, file = Path(folder) / "demo", Path(folder) / "report.html"
        recipe = Recipe(sequence_length=demo.SEQUENCE_LENGTH)
        pipeline.prepare(demo_data.chats(), out, tokenizer=demo_data.tokenizer(), recipe=recipe, workers=0)
        found = maskpipe.audit(out)
        assert found.gallery is not None
        place = next(
            f"#row-{row.row}:{start + 64}"
            for row in found.gallery.specimens(found.findings)[0]
            for start, document in zip([0, *(each.end for each in row.documents)], row.documents, strict=False)
            if document.title.endswith(f" record {ROW}")
        )
        file.write_text(found.html(), encoding="utf-8")
        with browser.chromium(Path(folder) / "browser") as page:
            page.open(file, width=1180, height=1320, hash=place)
            page.run("new Promise(done => { scrollTo(0, 0); setTimeout(done, 300) })")
            data = page.call("Page.captureScreenshot", format="webp", quality=80)["data"]
    Path(__file__).with_name("report.webp").write_bytes(base64.b64decode(data))


if __name__ == "__main__":
    main()
