"""A process that has imported everything, made to fork: one preparation per line of JSON that it reads.

    {"source": FILE, "out": DIR, "workers": N, "control": FILE or null, "timeout": SECONDS}
    {"status": "made", "message": "", "seconds": 0.2, "orphans": 0}

status: made, refused (a MaskpipeError), failed (any other exception), killed, hung. Chunks, partitions and shards are
so small that a few records cross every seam.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import maskpipe
from maskpipe import demo_data, partitions
from maskpipe.errors import MaskpipeError
from maskpipe.recipe import Recipe
from maskpipe.sources import limits
from maskpipe.tokenizer import Tokenizer

RECIPE = Recipe(sequence_length=256, on_bad_record="reject")


def small_steps() -> None:
    """Chunks of a few records, partitions of one chunk, shards of one row."""
    limits.CHUNK_BYTES = 700
    partitions.PARTITION_TOKENS = 250
    partitions.PARTITION_SEQUENCES = 1
    Recipe.shard_bytes = 4 * 256  # type: ignore[assignment,method-assign]


def prepare(tokenizer: Tokenizer, request: dict[str, Any]) -> dict[str, str]:
    try:
        maskpipe.prepare(
            request["source"], request["out"], tokenizer=tokenizer, recipe=RECIPE, workers=request["workers"]
        )
    except MaskpipeError as error:
        return {"status": "refused", "message": f"{type(error).__name__}: {error}"}
    except Exception:
        return {"status": "failed", "message": traceback.format_exc()}
    return {"status": "made", "message": ""}


def serve(tokenizer: Tokenizer, request: dict[str, Any]) -> dict[str, Any]:
    begun = time.monotonic()
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(said)
        if request["control"] is not None:
            os.environ["MASKPIPE_FAULTS"] = request["control"]
        os.write(says, json.dumps(prepare(tokenizer, request)).encode())
        os._exit(0)
    os.close(says)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)
    answer: dict[str, Any] = {"status": "killed", "message": ""}
    deadline = begun + request["timeout"]
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            answer = {"status": "hung", "message": ""}
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
    with os.fdopen(said, "rb") as pipe:
        os.set_blocking(said, False)
        text = pipe.read()
    if text:
        answer = json.loads(text)
    answer["seconds"] = time.monotonic() - begun
    answer["orphans"] = orphans(child, request.get("grace", 10.0))
    return answer


def orphans(group: int, grace: float) -> int:
    """Processes of the job that are still there when it has ended and `grace` seconds have passed; they are killed."""
    deadline = time.monotonic() + grace
    while left := [
        process for process in map(int, filter(str.isdigit, os.listdir("/proc"))) if in_group(process, group)
    ]:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            return len(left)
        time.sleep(0.005)
    return 0


def in_group(process: int, group: int) -> bool:
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(after_name[2]) == group and after_name[0] != "Z"


def main() -> None:
    small_steps()
    tokenizer = Tokenizer.load(demo_data.tokenizer())
    with tempfile.TemporaryDirectory() as scratch:  # imports what pyarrow and others import late
        maskpipe.prepare(demo_data.chats(), Path(scratch) / "out", tokenizer=tokenizer, recipe=RECIPE, workers=0)
    for line in sys.stdin:
        print(json.dumps(serve(tokenizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
