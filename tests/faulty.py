"""Map tasks that go wrong in a worker process when they come to a record with a certain word; workers import this."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskpipe import _core
from maskpipe.chat import Conversation, Text
from maskpipe.encoder import Begun, Encoder
from maskpipe.guard import Guard
from maskpipe.tasks import MapTask, run_map
from maskpipe.usual import UsualRecords


def _crash() -> None:
    ctypes.string_at(0)


def _exhaust() -> None:
    held = []
    while True:
        held.append(bytearray(32 << 20))


def _spin() -> None:
    while True:
        pass


HARM: dict[str, Callable[[], Any]] = {
    "ABORT": os.abort,
    "SEGFAULT": _crash,
    "EXIT": lambda: os._exit(3),
    "EXHAUST": _exhaust,
    "SPIN": _spin,
    "SLEEP": lambda: time.sleep(3600),
    "KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "STOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def _harm_by(text: str, task: MapTask) -> None:
    for word, harm in HARM.items():
        done = Path(task.directory).parent / f"{word}.done"
        if f"{word}!" in text or (f"{word}?" in text and not done.exists()):
            done.touch()
            harm()


def run_map_with_harm_in_the_tokenizer(encoder: Encoder, task: MapTask, guard: Guard) -> str:
    """The same, when its text is encoded, together with those of other records."""
    ids = encoder.ids

    def harmful(texts: list[str]) -> Any:
        for text in texts:
            _harm_by(text, task)
        return ids(texts)

    encoder.ids = harmful  # type: ignore[method-assign, assignment]
    try:
        return run_map(encoder, task, guard)
    finally:
        encoder.ids = ids  # type: ignore[method-assign]


def run_map_with_harm(encoder: Encoder, task: MapTask, guard: Guard) -> str:
    """A record that says WORD! does harm each time; one that says WORD? does it once, and a file then says so."""
    begin, read = encoder.begin, UsualRecords.read

    def harmful(record: Conversation | Text) -> Begun:
        _harm_by(str(record), task)
        return begin(record)

    def harmful_line(usual: UsualRecords, line: bytes) -> _core.Draft | None:
        _harm_by(line.decode(), task)
        return read(usual, line)

    encoder.begin = harmful  # type: ignore[method-assign]
    UsualRecords.read = harmful_line  # type: ignore[method-assign]
    try:
        return run_map(encoder, task, guard)
    finally:
        encoder.begin = begin  # type: ignore[method-assign]
        UsualRecords.read = read  # type: ignore[method-assign]
