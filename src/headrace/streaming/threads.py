"""Runs batches on threads of their own, so that a slow model never keeps a session from polling."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from headrace.core import Clock, HeadraceError
from headrace.streaming.answering import Answers
from headrace.streaming.ledger import Batch, Outcome
from headrace.streaming.outcomes import Writer
from headrace.streaming.pump import Finished

_log = logging.getLogger(__name__)


class ModelThreads:
    """One thread for each answerer. All but `wake` is for the thread that owns the session.

    Threads are daemons: one that hangs in its model does not keep the process from ending.
    """

    def __init__(
        self,
        answerers: Sequence[Answers],
        writer: Writer,
        *,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._answerers = answerers
        self._writer = writer
        self._clock = clock
        self._wake = wake
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._finished: deque[Finished | BaseException] = deque()
        self._is_finished = threading.Event()
        self._in_flight = 0
        for at, answerer in enumerate(answerers):
            threading.Thread(
                target=self._work, args=(answerer,), name=f"model-{at}", daemon=True
            ).start()

    @property
    def is_free(self) -> bool:
        """As `Runner`."""
        return self._in_flight < len(self._answerers)

    @property
    def has_room(self) -> bool:
        """As `Runner`."""
        return self._in_flight <= len(self._answerers)

    @property
    def is_idle(self) -> bool:
        """Whether none runs that has not been collected."""
        return self._in_flight == 0

    def submit(self, batch: Batch) -> None:
        """As `Runner`."""
        self._in_flight += 1
        self._queue.put(batch)

    def finished(self) -> list[Finished]:
        """As `Runner`."""
        self._is_finished.clear()
        found = []
        while self._finished:
            one = self._finished.popleft()
            self._in_flight -= 1
            if isinstance(one, BaseException):
                raise one  # a bug: the worker ends and says so
            found.append(one)
        return found

    def wait(self, timeout_s: float) -> None:
        """As `Runner`."""
        self._is_finished.wait(timeout_s)

    def close(self) -> None:
        """Let the threads end when they are through with what they have."""
        for _ in self._answerers:
            self._queue.put(None)

    def _work(self, answerer: Answers) -> None:
        while (batch := self._queue.get()) is not None:
            started = time.perf_counter()
            try:
                result: Sequence[Outcome] | HeadraceError = self._outcomes(answerer, batch)
            except HeadraceError as error:
                result = error
            except Exception as error:  # noqa: BLE001  # whoever collects raises it
                self._add(error)
                continue
            runs, rows = answerer.count()
            seconds = time.perf_counter() - started
            self._add(Finished(batch=batch, result=result, seconds=seconds, runs=runs, rows=rows))

    def _outcomes(self, answerer: Answers, batch: Batch) -> list[Outcome]:
        now_s = self._clock.now()
        results = answerer.answer(batch.records, now_s=now_s, added=batch.added)
        return self._writer.outcomes(batch.records, results, attempts=batch.tries, now_s=now_s)

    def _add(self, one: Finished | BaseException) -> None:
        self._finished.append(one)
        self._is_finished.set()
        self._wake()
