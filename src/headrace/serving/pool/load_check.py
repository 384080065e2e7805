"""Load check of a pool's model in a disposable process.

The processes are forked by a fork server that has imported what loading needs and does nothing
else: a check costs the load itself, not the start of an interpreter.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from headrace.core import (
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    Inspected,
    ReplicaSettings,
)
from headrace.core.processes import PASSED_FD, Process, python_module

MAX_MESSAGE_BYTES: Final = 1 << 20
"""Size limit of a message, which is a line of JSON."""
_GRACE_S: Final = 5.0
"""The fork server ends a check at its deadline; after this further time it is considered dead."""
_END_S: Final = 2.0
_MAX_ERROR: Final = 2000


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A model to inspect that is not stored yet; see `headrace.core.Inspect`."""

    path: str
    runtime: str = ""
    allow_code: bool = False


class TrialRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request to load the model of `settings` and run it once."""

    settings: ReplicaSettings
    timeout_s: float


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a load check."""

    error: str = ""
    """Reason of the failure; empty if the model loaded."""
    code: str = ""
    """Error code of `error`."""
    needs_code: str = ""
    """Runtime that would have run code of the model's author without permission."""
    why_code: str = ""
    """The part of the model that is code."""
    size_bytes: int = 0
    """Memory by which the process grew."""
    inspected: Inspected | None = None


def result_of(work: Callable[[], TrialResult]) -> TrialResult:
    """Return the result of `work`, which runs a model's code; any error becomes a result too."""
    try:
        return work()
    except CodeNotAllowedError as error:
        reason = error.reason[:_MAX_ERROR]
        return TrialResult(error=str(error), needs_code=error.runtime, why_code=reason)
    except HeadraceError as error:
        return TrialResult(error=str(error)[:_MAX_ERROR], code=error.code)
    except MemoryError as error:
        return TrialResult(error=f"it needs more memory than its limit: {error}"[:_MAX_ERROR])
    except BaseException as error:  # noqa: BLE001  # a plug-in call; every error is handled here
        return TrialResult(error=f"{type(error).__name__}: {error}"[:_MAX_ERROR])


class LoadCheckServer:
    """Client that starts the fork server on demand and sends it checks. `close` ends it."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._socket: socket.socket | None = None

    async def run(self, settings: ReplicaSettings, *, timeout_s: float) -> TrialResult:
        """Check the model; if cancelled, the check is ended too.

        Raises:
            FailedPreconditionError: No process can be started for the check.
        """
        request = msgspec.json.encode(TrialRequest(settings=settings, timeout_s=timeout_s))
        for _ in range(2):  # an idle fork server may end while the request is sent
            try:
                async with asyncio.timeout(timeout_s + _GRACE_S):
                    return await self._ask(request)
            except (OSError, EOFError):
                self.close()
        msg = "cannot start a load check process"
        raise FailedPreconditionError(msg)

    async def _ask(self, request: bytes) -> TrialResult:
        server = self._fork_server()
        parent_end, child_end = socket.socketpair()
        with child_end:
            try:
                socket.send_fds(server, [b"t"], [child_end.fileno()])
            except OSError:
                parent_end.close()
                raise
        reader, writer = await asyncio.open_unix_connection(
            sock=parent_end, limit=MAX_MESSAGE_BYTES
        )
        try:
            writer.write(request + b"\n")
            return msgspec.json.decode(await reader.readuntil(), type=TrialResult)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _fork_server(self) -> socket.socket:
        """Return the socket of a running fork server."""
        if self._process is not None and not self._process.is_running():
            self.close()
        if self._socket is None:
            self._socket, child_end = socket.socketpair()
            with child_end:
                self._process = Process.spawn(
                    python_module("headrace.serving.pool.fork_server", str(PASSED_FD)),
                    log=None,
                    pass_fd=child_end.fileno(),
                    # Threads do not survive a fork.
                    environment=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                )
        return self._socket

    def close(self) -> None:
        """End the fork server; running checks end by themselves once their caller is gone."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.end_blocking(within_s=_END_S)
            self._process.close()
            self._process = None
