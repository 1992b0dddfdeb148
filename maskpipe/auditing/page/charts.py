"""Charts as inline SVG: colours come from the page's style sheet, so that they follow light and dark.

Each is a string; the numbers can be read in it without a pointer (labels) and with one (titles).
"""

from __future__ import annotations

from collections.abc import Sequence

from maskpipe.auditing.page.markup import text

WIDTH, HEIGHT = 420, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 26, 30


def figure(title: str, svg: str, note: str = "") -> str:
    """A chart with its title and, below, what to read from it."""
    caption = f"<figcaption>{text(title)}</figcaption>"
    return f"<figure>{caption}{svg}{f'<p>{text(note)}</p>' if note else ''}</figure>"


def histogram(
    counts: Sequence[int],
    ticks: Sequence[tuple[float, str]],
    names: Sequence[str],
    *,
    what: str,
    band: tuple[float, float] | None = None,
    band_name: str = "",
    mark: float | None = None,
    mark_name: str = "",
    axis: str = "",
) -> str:
    """Columns of equal width. Positions of ticks, band and mark run from 0 (left) to 1 (right); `names` say what
    each column stands for, `what` what is counted; `band` is shaded behind them, `mark` is a line."""
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    top = _nice(max(counts, default=0))
    step = width / max(1, len(counts))
    out = []
    if band is not None:
        x, w = _LEFT + band[0] * width, (band[1] - band[0]) * width
        out.append(f'<rect class="band" x="{_n(x)}" y="{_TOP}" width="{_n(w)}" height="{height}"/>')
        out.append(f'<text class="soft mid" x="{_n(x + w / 2)}" y="10">{text(band_name)}</text>')
    out += _scale(top, height)
    for k, (n, name) in enumerate(zip(counts, names, strict=True)):
        if n:
            h = max(1.0, height * n / top)
            out.append(
                f'<rect class="bar" x="{_n(_LEFT + k * step + 0.5)}" y="{_n(_TOP + height - h)}" '
                f'width="{_n(max(0.6, step - 1))}" height="{_n(h)}">'
                f"<title>{text(name)}: {n:,} {text(what)}</title></rect>"
            )
    out.append(f'<line class="axis" x1="{_LEFT}" x2="{_LEFT + width}" y1="{_TOP + height}" y2="{_TOP + height}"/>')
    for place, label in ticks:
        x = _LEFT + place * width
        out.append(f'<text class="mid" x="{_n(x)}" y="{_TOP + height + 13}">{text(label)}</text>')
    if axis:
        out.append(f'<text class="soft mid" x="{_n(_LEFT + width / 2)}" y="{HEIGHT - 4}">{text(axis)}</text>')
    if mark is not None:
        x = _LEFT + mark * width
        side = "end" if mark > 0.6 else "start"
        shift = -4 if mark > 0.6 else 4
        out.append(f'<line class="mark" x1="{_n(x)}" x2="{_n(x)}" y1="{_TOP - 12}" y2="{_TOP + height}"/>')
        out.append(f'<text class="strong {side}" x="{_n(x + shift)}" y="{_TOP - 4}">{text(mark_name)}</text>')
    total = sum(counts)
    return _svg(out, HEIGHT, f"histogram of {total:,} {what}")


