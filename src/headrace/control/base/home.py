"""Paths of one installation under HEADRACE_HOME, which only its user can enter."""

import fcntl
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from headrace.core import FailedPreconditionError
from headrace.core.files import make_private_dir

_LOG = logging.getLogger("headrace.control")
_FOR_OTHERS = 0o077
RESTORING = ".restore"
"""In a home while a backup is restored into it."""
_CONTENT = frozenset(
    {"run", "registry", "artifacts", "features", "streams", "profiles", "optimize", "payloads"}
    | {"state.db", "state.json"}
)
"""One of these tells that a directory is a home, and no directory of something else."""


class _Below:
    """A path in every home."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __get__(self, home: "Home", owner: "type[Home] | None" = None) -> Path:
        return home.root / self._path


@dataclass(frozen=True, slots=True)
class Home:
    """Paths of one installation; `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> "Home":
        """The home at `path`, its directories made; others lose the rights that they had there.

        Raises:
            FailedPreconditionError: `path` cannot be written, or others could read it.
        """
        home = cls(path.resolve())
        if (home.root / RESTORING).exists():
            message = f"a restore into {home.root} did not end; remove it and restore again"
            raise FailedPreconditionError(message)
        try:
            home._close()
            for directory in (home.root, home.run, home.records, home.replica_settings, home.logs):
                make_private_dir(directory)
        except OSError as error:
            message = f"cannot use {home.root} as HEADRACE_HOME: {error.strerror or error}"
            raise FailedPreconditionError(message) from error
        return home

    def _close(self) -> None:
        """Make an existing home private.

        A volume that is mounted there, in a container, keeps its mode: who owns it decides.
        """
        if not self.root.is_dir() or not (status := self.root.stat()).st_mode & _FOR_OTHERS:
            return
        content = {path.name for path in self.root.iterdir()}
        is_ours = status.st_uid == os.geteuid()
        if is_ours and (not content or content & _CONTENT or self.root.is_mount()):
            self.root.chmod(stat.S_IMODE(status.st_mode) & ~_FOR_OTHERS)
            _LOG.warning("others could read the home; now they cannot", extra={"home": self.root})
        elif not self.root.is_mount():
            reason = "it holds other files" if is_ours else "another user owns it"
            message = (
                f"others may read {self.root}, and it is not changed because {reason}: `chmod 700` "
                "it, or name a directory of its own as HEADRACE_HOME"
            )
            raise FailedPreconditionError(message)

    run = _Below("run")
    """What belongs to running processes."""
    records = _Below("run/replicas")
    """One record per replica."""
    replica_settings = _Below("run/settings")
    """One settings file per replica."""
    stream_workers = _Below("run/streams")
    """A record and a settings file per worker of a stream."""

    def job_run(self, run_id: str) -> Path:
        """What belongs to the process of a job's run."""
        return self.run / "jobs" / run_id

    artifacts = _Below("artifacts/sha256")
    """The content of all model versions."""
    logs = _Below("logs")
    """One log per process."""
    payloads = _Below("payloads")
    """Sampled requests and answers, a directory per endpoint."""
    state_file = _Below("state.json")
    """Where version 0.1 kept the desired state."""
    scaling_file = _Below("scaling.json")
    """What the autoscaler remembers."""
    history_file = _Below("history.bin")
    """What became of the requests of the last day."""
    load_file = _Below("load.bin")
    """How busy replicas were over the last day."""
    checkpoint_file = _Below("trail-checkpoint.json")
    """Where the audit trail ended when it was looked at last."""
    materialized_file = _Below("features/materialized.json")
    """What became of scheduled runs of feature views."""
    streams_file = _Below("streams.json")
    """What was ordered of streams besides the spec."""
    lock_file = _Below("run/control.lock")
    """Held by the one control plane of this home."""
    control_file = _Below("run/control.json")
    """Where the running control plane is reached."""
    routes_file = _Below("run/routes.json")
    """The routes that the gateway acknowledged last."""
    gateway_file = _Below("run/gateway.json")
    """Which Envoy runs, with which ports."""
    gateway_certificate = _Below("run/gateway-certificate.pem")
    """What the gateway shows to callers."""
    admin_certificate = _Below("run/admin-certificate.pem")
    """What the management API shows."""

    def log_of(self, name: str) -> Path:
        """The log of the process called `name`."""
        return self.logs / f"{name}.log"

    def socket_dir(self) -> Path:
        """A private directory short enough for socket paths; the same for every process.

        Raises:
            FailedPreconditionError: Somebody else owns that directory.
        """
        from headrace.gateway import runtime_dir  # noqa: PLC0415  # few who have a home need it

        return runtime_dir(self.root)


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
