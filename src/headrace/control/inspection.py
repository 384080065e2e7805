"""Is a model what it says it is? Found out in a process that it may spoil, and that sees little.

The same nursery as a pool's forks the processes: an inspection costs the load itself, not the start
of an interpreter. Each is confined as a replica is, and bounded in memory and time.
"""

import contextlib
import socket
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.process import python_module
from headrace.control.sandbox import Occasion, Sandbox, files_of
from headrace.core import (
    Code,
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    Inspected,
    InvalidArgumentError,
    UnsupportedModelError,
)
from headrace.serving.trial import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Inspection,
    TrialRequest,
    TrialResult,
)

TIMEOUT_S: Final = 600.0
_GRACE_S: Final = 5.0
_END_S: Final = 2.0
_DATA_BYTES: Final = 1 << 40


@dataclass(slots=True)
class InspectApart:
    """Inspects models in processes of their own. Thread-safe; `close` ends what waits for more.

    `sandbox`: how they are kept apart. `timeout_s`: how long one may take.
    """

    sandbox: Sandbox
    timeout_s: float = TIMEOUT_S
    memory_bytes: int | None = None
    """How much one may take; None goes by the model's size."""
    _process: subprocess.Popen[bytes] | None = None
    _environment: dict[str, str] = field(default_factory=dict)
    _socket: socket.socket | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of_home(cls, home: Path) -> "InspectApart":
        """For a command that works on a home without a control plane."""
        return cls(Sandbox.of_home(home))

    def __call__(
        self,
        path: Path,
        runtime: str = "",
        *,
        allow_code: bool = False,
        cancel: threading.Event | None = None,  # noqa: ARG002  # next commit
    ) -> Inspected:
        """As `headrace.core.Inspect`.

        Raises:
            FailedPreconditionError: Besides what that says: there is no process to try it in.
        """
        path = path.absolute()
        with tempfile.TemporaryDirectory(prefix="headrace-inspect-") as own:
            request = TrialRequest(
                inspection=Inspection(path=str(path), runtime=runtime, allow_code=allow_code),
                timeout_s=self.timeout_s,
                confine=dict(self._spec(path, Path(own))),
                memory_bytes=self.memory_bytes,
            )
            result = self._ask(msgspec.json.encode(request))
        if result.inspected is not None:
            return result.inspected
        raise _error(path, result)

    def warm(self) -> None:
        """Let the first inspection find all that it needs loaded already."""
        with self._lock, contextlib.suppress(OSError):
            self._nursery()

    def _spec(self, path: Path, own: Path) -> dict[str, object]:
        limits = {"file_bytes": _DATA_BYTES}
        spec = self.sandbox.spec(
            own=[own],
            keep=files_of(path),
            network=False,
            serial=Occasion.INSPECTION,
            limits=limits,
        )
        return {**spec}

    def close(self) -> None:
        """End the nursery."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> TrialResult:
        for _ in range(2):  # a nursery that was idle may end while it is asked
            try:
                return self._exchange(request)
            except (OSError, EOFError):
                self.close()
        msg = "cannot start a process to inspect the model in"
        raise FailedPreconditionError(msg)

    def _exchange(self, request: bytes) -> TrialResult:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._lock:
                socket.send_fds(self._nursery(), [b"t"], [theirs.fileno()])
            ours.settimeout(self.timeout_s + _GRACE_S)
            ours.sendall(LENGTH.pack(len(request)) + request)
            (size,) = LENGTH.unpack(_exactly(ours, LENGTH.size))
            if size > MAX_MESSAGE_BYTES:
                raise EOFError
            return msgspec.json.decode(_exactly(ours, size), type=TrialResult)

    def _nursery(self) -> socket.socket:
        """The socket that a running nursery listens on."""
        environment = self.sandbox.environment.of()
        is_over = self._process is not None and self._process.poll() is not None
        # Since it was started the spec may have named a secret that it has.
        if is_over or self._environment.keys() - environment.keys():
            self._end()
        self._environment = environment
        if self._socket is None:
            self._socket, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603  # ourselves
                    [*python_module("headrace.serving.nursery", str(theirs.fileno())), "inspect"],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for who started us
                    # Threads do not survive the forks.
                    env=environment | {"OPENBLAS_NUM_THREADS": "1"},
                )
        return self._socket

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            self._process = None


def _error(path: Path, result: TrialResult) -> HeadraceError:
    if result.needs_code:
        return CodeNotAllowedError(str(path), result.needs_code, result.why_code)
    match result.code:
        case Code.FAILED_PRECONDITION:
            return FailedPreconditionError(result.error)
        case Code.INVALID_ARGUMENT if "there is no runtime" in result.error:
            return InvalidArgumentError(result.error)
        case "":
            return UnsupportedModelError(f"{path}: {result.error}")
        case _:
            return UnsupportedModelError(result.error)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
