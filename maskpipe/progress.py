"""How far a preparation is, on stderr: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PLAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Seen:
    """What a preparation has done so far."""

    step: str
    """ "map" or "write"."""
    records: int
    rejected: int
    tokens: int
    bytes: int
    """Of the records mapped, as they were read."""
    found: int
    """Tasks that an earlier run had finished."""
    share: float | None
    """Of the sources' files that has been read, 0 to 1; None where their size is not known."""


def line_of(seen: Seen, seconds: float) -> str:
    """What a person wants to see after so many seconds."""
    parts = [
        f"{seen.records:,} record{'' if seen.records == 1 else 's'}",
        f"{seen.tokens:,} token{'' if seen.tokens == 1 else 's'}",
        f"{seen.bytes / 1e6 / max(seconds, 0.1):,.1f} MB/s",
    ]
    if seen.rejected:
        parts.append(f"{seen.rejected:,} rejected")
    if seen.found:
        parts.append(f"{seen.found:,} task{'' if seen.found == 1 else 's'} found finished")
    if seen.step == "write":
        parts.append("writing shards")
    elif seen.share is not None and 0 < seen.share < 1 and seconds >= 3:
        parts.append(f"{100 * seen.share:.0f} %, about {_span(seconds / seen.share - seconds)} left")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def shown() -> Iterator[Callable[[Seen], None] | None]:
    """What `prepare` may call as it goes on; None where progress is switched off."""
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == "1":
        yield None
        return
    begun = time.monotonic()
    if not sys.stderr.isatty():
        told = begun

        def tell(seen: Seen) -> None:
            nonlocal told
            if time.monotonic() - told >= PLAIN_SECONDS:
                told = time.monotonic()
                print(line_of(seen, told - begun), file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as line:
        task = line.add_task("reading")
        yield lambda seen: line.update(task, description=line_of(seen, time.monotonic() - begun))
