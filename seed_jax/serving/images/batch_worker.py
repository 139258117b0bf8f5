"""A thread that answers jobs in batches: what arrives within a short window is computed together."""

import collections
import concurrent.futures
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

from seed_jax.serving.engine.request import EngineClosedError, QueueFullError

WINDOW_S = 0.01
BATCH_SIZES = (1, 2, 4, 8)  # a batch is padded to the next one, so that few programs are compiled


class Job:
    """A unit of work, and the future of its result.

    Args:
        key: only jobs of equal keys share a batch.
    """

    def __init__(self, key: Hashable = None):
        self.key = key
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.arrival = time.monotonic()
        self.is_cancelled = False

    def cancel(self) -> None:
        """Give the job up: before it begins at once, else at the next occasion."""
        self.is_cancelled = True
        self.future.cancel()


class BatchWorker(ABC):
    """Base class of the workers: a queue, a thread, and batches of jobs with equal keys, oldest first.

    Args:
        name: of the thread.
        max_batch: jobs of a batch, one of `BATCH_SIZES`.
        max_queued: waiting jobs; more raise `QueueFullError`.
        window_s: how long the oldest job waits for company.
    """

    def __init__(self, name: str, max_batch: int, max_queued: int, window_s: float = WINDOW_S):
        if max_batch not in BATCH_SIZES:
            raise ValueError(f"max_batch is {max_batch}, expected one of {BATCH_SIZES}")
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._window_s = window_s
        self._jobs: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._condition = threading.Condition()
        self._accepting = False
        self._stopping = False
        self._mean_batch_s = 1.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def process(self, jobs: Sequence[Job]) -> None:
        """Set the results of a batch's futures; an exception becomes that of all its jobs."""

    @property
    def num_waiting(self) -> int:
        return len(self._jobs)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def start(self) -> None:
        """Begin to answer."""
        self._accepting = True
        self._thread.start()

    def shutdown(self, timeout_s: float = 0.0) -> None:
        """Refuse new jobs, let the others finish for up to `timeout_s`, cancel the rest, and stop."""
        with self._condition:
            self._accepting = False
            self._condition.wait_for(lambda: not self._jobs and not self._running, timeout_s)
            for job in [*self._jobs, *self._running]:
                job.cancel()
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(60.0)

    def enqueue(self, *jobs: Job) -> None:
        """Queue jobs, all or none.

        Raises:
            QueueFullError: too many jobs are waiting.
            EngineClosedError: the worker has not been started, or shuts down.
        """
        with self._condition:
            if not self._accepting:
                raise EngineClosedError("The server takes no images: it has not been started, or shuts down.")
            if len(self._jobs) + len(jobs) > self._max_queued:
                batches = 1 + len(self._jobs) / self._max_batch
                raise QueueFullError(len(self._jobs), max(1.0, batches * self._mean_batch_s))
            self._jobs.extend(jobs)
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._jobs or self._stopping)
                if not self._jobs:
                    return
                self._wait_for_company()
                self._running = batch = self._take()
            start = time.monotonic()
            # A future that begins can no longer be cancelled, except by `is_cancelled`.
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            failure: BaseException = concurrent.futures.CancelledError()
            try:
                if batch:
                    self.process(batch)
            except Exception as error:
                logging.exception("a batch of images failed")
                failure = error
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(failure)
            self._mean_batch_s += 0.2 * (time.monotonic() - start - self._mean_batch_s)
            with self._condition:
                self._running = []
                self._condition.notify_all()

    def _wait_for_company(self) -> None:
        key, deadline = self._jobs[0].key, self._jobs[0].arrival + self._window_s

        def is_full() -> bool:
            return self._stopping or sum(job.key == key for job in self._jobs) >= self._max_batch

        self._condition.wait_for(is_full, max(0.0, deadline - time.monotonic()))

    def _take(self) -> list[Job]:
        key = self._jobs[0].key
        batch = [job for job in self._jobs if job.key == key][: self._max_batch]
        self._jobs = collections.deque(job for job in self._jobs if job not in batch)
        return batch


def padded_batch_size(count: int) -> int:
    """Return the smallest of `BATCH_SIZES` that holds `count` jobs."""
    return next(size for size in BATCH_SIZES if size >= count)
