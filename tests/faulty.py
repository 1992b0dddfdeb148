"""Map tasks that go wrong in a worker process when they come to a record with a certain word; workers import this."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskpipe.chat import Conversation, Text
from maskpipe.encoder import Begun, Encoder
from maskpipe.guard import Guard
from maskpipe.tasks import MapTask, run_map


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


def run_map_with_harm(encoder: Encoder, task: MapTask, guard: Guard) -> str:
    """A record that says WORD! does harm each time; one that says WORD? does it once, and a file then says so."""
    begin = encoder.begin

    def harmful(record: Conversation | Text) -> Begun:
        text = str(record)
        for word, harm in HARM.items():
            done = Path(task.directory).parent / f"{word}.done"
            if f"{word}!" in text or (f"{word}?" in text and not done.exists()):
                done.touch()
                harm()
        return begin(record)

    encoder.begin = harmful  # type: ignore[method-assign]
    try:
        return run_map(encoder, task, guard)
    finally:
        encoder.begin = begin  # type: ignore[method-assign]
