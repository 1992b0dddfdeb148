"""A pool of supervised worker processes; results come back in the order of the tasks.

One process per slot, with a pipe. A worker that dies, hangs or uses more than a record may costs one attempt of one
task: the task is run again in a new process, and the record that was being processed (guard.py) is refused when it is
to blame. So a hostile template or record, a stopped process or the system's out-of-memory killer costs one record at
most, and the bytes of all others are those of an undisturbed run.

    what ended the worker                         the record is refused
    its CPU timer (SIGPROF)                       at once: CPU time is the record's own           timeout
    an allocation over the limit                  when it happens twice                           out_of_memory
    a crash: any other signal, an exit code       when it happens twice                           crashed
    no CPU time and no next record for 20 s       when it happens twice                           timeout
    SIGKILL, or stopped for 5 s: from outside     when it happens three times                     crashed
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, UsageError
from maskpipe.guard import SEVERAL, UNGUARDED, Guard, Limits
from maskpipe.recipe import Recipe
from maskpipe.tokenizer import Tokenizer
from maskpipe.worker import raised, work

POLL_SECONDS = 0.25
STOPPED_SECONDS = 5.0
HUNG_SECONDS = 20.0
BLIND_FAULTS = 3
"""Times that a task may lose its worker without a record to blame."""
FAULTS = 20
"""Times that a task may lose its worker without a record being refused for it."""
CONDEMNED = 100
"""Records of one task that may be refused; more, and it is not the records."""
_STRIKES = {"timeout": 1, "out_of_memory": 2, "crashed": 2, "hung": 2, "killed": 3}
_REASONS = {"timeout": "timeout", "out_of_memory": "out_of_memory", "crashed": "crashed", "hung": "timeout",
            "killed": "crashed"}  # fmt: skip


class Task(Protocol):
    @property
    def name(self) -> str: ...


Function = Callable[[Encoder, Any, Guard], Any]
"""(encoder, task, guard) → a small result that JSON can hold. A module's own function: workers import it."""


@dataclass
class _Job:
    index: int
    task: Any
    condemned: dict[int, str] = field(default_factory=dict)
    strikes: Counter[tuple[int, str]] = field(default_factory=Counter)
    faults: int = 0
    blind: int = 0


