"""Runs preparations under faults and judges what they leave: see Faults.

The watched directory is on a memory file system where there is one: what a power loss leaves is computed from the
shim's log of fsyncs, so the disk need not be slow.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import maskpipe
from maskpipe import demo_data
from maskpipe.errors import DatasetError

HERE = Path(__file__).resolve().parent
KINDS = ["count", "kill", "torn", "short", "no_space", "io_error", "stop"]  # enum kind in shim.c
_CONTROL = struct.Struct("=qqiiii512s512s512s")


@dataclass(frozen=True)
class Fault:
    """`kind` at the `point`-th call below the directory (1-based)."""

    kind: str
    point: int
    group: bool = True
    """Kill all processes of the job, or the caller alone."""
    deaf: bool = False
    """fsync does nothing."""
    power: str = ""
    """After the kill, drop what was not synced: "all" bytes and names; "bytes", so that names outlive their bytes;
    or "some" of both, by chance."""

    def __str__(self) -> str:
        return f"{(self.power and 'power loss, dropping ' + self.power) or self.kind} at call {self.point}"


@dataclass
class Outcome:
    status: str
    message: str
    calls: int
    fired: bool
    in_worker: bool
    """It was a worker that the fault met."""
    orphans: int
    seconds: float
    log: list[tuple[str, str]] = field(default_factory=list)
    """(call, path below the directory)."""


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def compile_shim(to: Path) -> Path:
    subprocess.run(
        [str(compiler()), "-O1", "-shared", "-fPIC", "-Wall", "-o", str(to), str(HERE / "shim.c")], check=True
    )
    return to


def small_source(path: Path, records: int = 10) -> Path:
    """The shortest demo chats and a line that is no JSON: some KiB, so a handful of chunks."""
    lines = sorted(demo_data.chats().read_text(encoding="utf-8").split("\n"), key=len)
    chosen = [line for line in lines if '"user"' in line][4 : 4 + records]
    path.write_text("\n".join([*chosen[:2], '{"messages": [', *chosen[2:]]) + "\n", encoding="utf-8")
    return path


class Faults:
    """A job to be disturbed: preparing a small dataset at `area/out`."""

    def __init__(self, scratch: Path, shim: Path, *, records: int = 10) -> None:
        self.scratch = scratch
        memory = Path("/dev/shm")
        where = memory if os.access(memory, os.W_OK) else scratch
        self._memory = Path(tempfile.mkdtemp(prefix="maskpipe-faults-", dir=where))
        self.area = self._memory / "area"
        self.out = self.area / "out"
        self.shadow = self._memory / "shadow"
        self.source = small_source(scratch / "chats.jsonl", records)
        environment = {**os.environ, "LD_PRELOAD": str(shim), "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("MASKPIPE_FAULTS", None)
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=HERE.parents[1],
        )
        self.clear()

    def close(self) -> None:
        assert self._zygote.stdin and self._zygote.stdout
        self._zygote.stdin.close()
        self._zygote.wait(timeout=60)
        self._zygote.stdout.close()
        shutil.rmtree(self._memory)

    def clear(self) -> None:
        for directory in (self.area, self.shadow):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        (self.shadow / f"d{self.area.stat().st_ino}").touch()  # the empty directory is on the disk

    def run(self, fault: Fault | None = None, *, workers: int = 0, timeout: float = 60.0) -> Outcome:
        """One preparation; with a fault, counting calls from 1, and what the power loss leaves if it is one."""
        control, log = self.scratch / "control", self.scratch / "log"
        log.unlink(missing_ok=True)
        if fault is not None:
            shadow = str(self.shadow) if fault.power else ""
            kind = "kill" if fault.power else fault.kind
            values = (0, fault.point, KINDS.index(kind), fault.group, fault.deaf, 0)
            paths = (str(self.area), shadow, str(log))
            control.write_bytes(_CONTROL.pack(*values, *(path.encode() for path in paths)))
        answer = self._ask(
            {
                "source": str(self.source),
                "out": str(self.out),
                "workers": workers,
                "control": None if fault is None else str(control),
                "timeout": timeout,
            }
        )
        calls = fired = 0
        if fault is not None:
            calls, *_, fired = _CONTROL.unpack(control.read_bytes())[:6]
            if fault.power and (fired or answer["status"] == "made"):
                lose_power(self.area, self.shadow, fault.power, fault.point)
        entries = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
        return Outcome(
            calls=calls,
            fired=bool(fired),
            in_worker=fired == 2,
            log=[(call, path.removeprefix(f"{self.area}/")) for _, _, call, path in entries],
            **answer,
        )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._zygote.stdin and self._zygote.stdout
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        answer: dict[str, Any] = json.loads(self._zygote.stdout.readline())
        return answer

    def commits(self) -> list[Path]:
        """The commit records of the unfinished preparation."""
        directory = self.area / "out.partial" / "commits"
        return sorted(directory.glob("*.json")) if directory.is_dir() else []

    def digest(self) -> str | None:
        """Of the dataset's files, verified whole; None when no dataset is there. AssertionError for anything else."""
        if not os.path.lexists(self.out / "manifest.json"):
            try:
                maskpipe.open(self.out)
            except DatasetError:
                return None
            raise AssertionError("a dataset opens that has no manifest")
        return digest(self.out)


