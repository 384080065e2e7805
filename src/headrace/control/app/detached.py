"""Start of a control plane in the background, until it reports that it is ready."""

import os
import select
import signal
import time
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.base.home import Home
from headrace.control.base.log_files import last_line
from headrace.control.base.settings import ControlFile, ControlSettings, read_control_file
from headrace.core import DeadlineExceededError, FailedPreconditionError, UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import write_atomic
from headrace.core.processes import PASSED_FD, Process, python_module

_MODULE: Final = "headrace.control"
_LONGEST_NOTICE: Final = 1 << 20
_END_SLACK_S: Final = 10.0


class _Notice(msgspec.Struct):
    ready: bool = False
    error: str = ""
    found_running: bool = False


def start_detached(settings: ControlSettings, *, timeout_s: float = 300.0) -> ControlFile:
    """Start a control plane that outlives this process; return its addresses once ready.

    Blocking. Ready means that one endpoint answered a real request through the gateway; the
    status shows the others. If none answers, everything that was started is stopped again, unless
    the system ran before.

    Raises:
        FailedPreconditionError: It cannot become ready; the message gives the reason.
        DeadlineExceededError: It is not ready after `timeout_s`.
    """
    home = Home.at(Path(settings.home))
    path = home.run / "control-settings.json"
    child_settings = msgspec.structs.replace(
        settings, home=str(home.root), notify_fd=PASSED_FD, copy_logs=False
    )
    write_atomic(path, msgspec.json.encode(child_settings), durable=False)
    arguments = python_module(_MODULE, "--settings", str(path))
    reader, writer = os.pipe()
    try:
        process = Process.spawn(arguments, log=home.log_of("control"), pass_fd=writer)
    finally:
        os.close(writer)
    try:
        notice = _read_notice(reader, timeout_s)
        if notice is not None and notice.ready:
            if (control_file := read_control_file(home.root)) is None:
                raise UnavailableError("the control plane ended right after it became ready")
            return control_file
        if notice is None or not notice.found_running:
            # The control plane stops the processes that it started.
            within_s = settings.drain_timeout_s + _END_SLACK_S
            process.end_blocking(within_s=within_s, first=signal.SIGINT)
    finally:
        os.close(reader)
        process.close()
    if notice is None:
        message = f"not ready after {timeout_s:g} s; the logs are in {home.logs}"
        raise DeadlineExceededError(message)
    reason = notice.error or last_line(home.log_of("control")) or "it ended without a word"
    raise FailedPreconditionError(reason)


def _read_notice(reader: int, timeout_s: float) -> _Notice | None:
    """Return the control plane's notice; None after `timeout_s`, empty if it exited without one."""
    deadline = time.monotonic() + timeout_s
    data = b""
    while not data.endswith(b"\n") and len(data) < _LONGEST_NOTICE:
        ready, _, _ = select.select([reader], [], [], max(deadline - time.monotonic(), 0.0))
        if not ready:
            return None
        part = os.read(reader, 65536)
        if not part:
            break
        data += part
    try:
        return msgspec.json.decode(data, type=_Notice)
    except UNDECODABLE:
        return _Notice()