def columns(names: Sequence[str], wholes: Sequence[float], parts: Sequence[float], *, what: str, axis: str = "") -> str:
    """Pale columns of `wholes` with the `parts` of them solid inside."""
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    top = _nice(max(wholes, default=0))
    step = width / max(1, len(names))
    every = max(1, -(-len(names) // 12))
    out = _scale(top, height)
    for k, (name, whole, part) in enumerate(zip(names, wholes, parts, strict=True)):
        x, w = _LEFT + k * step + step * 0.08, max(0.6, step * 0.84)
        title = f"<title>{text(name)}: {part:,} of {whole:,} {text(what)}</title>"
        for value, name_of in ((whole, "pale"), (part, "bar")):
            h = height * value / top
            if value:
                out.append(
                    f'<rect class="{name_of}" x="{_n(x)}" y="{_n(_TOP + height - h)}" width="{_n(w)}" '
                    f'height="{_n(h)}">{title}</rect>'
                )
        if k % every == 0:
            out.append(f'<text class="mid" x="{_n(x + w / 2)}" y="{_TOP + height + 13}">{text(name)}</text>')
    out.append(f'<line class="axis" x1="{_LEFT}" x2="{_LEFT + width}" y1="{_TOP + height}" y2="{_TOP + height}"/>')
    if axis:
        out.append(f'<text class="soft mid" x="{_n(_LEFT + width / 2)}" y="{HEIGHT - 4}">{text(axis)}</text>')
    return _svg(out, HEIGHT, f"{what} by {axis or 'name'}")


def bars(entries: Sequence[tuple[str, str, float, float, str]], *, what: str, titled: bool = True) -> str:
    """Horizontal bars, one line each: (name, class of its colour, whole, part that is solid, words at its end).
    titled: a pointer is told the numbers."""
    label = max([48, *(12 + 6 * len(name) for name, *_ in entries)])
    words = max([40, *(12 + 6 * len(end) for *_, end in entries)])
    line = 20
    width = WIDTH - label - words
    top = max([whole for _, _, whole, _, _ in entries], default=0) or 1
    out = []
    for k, (name, kind, whole, part, end) in enumerate(entries):
        y = k * line + 3
        out.append(f'<text class="end" x="{label - 6}" y="{y + 11}">{text(name)}</text>')
        for value, solid in ((whole, "pale"), (part, "solid")):
            if value:
                w = max(1.0, width * value / top)
                title = f"<title>{text(name)}: {part:,} of {whole:,} {text(what)}</title>" if titled else ""
                out.append(
                    f'<rect class="{text(kind)} {solid}" x="{label}" y="{y}" width="{_n(w)}" height="14">{title}</rect>'
                )
        out.append(f'<text class="soft" x="{_n(label + width * whole / top + 6)}" y="{y + 11}">{text(end)}</text>')
    return _svg(out, len(entries) * line + 4, f"{what} by name")


def gauge(share: float, band: tuple[float, float] | None) -> str:
    """One line from 0 to 100 % with a band that is usual, where one is, and a mark where this is."""
    x, y, width = 4, 10, 152
    at = x + width * share
    said = ""
    if band is not None:
        lo, hi = (x + width * value for value in band)
        said = (
            f'<path class="axis" fill="none" d="M{_n(lo)} {y + 12}v4H{_n(hi)}v-4"/>'
            f'<text class="mid soft" x="{_n((lo + hi) / 2)}" y="39">'
            f"SFT: usually {100 * band[0]:.0f}-{100 * band[1]:.0f} %</text>"
        )
    return (
        f'<svg class="gauge" viewBox="0 0 160 40" role="img" aria-label="{100 * share:.1f} % of tokens are trained">'
        f'<rect class="pale" x="{x}" y="{y}" width="{width}" height="9" rx="4"/>'
        f'<rect class="bar" x="{x}" y="{y}" width="{_n(max(0.0, at - x))}" height="9" rx="4"/>'
        f'<line class="mark" x1="{_n(at)}" x2="{_n(at)}" y1="4" y2="{y + 12}"/>{said}</svg>'
    )


def _scale(top: float, height: int) -> list[str]:
    out = []
    for share in (0.5, 1.0):
        y = _TOP + height * (1 - share)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{_n(y)}" y2="{_n(y)}"/>')
        out.append(f'<text class="soft end" x="{_LEFT - 5}" y="{_n(y + 4)}">{_short(top * share)}</text>')
    return out


def _svg(parts: Sequence[str], height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'


def _nice(value: float) -> float:
    """The next of 2, 4, 10, 20, 40 … at or above a value: halves of it are whole."""
    step = 1.0
    while True:
        for factor in (2, 4, 6, 10):
            if factor * step >= value:
                return factor * step
        step *= 10


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _n(value: float) -> str:
    """A coordinate: two digits, none of them idle."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
