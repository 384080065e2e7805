"""Process of one stream worker: `python -m headrace.streaming --settings FILE`.

It opens its HTTP servers, loads the model, joins the group, streams and leaves. With `--attached`
it ends when the other end of file descriptor 3 closes, as it does when the parent process ends.
A watchdog ends it when it stalls, or when its stop takes too long.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import msgspec

from headrace.core import ConflictError, HeadraceError, SystemClock
from headrace.core.processes import end_with_parent
from headrace.core.variables import url_filled_in
from headrace.observe import configure_logging
from headrace.scoring.scorer import Scorer
from headrace.streaming.brokers import open_broker
from headrace.streaming.http_api import listen
from headrace.streaming.poll_loop import StoppedByRecordError
from headrace.streaming.scorer import ModelThreads, load_scorer, make_stages
from headrace.streaming.settings import (
    EXIT_CANNOT_JOIN,
    EXIT_CANNOT_LISTEN,
    EXIT_CANNOT_LOAD,
    EXIT_REPLACED,
    EXIT_SETTINGS,
    EXIT_STALLED,
    EXIT_STOPPED_BY_RECORD,
    WorkerSettings,
    check_settings,
)
from headrace.streaming.worker import CHECK_EVERY_S, WorkerLoop

_USAGE = "usage: python -m headrace.streaming --settings FILE.json [--attached]"
_STOP_SIGNALS = signal.SIGTERM, signal.SIGINT
_STOP_MARGIN_S = 5.0
"""Longest time from the end of the drain time to the end of the process."""
_log = logging.getLogger("headrace.streaming")


def main(arguments: list[str]) -> int:
    """Run the stream that FILE configures.

    Returns:
        The exit status, 2 if the settings cannot be read.
    """
    match arguments:
        case ["--settings", file]:
            pass
        case ["--settings", file, "--attached"]:
            end_with_parent()
        case _:
            print(_USAGE, file=sys.stderr)  # noqa: T201  # there is no log yet
            return EXIT_SETTINGS
    try:
        settings = msgspec.json.decode(Path(file).read_bytes(), type=WorkerSettings)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"cannot read {file}: {error}", file=sys.stderr)  # noqa: T201  # as above
        return EXIT_SETTINGS
    configure_logging(log_format="json" if settings.log_format == "json" else "text")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # logs every request
    try:
        check_settings(settings)
    except HeadraceError as error:
        _log.error("%s", error)  # without the traceback
        return EXIT_SETTINGS
    return run(settings)


def run(settings: WorkerSettings) -> int:
    """Stream until SIGTERM or SIGINT; a second signal ends the process.

    Returns:
        The exit status: 0 after a stop, else one of `EXIT_...`.
    """
    watchdog = _Watchdog(settings)
    watchdog.start()
    status = EXIT_CANNOT_LOAD
    try:
        # Before the broker: Pulsar's client changes the exceptions of libraries loaded before it.
        scorer = load_scorer(settings)
        status = EXIT_SETTINGS
        answerers = make_stages(settings, scorer)
        url = url_filled_in(settings.broker, description="the broker's URL")
        status = EXIT_CANNOT_JOIN
        broker = open_broker(url, home=Path(settings.home) if settings.home else Path.cwd())
        worker = WorkerLoop(settings, broker, row_problem=lambda: _row_problem(scorer))
        status = EXIT_CANNOT_LISTEN
        listen(settings, worker)
    except HeadraceError as error:
        _log.error("%s", error)  # as above
        return status
    except KeyboardInterrupt:  # a signal before streaming began
        return 0
    watchdog.watch(worker)
    threads = ModelThreads(answerers, worker.writer, clock=SystemClock(), wake=worker.wake)
    try:
        worker.run(threads)
    except HeadraceError as error:
        _log.error("%s", error)  # as above
        if isinstance(error, StoppedByRecordError):
            return EXIT_STOPPED_BY_RECORD
        return EXIT_REPLACED if isinstance(error, ConflictError) else EXIT_CANNOT_JOIN
    except KeyboardInterrupt:
        return 130
    broker.close()
    if threads.is_idle:  # a running model must not be freed
        threads.close()
        if scorer is not None:
            scorer.close()
    _log.info("stopped")
    return 0


def _row_problem(scorer: Scorer | None) -> str:
    """Return the row that a live check found to depend on others; empty if there is none."""
    if scorer is None or scorer.difference is None:
        return ""
    return f"model {scorer.name}: {scorer.difference.text}; remove `rows_independent`"


class _Watchdog:
    """Stops the worker at the first signal, and ends a process that hangs.

    The first signal stops the stream, the next one interrupts the process. Python runs signal
    handlers in the main thread only, which may be in a call that never returns: so a thread is
    notified of signals through a socket.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._stop_timeout_s = settings.drain_timeout_s + _STOP_MARGIN_S
        self._signals, self._notify = socket.socketpair()
        self._worker: WorkerLoop | None = None
        self._is_stopping = False

    def start(self) -> None:
        """Handle SIGTERM and SIGINT from now on."""
        self._notify.settimeout(0)
        self._signals.settimeout(CHECK_EVERY_S)
        signal.set_wakeup_fd(self._notify.fileno(), warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def watch(self, worker: WorkerLoop) -> None:
        """Check this worker, and stop it at the first signal."""
        self._worker = worker

    def _on_signal(self, *_: object) -> None:
        if self._is_stopping or self._worker is None:
            raise KeyboardInterrupt
        self._is_stopping = True

    def _run(self) -> None:
        stop_by: float | None = None
        while True:
            reason = ""
            try:
                if self._signals.recv(1)[0] not in _STOP_SIGNALS:
                    continue
                stop_by = stop_by or time.monotonic() + self._stop_timeout_s
            except TimeoutError:
                pass
            worker = self._worker
            if stop_by is not None and time.monotonic() >= stop_by:
                reason = f"has not stopped within {self._stop_timeout_s:g} s"
            elif worker is not None:
                reason = worker.stall()
                if stop_by is not None:
                    worker.stop()  # also if the model's loader swallowed the exception
            if reason:
                main = threading.main_thread().ident or 0
                stack = traceback.format_stack(sys._current_frames()[main])  # noqa: SLF001  # is public
                _log.error("the main thread is in this call:\n%s", "".join(stack))
                _log.error("%s, and ends", reason)  # the control plane reports the last line
                os._exit(EXIT_STALLED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