class Pool:
    """Runs tasks in `workers` processes; with 0 in this one, unsupervised: no time or memory limit, for data and
    templates that one trusts."""

    def __init__(self, workers: int, tokenizer: Tokenizer, recipe: Recipe, limits: Limits | None = None) -> None:
        self.workers = workers
        self.attempts: Counter[str] = Counter()
        """Tasks begun, by kind; `found`: tasks that were finished before; `faults`: workers lost, by the cause."""
        self.found: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.busy: dict[str, float] = {}
        """Seconds that workers had a task, from sending it to hearing its answer, by kind; `span`: from the first task
        sent to the last answer. Two workers that always have one are busy for twice the span."""
        self.span: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._tokenizer = tokenizer
        self.recipe = recipe
        self.limits = limits or Limits()
        self._here: Encoder | None = None
        self._team: list[_Worker] = []

    def run(
        self, kind: str, function: Function, tasks: Iterable[Task], find: Callable[[Any], Any | None] = lambda _: None
    ) -> Iterator[tuple[Any, Any]]:
        """(task, its result) in the order given. A task for which `find` has a result is not run.

        MaskpipeError when a task cannot be finished though no record is to blame; else what the function raises, at
        its place in the order.
        """
        if not self.workers:
            yield from self._run_here(kind, function, tasks, find)
            return
        source = iter(tasks)
        ready: deque[_Job] = deque()
        done: dict[int, tuple[Any, Any]] = {}
        read = given = 0
        ended = False
        while True:
            while not ended and not ready:
                task = next(source, None)
                if task is None:
                    ended = True
                    break
                found = find(task)
                if found is None:
                    ready.append(_Job(read, task))
                else:
                    self.found[kind] += 1
                    done[read] = (task, found)
                read += 1
                if given in done:
                    break
            while ready and (worker := self._idle_worker()) is not None:
                job = ready.popleft()
                self.attempts[kind] += 1
                self._begun.setdefault(kind, time.monotonic())
                worker.give(kind, function, job)
            while given in done:
                task, result = done.pop(given)
                given += 1
                if isinstance(result, Exception):
                    raise result
                yield task, result
            if ended and not ready and given == read:
                return
            if (not ended and not ready) or not self._busy():
                continue  # read on before waiting
            for job, answer in self._wait():
                if answer is None:
                    ready.appendleft(job)
                else:
                    done[job.index] = (job.task, answer)
                    # Nobody waits for what would come after an error.
                    ended = ended or isinstance(answer, Exception)

    def _run_here(
        self, kind: str, function: Function, tasks: Iterable[Task], find: Callable[[Any], Any | None]
    ) -> Iterator[tuple[Any, Any]]:
        if self._here is None:
            self._here = Encoder(self._tokenizer, self.recipe)
        for task in tasks:
            found = find(task)
            if found is not None:
                self.found[kind] += 1
                yield task, found
            else:
                self.attempts[kind] += 1
                yield task, function(self._here, task, UNGUARDED)

    # -- workers

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._team if worker.job is not None]

    def _idle_worker(self) -> _Worker | None:
        for worker in self._team:
            if worker.job is None:
                return worker
        if len(self._team) == self.workers:
            return None
        self._team.append(_Worker(self._tokenizer, self.recipe, self.limits))
        return self._team[-1]

    def _wait(self) -> Iterator[tuple[_Job, Any]]:
        """(job, result or exception) of the tasks that ended, (job, None) of those to be run again."""
        busy = self._busy()
        heard = wait([worker.connection for worker in busy], POLL_SECONDS)
        for worker in busy:
            assert worker.job is not None
            job, answer = worker.job, None
            now = time.monotonic()
            self.busy[worker.kind] = self.busy.get(worker.kind, 0.0) + now - worker.since
            self.span[worker.kind] = now - self._begun[worker.kind]
            worker.since = now
            if worker.connection in heard:
                answer = worker.hear()
                if answer is not None and "fault" not in answer:
                    worker.job = None
                    yield job, raised(answer["error"]) if "error" in answer else answer["result"]
                    continue
                fault = answer["fault"] if answer else ""
            else:
                fault = worker.trouble()
                if not fault:
                    continue
            row = worker.row if answer is None else answer["row"]
            self._team.remove(worker)
            fault = fault or worker.cause()
            worker.end(kill=True)
            self.faults[fault] += 1
            yield job, _judge(job, fault, row)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._team:
            worker.connection.close()  # an idle worker then ends by itself
        for worker in self._team:
            worker.end(kill=kind is not None or worker.job is not None)
        self._team.clear()


def _judge(job: _Job, fault: str, row: int) -> MaskpipeError | None:
    """Notes a fault of a job. None: run it again, without the records that it condemns; else why that is pointless."""
    job.faults += 1
    if row == SEVERAL:
        pass  # the next attempt takes them one by one
    elif row < 0:
        job.blind += 1
    else:
        job.strikes[row, fault] += 1
        if job.strikes[row, fault] >= _STRIKES[fault]:
            job.condemned[row] = _REASONS[fault]
            job.faults = 0
    if len(job.condemned) > CONDEMNED:
        return MaskpipeError(
            f"{_what(job)}: more than {CONDEMNED} records take too much time or memory, or end the process "
            f"({', '.join(sorted(set(job.condemned.values())))}). The cause is the template or the tokenizer rather "
            "than the data; nothing was published"
        )
    if job.blind >= BLIND_FAULTS or job.faults >= FAULTS:
        return MaskpipeError(
            f"{_what(job)}: its worker process was lost {max(job.blind, job.faults)} times, the last time by "
            f"{_FAULTS[fault]}, and no record is to blame; nothing was published. Try fewer --workers, or 0 to work in "
            "one process and see what happens"
        )
    return None


_FAULTS = {
    "timeout": "using too much time",
    "out_of_memory": "using too much memory",
    "crashed": "a crash",
    "hung": "hanging",
    "killed": "a kill from outside (the system does that when memory runs out)",
}


