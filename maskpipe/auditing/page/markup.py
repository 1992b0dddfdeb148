"""Text into HTML: the one way that strings of the data reach the page outside its JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from maskpipe.explain import visible


def text(value: object) -> str:
    """The value as HTML text, good in attributes too: nothing of it is markup, and controls, bidirectional marks and
    lone surrogates are spelled out."""
    return html.escape(visible(str(value)), quote=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, classes: str = "") -> str:
    """Rows of HTML cells below a row of HTML heads. All columns but the first are numbers; a head that begins with "<"
    is left-aligned instead."""
    left = [k == 0 or name.startswith("<") for k, name in enumerate(head)]
    names = [name.removeprefix("<") for name in head]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if is_left else ' class=n'}>{cell}</{tag}>" for cell, is_left in zip(cells, left, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table class="{classes}"><tr>{line(names, "th")}</tr>{body}</table></div>'


def percent(part: float, whole: float) -> str:
    """ "12.3 %", "0 %" for nothing, "-" of nothing."""
    if not whole:
        return "-"
    return f"{100 * part / whole:.1f} %" if part else "0 %"


def count(n: int, one: str, many: str = "") -> str:
    """ "1 row", "2 rows"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
