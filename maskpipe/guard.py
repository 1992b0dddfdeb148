"""What one record may cost, and the guard that a worker sets before it touches one.

The kernel keeps the limits, so they hold inside a regular expression, a C++ loop or a tokenizer: a timer of the CPU
time that the process uses (SIGPROF ends it), and RLIMIT_DATA (an allocation fails). CPU time, not the clock: what a
record costs does not depend on what else the machine does. What the guard notes in shared memory tells the supervisor
(pool.py) which record it was.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass

from maskpipe.errors import RecordError, UsageError

TASK_SECONDS = 3600.0
"""CPU seconds that a task may spend between records: writing a shard of 256 MiB takes a few."""
SEVERAL = -2
"""Noted in place of a row while records are handled together, of which any may be to blame."""
START_SECONDS = 300.0
START_BYTES = 2 << 30
"""What loading the tokenizer and the template may take; the largest known take a tenth."""


@dataclass(frozen=True)
class Limits:
    """What one record may cost before it is rejected. Limits of last resort, a thousand times what a chat costs."""

    seconds: float = 3.0
    """CPU seconds to parse, render and encode it..."""
    bytes_per_second: int = 8 << 10
    """...and one more for each so many bytes of the record."""
    memory: int = 384 << 20
    """Bytes of memory beside what the worker holds when the task begins..."""
    memory_per_byte: int = 64
    """...and so many more for each byte of the record."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.seconds <= TASK_SECONDS or self.memory < 16 << 20:
            raise UsageError(
                f"a record needs between 0.1 and {TASK_SECONDS:.0f} seconds and at least 16 MiB; got {self.seconds} "
                f"seconds and {self.memory / 2**20:.0f} MiB"
            )

    def seconds_for(self, size: int) -> float:
        """For a record of so many bytes."""
        return self.seconds + size / self.bytes_per_second

    def memory_for(self, size: int) -> int:
        return self.memory + size * self.memory_per_byte


class Guard:
    """Stands around each record that a worker processes.

        guard.begin(condemned)                   before a task: rows that must not be touched again → why
        refused = guard.enter(row, size)         before a record: a RecordError says not to touch it
        guard.leave()                            after it; whatever goes wrong now is not the record's fault
        guard.end()                              after the task

    Only if `one_by_one` is False may a path enter records that it handles later, several at once; it then says which
    with `blame`. When that fails, the task is run again with `one_by_one`, so that the one is told from the others.
    """

    def __init__(self, limits: Limits, note: MutableSequence[int]) -> None:
        self.limits = limits
        self.one_by_one = False
        self._note = note  # [0] row being processed or -1, [1] how many times that has changed
        self._condemned: Mapping[int, str] = {}
        self._memory = 0
        self._entered = -1
        note[0] = -1

    @property
    def row(self) -> int:
        """The row being processed, -1 for none, SEVERAL for one of several."""
        return self._note[0]

    @property
    def condemned(self) -> Mapping[int, str]:
        return self._condemned

    def start(self) -> None:
        """Before the tokenizer and the template are loaded."""
        signal.setitimer(signal.ITIMER_PROF, START_SECONDS)
        self._memory = START_BYTES
        _limit_memory(START_BYTES)

    def begin(self, condemned: Mapping[int, str], one_by_one: bool = False) -> None:
        self._condemned, self.one_by_one = condemned, one_by_one
        self._memory = 0
        signal.setitimer(signal.ITIMER_PROF, TASK_SECONDS)

    def enter(self, row: int, size: int) -> RecordError | None:
        """Notes the record and sets its limits. `size`: of the record as it was read, in bytes."""
        reason = self._condemned.get(row)
        if reason is not None:
            return RecordError(_MESSAGES[reason](self.limits, size), reason)
        self._note[1] += 1
        self._note[0] = self._entered = row
        signal.setitimer(signal.ITIMER_PROF, self.limits.seconds_for(size))
        wanted = self.limits.memory_for(size)
        if wanted > self._memory:
            self._memory = wanted
            _limit_memory(wanted)
        return None

    def blame(self, rows: Sequence[int] | None) -> None:
        """What is done next is done for these rows, or, with None, again for the one entered last."""
        self._note[0] = self._entered if rows is None or list(rows) == [self._entered] else SEVERAL

    def leave(self) -> None:
        self._note[0] = -1
        signal.setitimer(signal.ITIMER_PROF, TASK_SECONDS)

    def end(self) -> None:
        self._note[0] = -1
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self._memory:
            _limit_memory(None)


class _Unguarded(Guard):
    """Lets everything pass: for work in this process."""

    def __init__(self) -> None:
        super().__init__(Limits(), [-1, 0])

    def begin(self, condemned: Mapping[int, str], one_by_one: bool = False) -> None:
        """Nothing to set."""

    def enter(self, row: int, size: int) -> None:
        """Nothing to set."""

    def blame(self, rows: Sequence[int] | None) -> None:
        """Nobody asks."""

    def leave(self) -> None:
        """Nothing was set."""

    def end(self) -> None:
        """Nothing was set."""


UNGUARDED = _Unguarded()


_MESSAGES: dict[str, Callable[[Limits, int], str]] = {
    "timeout": lambda limits, size: (
        f"rendering and encoding it takes more than {limits.seconds_for(size):.1f} seconds. If the record is what it "
        "should be, raise --record-seconds"
    ),
    "out_of_memory": lambda limits, size: (
        f"rendering and encoding it takes more than {limits.memory_for(size) >> 20} MiB. If the record is what it "
        "should be, raise --record-mib"
    ),
    "crashed": lambda limits, size: (
        "the process that renders and encodes it ends each time it comes to this record. A library that runs out of "
        f"memory may do that: of a large record, try a --record-mib above {limits.memory >> 20}. Otherwise please "
        "report the record with its template"
    ),
}


def _limit_memory(more: int | None) -> None:
    """Lets the process allocate `more` bytes from now on; None: as many as it likes. Where the system does not count
    (not Linux), nothing is limited."""
    if not sys.platform.startswith("linux"):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = resource.RLIM_INFINITY if more is None else _data_bytes() + more
    if hard != resource.RLIM_INFINITY:
        limit = hard if limit == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: private writable memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