def _what(job: _Job) -> str:
    chunk = getattr(job.task, "chunk", None)
    if chunk is None:
        return str(job.task.name)
    return f"{chunk.name}, records {chunk.first_row} to {chunk.first_row + chunk.count - 1}"


class _Worker:
    """A process, its pipe, and what was last seen of it."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, limits: Limits) -> None:
        # One process imports everything once, and workers are copies of it: a lost one is replaced at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["maskpipe.tasks", "maskpipe.worker"])
        self._note = context.RawArray("q", [-1, 0])
        self.connection, theirs = context.Pipe()
        given = (theirs, self._note, dict(tokenizer.files), tokenizer.name, recipe, limits)
        self._process = context.Process(target=work, args=given, daemon=True)
        resource_tracker.ensure_running()  # before: its start lets SIGINT through again to what is started after it
        with _uninterrupted(), _without_main():
            self._process.start()
        theirs.close()
        self.pid = self._process.pid or 0
        self.job: _Job | None = None
        self.kind, self.since = "", 0.0
        self._seen: tuple[int, float] = (0, 0.0)
        self._looked = 0.0
        self._still = self._stopped = 0.0

    @property
    def row(self) -> int:
        """The row that it is processing, -1 for none, SEVERAL for one of several."""
        return int(self._note[0])

    def give(self, kind: str, function: Function, job: _Job) -> None:
        self.job, self.kind, self.since = job, kind, time.monotonic()
        self._looked, self._still, self._stopped = time.monotonic(), 0.0, 0.0
        message = (function, job.task, job.condemned, job.faults > 0 or bool(job.condemned))
        # A pipe holds less than a chunk: were the worker stopped now, sending would wait for it.
        threading.Thread(target=_send, args=(self.connection, message), daemon=True).start()

    def hear(self) -> dict[str, Any] | None:
        """Its answer, None when it has died."""
        try:
            return dict(json.loads(self.connection.recv_bytes()))
        except (EOFError, OSError):
            return None

    def trouble(self) -> str:
        """ "hung" or "killed" when it does not get on, else nothing. Time in which this process did not look (it was
        stopped too, or busy) counts for one look only."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 4 * POLL_SECONDS), now
        state, cpu = _process_state(self.pid)
        self._stopped = self._stopped + passed if state in ("T", "t") else 0.0
        seen = (int(self._note[1]), cpu)
        self._still = self._still + passed if seen == self._seen and self.row != -1 else 0.0
        self._seen = seen
        if self._stopped >= STOPPED_SECONDS:
            return "killed"
        return "hung" if self._still >= HUNG_SECONDS else ""

    def cause(self) -> str:
        """What ended the process, which has closed its pipe."""
        self._process.join(5)
        from_outside = (-signal.SIGKILL, -signal.SIGTERM)
        code = self._process.exitcode
        return "timeout" if code == -signal.SIGPROF else "killed" if code in from_outside else "crashed"

    def end(self, kill: bool) -> None:
        """Ends the process; an idle one whose pipe is closed ends by itself."""
        if not kill:
            self._process.join(5)
        if self._process.exitcode is None:
            self._process.kill()
        self._process.join()
        self.connection.close()


def _send(connection: Connection, message: Any) -> None:
    with suppress(OSError, ValueError):  # the worker died, which its supervisor sees by itself
        connection.send(message)


def _process_state(pid: int) -> tuple[str, float]:
    """State letter and CPU seconds of a process; ("", the time) where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0].decode(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block has ended, and processes that start in it never see one: it is this process that is
    interrupted, and ends them."""
    caught: list[tuple[int, Any]] = []
    handler = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and callable(handler)
    if ours:
        signal.signal(signal.SIGINT, lambda *arguments: caught.append(arguments))
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if ours:
            signal.signal(signal.SIGINT, handler)
            if caught and callable(handler):
                handler(*caught[0])


@contextmanager
def _without_main() -> Iterator[None]:
    """A worker imports maskpipe alone: a script that has no `if __name__ == "__main__"` must not run in each worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def count_workers(workers: int | None) -> int:
    """How many processes to use: as many as asked for, by default one per core. UsageError below 0."""
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 0:
        raise UsageError(f"workers must be at least 1, or 0 to work in this process; got {workers}")
    return workers
