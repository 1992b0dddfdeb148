"""Makes docs/three_stages.svg: which tokens get loss in three stages, and what examples/three_stages.py made of it.

python docs/make_three_stages.py             from docs/three_stages.json
python docs/make_three_stages.py RESULT      that file anew, from a run's OUT/result.json

The masks are those of `prepare` for one conversation; nothing in the picture is drawn by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from maskpipe import Recipe, Tokenizer, demo_data
from maskpipe.encoder import Encoder
from maskpipe.explain import explain_record, visible
from maskpipe.roles import Role
from maskpipe.shards.format import Branch

HERE = Path(__file__).parent
WIDTH, MARGIN, CHARACTER, LINE = 1000, 28, 7.3, 22
COLOURS = {Role.SYSTEM: "#8250df", Role.USER: "#0969da", Role.ASSISTANT: "#1a7f37", Role.TEMPLATE: "#57606a"}
REJECTED = "#cf222e"
HISTORY = [
    {"role": "system", "content": "You keep the lock."},
    {"role": "user", "content": "What does the Heron carry?"},
]
SENTENCE = [{"role": "assistant", "content": "The Heron carries grain."}]
WORD = [{"role": "assistant", "content": "Grain."}]
STAGES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("pretraining", "every token, how text goes on", {"messages": HISTORY + SENTENCE}, {"objective": "pretrain"}),
    (
        "SFT",
        "what the assistant would say, stop token included",
        {"messages": HISTORY + SENTENCE},
        {"objective": "sft"},
    ),
    (
        "preference tuning",
        "two answers against each other",
        {"prompt": HISTORY, "chosen": SENTENCE, "rejected": WORD},
        {"objective": "preference"},
    ),
]
CURVES = [("pretrain", "loss of all tokens", None), ("sft", "loss of the assistant's tokens", None),
          ("preference", "DPO loss", 0.693)]  # fmt: skip


def main(result: Path | None) -> None:
    kept = HERE / "three_stages.json"
    if result is not None:
        whole = json.loads(result.read_text(encoding="utf-8"))
        for stage in whole["stages"].values():
            for part in ("asked in chats", "only read"):
                stage[part].pop("said")
        whole["curves"] = {name: [[k, round(y, 4)] for k, y in curve] for name, curve in whole["curves"].items()}
        kept.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    (HERE / "three_stages.svg").write_text(drawn(json.loads(kept.read_text(encoding="utf-8"))), encoding="utf-8")


def drawn(result: dict[str, Any]) -> str:
    parts, y = [], 24.0
    tokenizer = Tokenizer.load(demo_data.tokenizer())
    for title, words, record, recipe in STAGES:
        explained = explain_record(record, "", 0, Encoder(tokenizer, Recipe(**recipe)))
        assert explained.refused is None
        y += 16
        parts.append(text(MARGIN, y, title, "title") + text(MARGIN + 9 * len(title) + 12, y, words, "note"))
        y += 8
        for document in explained.documents:
            tokens, y = mask(tokenizer, document, y)
            parts += tokens
            y += 8
        y += 10
    y += 18
    panel = (WIDTH - 2 * MARGIN - 2 * 36) / 3
    for k, (name, words, level) in enumerate(CURVES):
        parts += curve(MARGIN + k * (panel + 36), y, panel, 130, words, result["curves"][name], level)
    y += 130 + 46
    lines = list(said(result))
    for line in lines:
        parts.append(text(MARGIN, y, line, "note"))
        y += 18
    return SVG.format(width=WIDTH, height=round(y + 4), body="\n".join(parts))


def mask(tokenizer: Tokenizer, document: Any, y: float) -> tuple[list[str], float]:
    """Tokens as boxes, filled where they get loss; and where the next line begins."""
    out, x = [], float(MARGIN)
    for k, token in enumerate(document.input_ids):
        shown = visible(tokenizer.decode([token])).replace(" ", "·")
        size = CHARACTER * len(shown) + 8
        if x + size > WIDTH - MARGIN:
            x, y = float(MARGIN), y + LINE + 4
        role, trained = Role(document.role_ids[k]), bool(document.loss_mask[k])
        colour = REJECTED if trained and document.branch == Branch.REJECTED else COLOURS[role]
        style = f'fill="{colour}"' if trained else f'fill="#ffffff" stroke="{colour}" stroke-opacity="0.35"'
        out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{LINE}" rx="4" {style}/>')
        kind = "on" if trained else "off"
        out.append(f'<text x="{x + 4:.1f}" y="{y + 15:.1f}" class="{kind}">{escape(shown)}</text>')
        x += size + 3
    if document.branch:
        out.append(text(x + 8, y + 15, Branch(document.branch).name.lower(), "note"))
    return out, y + LINE


def curve(
    x: float, y: float, width: float, height: float, words: str, points: list[list[float]], level: float | None
) -> Iterator[str]:
    """A panel: loss over steps, from 0 up."""
    top = max(value for _, value in points) * 1.05
    last = points[-1][0] or 1
    places = [(x + width * k / last, y + height * (1 - value / top)) for k, value in points]
    yield text(x, y - 8, words, "note")
    yield f'<path d="M{x:.1f} {y:.1f}V{y + height:.1f}H{x + width:.1f}" class="axis"/>'
    if level is not None:
        at = y + height * (1 - level / top)
        yield f'<path d="M{x:.1f} {at:.1f}H{x + width:.1f}" class="level"/>' + text(
            x + width - 28, at - 4, "ln 2", "note"
        )
    yield f'<path d="M{" L".join(f"{a:.1f} {b:.1f}" for a, b in places)}" class="curve"/>'
    yield text(x + 4, y + height + 16, f"{len(points)} steps", "note")
    yield text_before(x + width, y + height + 16, f"ends at {points[-1][1]:.2f}")


def said(result: dict[str, Any]) -> Iterator[str]:
    """What the run measured, in words."""
    stages = result["stages"]
    losses = {name: stage["loss by role"] for name, stage in stages.items()}
    for role in ("assistant", "user"):
        path = " → ".join(f"{losses[name][role]:.2f}" for name in ("before", "pretrain", "sft", "preference"))
        yield f"loss of what the {role} says in other chats: {path}   (before, and after each stage)"
    asked, margin = stages["sft"]["asked in chats"], stages["preference"]
    yield (
        f"after SFT {asked['stopped']} of {asked['asked']} answers end with the stop token, {asked['right']} right; "
        f"DPO's margin on pairs about facts never asked before: 0 → {margin['margin']:+.2f}"
    )


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def text_before(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="note" text-anchor="end">{escape(words)}</text>'


SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>
text {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; font-size: 12px; }}
.title {{ font-size: 15px; font-weight: bold; fill: #1f2328; }}
.note {{ fill: #57606a; }} .on {{ fill: #ffffff; }} .off {{ fill: #8c959f; }}
.axis {{ fill: none; stroke: #d0d7de; }} .level {{ fill: none; stroke: #d0d7de; stroke-dasharray: 3 3; }}
.curve {{ fill: none; stroke: #1a7f37; stroke-width: 1.8; stroke-linejoin: round; }}
</style>
<rect width="100%" height="100%" fill="#ffffff"/>
{body}
</svg>
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
