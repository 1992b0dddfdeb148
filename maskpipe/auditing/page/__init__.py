"""The report as one HTML file that needs nothing else: no network, no fonts, no images, one script.

    Report + Specimens ─▶ html()      sections.py: what it says · charts.py: inline SVG · twin.py: tokens as JSON,
                                      which viewer.js draws · page.css: light and dark
    Report             ─▶ fragment()  a static piece for notebooks

The data may be hostile: outside the JSON every string goes through `markup.text`, inside it `twin.to_script`, and the
viewer makes text nodes only. A Content-Security-Policy allows this one script and style sheet, by hash, and no request.
The same report gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maskpipe.auditing.page import sections
from maskpipe.auditing.page.files import GENERATOR
from maskpipe.auditing.page.markup import text
from maskpipe.auditing.page.twin import to_script, twin

if TYPE_CHECKING:
    from maskpipe.auditing.report import Report
    from maskpipe.auditing.specimens import Specimen

_HERE = Path(__file__).parent


def html(report: Report, specimens: Sequence[Specimen] = (), missing: Sequence[int] = ()) -> str:
    """The whole page, in characters that UTF-8 can hold. `missing`: rows worth reading that are not among the
    specimens, which the page says."""
    style, script = _asset("page.css"), _asset("viewer.js")
    policy = (
        f"default-src 'none'; style-src '{_source(style)}'; script-src '{_source(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = to_script(twin(specimens))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="{GENERATOR}">
<title>{text(report.name)}: audit</title>
<style>{style}</style>
</head>
<body>
{sections.header(report)}
{sections.navigation(report)}
<main>
{sections.summary(report)}
{sections.findings(report, specimens)}
{sections.tokens(report, specimens, missing)}
{sections.coverage(report)}
</main>
{sections.footer(report)}
<script type="application/json" id="specimens">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def fragment(report: Report) -> str:
    """Verdict, numbers and findings without scripts or a style sheet, for notebooks: what `_repr_html_` returns."""
    return sections.fragment(report)


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _source(content: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
