"""A pool of worker processes, each with its own Encoder; results come back in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.tokenizer import Tokenizer


class Pool:
    """Runs task functions in processes and yields their results in the order given; with one worker, in this one.

    Processes start when there is a second task: a small input does not pay for them.
    """

    def __init__(self, workers: int, encoder: Encoder) -> None:
        self.workers = workers
        self._encoder = encoder
        self._executor: ProcessPoolExecutor | None = None
        self.attempts: Counter[str] = Counter()
        self.found: Counter[str] = Counter()

    def run(
        self, kind: str, function: Callable[..., Any], tasks: Iterable[Any], find: Callable[[Any], Any | None]
    ) -> Iterator[tuple[str, Any]]:
        """(name of the task, its result) in the order given. A task for which `find` has a result is not run."""
        waiting: list[tuple[str, Future[Any]]] = []
        try:
            for task in tasks:
                found = find(task)
                future = Future[Any]() if found is not None else self._submit(function, task)
                if found is not None:
                    self.found[kind] += 1
                    future.set_result(found)
                else:
                    self.attempts[kind] += 1
                waiting.append((task.name, future))
                while len(waiting) > 2 * self.workers or (waiting and waiting[0][1].done()):
                    name, first = waiting.pop(0)
                    yield name, first.result()
            while waiting:
                name, first = waiting.pop(0)
                yield name, first.result()
        except BrokenProcessPool:
            raise MaskpipeError(
                "a worker process died (out of memory, or killed); nothing was published. Try fewer --workers"
            ) from None
        finally:
            for _, future in waiting:
                future.cancel()

    def _submit(self, function: Callable[..., Any], task: Any) -> Future[Any]:
        if self.workers == 1:
            done: Future[Any] = Future()
            done.set_result(function(self._encoder, task))
            return done
        if self._executor is None:
            tokenizer = self._encoder.tokenizer
            given = (dict(tokenizer.files), tokenizer.name, self._encoder.recipe)
            self._executor = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _start_worker, given
            )
        with _uninterrupted():
            return self._executor.submit(_in_worker, function, task)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is not None:
            if kind is not None:  # nobody waits for what the running tasks would still make
                for process in list((self._executor._processes or {}).values()):
                    process.terminate()
            self._executor.shutdown(wait=True, cancel_futures=True)


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


_worker_encoder: Encoder | None = None


def _start_worker(files: dict[str, bytes], name: str, recipe: Recipe) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core: threads inside would fight for it
    _worker_encoder = Encoder(Tokenizer(files, name), recipe)


def _in_worker(function: Callable[..., Any], task: Any) -> Any:
    assert _worker_encoder is not None
    return function(_worker_encoder, task)


def count_workers(workers: int | None) -> int:
    """How many processes to use: as many as asked for, by default one per core. UsageError below 1."""
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    return workers
