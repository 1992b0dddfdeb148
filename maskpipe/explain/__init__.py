"""explain: one conversation, token by token: whose each is, whether it gets loss, and why. For when a mask looks wrong.

    record ─▶ Explanation ─▶ text for a terminal, or JSON

    position  input token        true next token    in the loss   why
    4         "\\n"               "Hello"            yes           assistant content
    5         "Hello"            "<|im_end|>"       yes           stop token: the turn ends here
    6         "<|im_end|>"       "\\n"               no            template text after the turn's end

    why.py   facts ─▶ reasons        table.py   predictions        record.py   one record ─▶ Explanation
    text.py  what can be shown       terminal.py   an Explanation in a terminal

`reasons` is the one place that turns facts into reasons; everything that shows a reason asks it.
"""

from __future__ import annotations

from maskpipe.explain.record import Explanation, explain, explain_record
from maskpipe.explain.table import Prediction, PredictionTable, prediction_table
from maskpipe.explain.terminal import LONG, show
from maskpipe.explain.text import characters, token_texts, visible
from maskpipe.explain.why import WORDS, Why, reasons, verdict_words

__all__ = [
    "LONG", "WORDS", "Explanation", "Prediction", "PredictionTable", "Why", "characters", "explain", "explain_record",
    "prediction_table", "reasons", "show", "token_texts", "verdict_words", "visible",
]  # fmt: skip
