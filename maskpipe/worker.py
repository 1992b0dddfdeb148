"""A worker process: builds its own Encoder, then runs the tasks that come through the pipe, one at a time.

Answers are JSON, not pickles: what a template made a worker say cannot run code in the driver. They are small, so that
they fit the pipe and a worker that is stopped in the middle of one cannot hold the driver: results lie in commits.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import traceback
from collections.abc import MutableSequence
from multiprocessing.connection import Connection
from typing import Any

from maskpipe import errors
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, RecordError, TemplateError
from maskpipe.guard import START_BYTES, Guard, Limits
from maskpipe.recipe import Recipe
from maskpipe.tokenizer import Tokenizer


def work(
    connection: Connection,
    note: MutableSequence[int],
    files: dict[str, bytes],
    name: str,
    recipe: Recipe,
    limits: Limits,
) -> None:
    """Runs tasks until the driver closes the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver is interrupted, and ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core: threads inside would fight for it
    os.environ["RAYON_NUM_THREADS"] = "1"  # the same, for fastokens
    guard = Guard(limits, note)
    guard.start()
    encoder: Encoder | Exception
    try:
        encoder = Encoder(Tokenizer(files, name), recipe)
    except MemoryError:
        encoder = TemplateError(
            f"loading the tokenizer {name} and the chat template takes more than {START_BYTES >> 30} GiB"
        )
    except Exception as error:
        encoder = error
    guard.end()
    gc.collect()
    gc.freeze()  # what lives as long as the process is not looked through again
    gc.set_threshold(50_000, 20, 20)  # nothing of a record is in a cycle, but errors may be
    while True:
        try:
            function, task, condemned, one_by_one = connection.recv()
        except (EOFError, OSError):
            return
        guard.begin(condemned, one_by_one)
        try:
            if isinstance(encoder, Exception):
                raise encoder
            answer = {"result": function(encoder, task, guard)}
        except MemoryError:
            answer = {"fault": "out_of_memory", "row": guard.row}
        except Exception as error:
            answer = {"error": _described(error)}
        guard.end()
        gc.collect()  # few objects of the core hold much, so a count of objects would come to them late
        try:
            connection.send_bytes(json.dumps(answer).encode())
        except OSError:
            return
        if "fault" in answer:
            return  # an allocation that failed may have left anything half done


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, MaskpipeError):
        return {"kind": type(error).__name__, "text": str(error), "reason": getattr(error, "reason", None)}
    if isinstance(error, OSError) and error.errno is not None:
        return {"kind": "OSError", "errno": error.errno, "text": error.strerror, "filename": str(error.filename or "")}
    return {"kind": "", "text": "".join(traceback.format_exception(error))}


def raised(value: dict[str, Any]) -> Exception:
    """The error that a worker described."""
    if value["kind"] == "OSError":
        return OSError(value["errno"], value["text"], value["filename"] or None)
    if value["kind"] == "RecordError":
        return RecordError(value["text"], value["reason"])
    kind = getattr(errors, value["kind"], None) if value["kind"] else None
    if isinstance(kind, type) and issubclass(kind, MaskpipeError):
        return kind(value["text"])
    return RuntimeError(f"in a worker process:\n{value['text']}")
