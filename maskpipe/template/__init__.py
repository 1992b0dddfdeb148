"""Chat templates: what the unmodified template prints, where every character comes from, what the model samples.

origin.py       a str that remembers where its characters came from
sandbox.py      Jinja2's sandbox as transformers sets it up: stock, and the same with shortcuts that change nothing
environment.py  the sandbox that tracks
render.py       input → Trace: text, and origins that cover it
sampled.py      the sampled rule, verified per turn; with turn.py, verbatim.py, headers.py, stops.py, habits.py,
                control.py and own_text.py (docs/ARCHITECTURE.md)
lost.py         what the template dropped
spans.py        Trace + turns → Spans, the public form
shadow.py       the independent proof: unique code points through plain Jinja2
"""

from maskpipe.template.spans import ChatTemplate, Rendered, Span

__all__ = ["ChatTemplate", "Rendered", "Span"]
