"""Where is the desired state kept? In one file, replaced whole, by one control plane at a time."""

import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

import msgspec

from headrace.control.desired import DesiredState
from headrace.control.files import write_atomic
from headrace.core import ConflictError, FailedPreconditionError

_FORMAT: Final = 1


class Store(Protocol):
    """Keeps the desired state."""

    def load(self) -> DesiredState:
        """The newest state; generation 0 if there was none.

        Raises:
            FailedPreconditionError: What is stored cannot be read.
        """

    def save(self, state: DesiredState) -> None:
        """Replace the state.

        Raises:
            ConflictError: `state.generation` is not one more than the stored one.
            FailedPreconditionError: It cannot be stored; the old state stands.
        """


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    state: DesiredState


class FileStore:
    """A `Store` in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._generation: int | None = None

    def load(self) -> DesiredState:
        """The newest state; generation 0 if there was none."""
        state = self._read()
        self._generation = state.generation
        return state

    def save(self, state: DesiredState) -> None:
        """Replace the state; on disk when this returns."""
        if self._generation is None:
            self.load()
        if state.generation != (self._generation or 0) + 1:
            message = (
                f"the desired state is at generation {self._generation} and cannot become "
                f"{state.generation}; read it again"
            )
            raise ConflictError(message)
        data = msgspec.json.encode(_Stored(format=_FORMAT, state=state))
        try:
            write_atomic(self._path, data)
        except OSError as error:
            message = f"cannot store the desired state in {self._path}: {error.strerror}"
            raise FailedPreconditionError(message) from error
        self._generation = state.generation

    def _read(self) -> DesiredState:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return DesiredState()
        try:
            stored = msgspec.json.decode(data, type=_Stored)
        except msgspec.DecodeError as error:
            message = f"cannot read {self._path}: {error}; move it away to start from the spec file"
            raise FailedPreconditionError(message) from error
        if stored.format != _FORMAT:
            message = f"{self._path} has format {stored.format}; this version reads {_FORMAT}"
            raise FailedPreconditionError(message)
        return stored.state


class HomeLock:
    """Makes sure that one home has one control plane; held until `release` or the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FailedPreconditionError: Another control plane has it; the message names its pid.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            message = (
                f"a control plane already runs on {self._path.parent.parent} (pid {holder}); "
                "stop it with `headrace down`, or choose another --home"
            )
            raise FailedPreconditionError(message) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
