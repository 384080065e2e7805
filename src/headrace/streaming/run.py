"""One stream worker, from start to stop: listen, load, join, stream, leave."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from headrace.core import ConflictError, HeadraceError, SystemClock
from headrace.core.variables import url_filled_in
from headrace.scoring.scorer import Scorer
from headrace.streaming.answering import Answers
from headrace.streaming.assembling import load_scorer, make_answers
from headrace.streaming.broker import Broker
from headrace.streaming.brokers import open_broker
from headrace.streaming.exits import (
    EXIT_CANNOT_JOIN,
    EXIT_CANNOT_LISTEN,
    EXIT_CANNOT_LOAD,
    EXIT_REPLACED,
    EXIT_SETTINGS,
    EXIT_STOPPED_BY_RECORD,
)
from headrace.streaming.listening import listen
from headrace.streaming.outcomes import writer_of
from headrace.streaming.pump import StoppedByRecordError
from headrace.streaming.settings import StreamSettings, check_settings
from headrace.streaming.threads import ModelThreads
from headrace.streaming.worker import Worker

_log = logging.getLogger(__name__)

T = TypeVar("T")


def run(settings: StreamSettings) -> int:
    """Stream until SIGTERM or SIGINT; the second one ends the process.

    Returns:
        The process's exit status: 0 after a stop, else one of `EXIT_...`.
    """
    stop = _Stop()
    stop.install()
    try:
        check_settings(settings)
        # Before the broker: Pulsar's client keeps OpenVINO from loading models after it.
        scorer = _tried(lambda: load_scorer(settings), EXIT_CANNOT_LOAD)
        answerers = _tried(lambda: make_answers(settings, scorer), EXIT_SETTINGS)
        home = Path(settings.home) if settings.home else Path.cwd()
        url = _tried(lambda: url_filled_in(settings.broker, what="the broker's URL"), EXIT_SETTINGS)
        broker = _tried(lambda: open_broker(url, home=home), EXIT_CANNOT_JOIN)
        worker = Worker(settings, broker, row_problem=lambda: _row_problem(scorer))
        _tried(lambda: listen(settings, worker), EXIT_CANNOT_LISTEN)
    except _EndError as end:
        _log.error("stream '%s': %s", settings.name, end)  # the message says it all
        return end.status
    except HeadraceError as error:
        _log.error("%s", error)  # as above
        return EXIT_SETTINGS
    except KeyboardInterrupt:  # told to stop before there was anything to stop
        return 0
    stop.tells(worker.stop)
    return _stream(settings, worker, broker, scorer, answerers)


def _stream(
    settings: StreamSettings,
    worker: Worker,
    broker: Broker,
    scorer: Scorer | None,
    answerers: list[Answers],
) -> int:
    threads = ModelThreads(answerers, writer_of(settings), clock=SystemClock(), wake=worker.wake)
    try:
        worker.run(threads)
    except StoppedByRecordError as error:
        _log.error("stream '%s': %s", settings.name, error)  # as above
        return EXIT_STOPPED_BY_RECORD
    except ConflictError as error:
        _log.error("stream '%s': %s", settings.name, error)  # as above
        return EXIT_REPLACED
    except HeadraceError as error:
        _log.error("stream '%s': %s", settings.name, error)  # as above
        return EXIT_CANNOT_JOIN
    except KeyboardInterrupt:
        return 130
    broker.close()
    if threads.is_idle:  # a model that runs must not be freed
        threads.close()
        if scorer is not None:
            scorer.close()
    _log.info("stopped")
    return 0


def _row_problem(scorer: Scorer | None) -> str:
    """The row that a live check found to depend on others; empty while there is none."""
    if scorer is None or scorer.difference is None:
        return ""
    return f"model {scorer.name}: {scorer.difference.text}; remove `rows_independent`"


class _EndError(Exception):
    """The process ends with this status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _tried(work: Callable[[], T], status: int) -> T:
    try:
        return work()
    except HeadraceError as error:
        raise _EndError(str(error), status) from error


class _Stop:
    """Turns the first signal into a stop, the next one into an interrupt."""

    def __init__(self) -> None:
        self._was_told = False
        self._stop: Callable[[], None] | None = None

    def install(self) -> None:
        """Hear SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def tells(self, stop: Callable[[], None]) -> None:
        """Whom to tell."""
        self._stop = stop

    def _hear(self, *_: object) -> None:
        if self._was_told or self._stop is None:
            raise KeyboardInterrupt
        self._was_told = True
        # Not here: this thread may hold the very lock that waking its session takes.
        threading.Thread(target=self._stop, name="stop", daemon=True).start()