def digest(out: Path) -> str:
    """SHA-256 over names and bytes of a dataset that verifies. run.json is not part of it."""
    maskpipe.open(out).verify()
    total = hashlib.sha256()
    for path in sorted(out.iterdir()):
        if path.name != "run.json" and not path.name.startswith("."):
            total.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return total.hexdigest()


def lose_power(area: Path, shadow: Path, drop: str, seed: int) -> None:
    """Makes `area` what a disk may hold after a power loss: of each file the bytes, and of each directory the names, of
    the last fsync."""
    chance = random.Random(seed)
    now: dict[int, tuple[str, bytes]] = {}  # inode → kind, bytes
    names: dict[int, dict[str, tuple[str, int]]] = {}  # directory → name → kind, inode

    def look(directory: Path, inode: int) -> None:
        names[inode] = {}
        for path in directory.iterdir():
            status = path.lstat()
            kind = "d" if path.is_dir() else "f"
            names[inode][path.name] = (kind, status.st_ino)
            if kind == "d":
                look(path, status.st_ino)
            else:
                now[status.st_ino] = (kind, path.read_bytes())

    root = area.stat().st_ino
    look(area, root)

    def content(inode: int) -> bytes:
        file = shadow / f"f{inode}"
        synced = file.read_bytes() if file.exists() else b""
        current = now.get(inode, ("f", synced))[1]
        if drop == "some" and current.startswith(synced):
            return current[: chance.randint(len(synced), len(current))]
        return synced

    def entries(inode: int) -> dict[str, tuple[str, int]]:
        current = names.get(inode, {})
        if drop == "bytes":
            return current
        file = shadow / f"d{inode}"
        lines = file.read_text().splitlines() if file.exists() else []
        synced = {line.split(" ", 1)[1]: (line[0], int(line[1:].split(" ", 1)[0])) for line in lines}
        if drop == "all":
            return synced
        both = sorted(synced.keys() | current.keys())
        chosen = {name: (current if chance.random() < 0.5 else synced).get(name) for name in both}
        return {name: entry for name, entry in chosen.items() if entry is not None}

    def build(directory: Path, inode: int, depth: int) -> None:
        directory.mkdir()
        for name, (kind, below) in entries(inode).items():
            if kind == "d" and depth < 8:
                build(directory / name, below, depth + 1)
            elif kind == "f":
                (directory / name).write_bytes(content(below))

    left = area.with_name("left")
    build(left, root, 0)
    shutil.rmtree(area)
    left.rename(area)
    for file in shadow.iterdir():
        file.unlink()
    (shadow / f"d{area.stat().st_ino}").touch()


@contextmanager
def job(scratch: Path, shim: Path, **options: Any) -> Iterator[Faults]:
    faults = Faults(scratch, shim, **options)
    try:
        yield faults
    finally:
        faults.close()
