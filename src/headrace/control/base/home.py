"""Paths of one installation under HEADRACE_HOME, which only its user can access."""

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
"""Directory that marks a home while a backup is restored into it."""
_CONTENT = frozenset(
    {"run", "registry", "artifacts", "features", "streams", "profiles", "optimize", "payloads"}
    | {"state.db", "state.json"}
)
"""Any of these identifies a directory as a home."""


class _Below:
    """A path below the root of every home."""

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
        """Return the home at `path`; create its directories and revoke other users' access.

        Raises:
            FailedPreconditionError: `path` cannot be written, or other users could read it.
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

        A volume that is mounted there, in a container, keeps its mode, which its owner decides.
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
                "it, or set HEADRACE_HOME to a separate directory"
            )
            raise FailedPreconditionError(message)

    run = _Below("run")
    """Files of running processes."""
    records = _Below("run/replicas")
    """One record per replica."""
    replica_settings = _Below("run/settings")
    """One settings file per replica."""
    stream_workers = _Below("run/streams")
    """A record and a settings file per worker of a stream."""

    def job_run(self, run_id: str) -> Path:
        """Return the directory of the process of a job run."""
        return self.run / "jobs" / run_id

    artifacts = _Below("artifacts/sha256")
    """The content of all model versions."""
    logs = _Below("logs")
    """One log per process."""
    bulk = _Below("bulk")
    """Files and batches of OpenAI's API, a directory per owner."""
    payloads = _Below("payloads")
    """Sampled requests and answers, a directory per endpoint."""
    state_file = _Below("state.json")
    """Desired state of release 0.1."""
    scaling_file = _Below("scaling.json")
    """State of the autoscaler."""
    history_file = _Below("history.bin")
    """Request history of the last day."""
    load_file = _Below("load.bin")
    """Replica load history of the last day."""
    tokens_file = _Below("tokens.bin")
    """History of generated tokens of the last day."""
    checkpoint_file = _Below("trail-checkpoint.json")
    """The last checkpoint of the audit log's end."""
    materialized_file = _Below("features/materialized.json")
    """Results of scheduled runs of feature views."""
    streams_file = _Below("streams.json")
    """Manual commands to streams, which the spec does not contain."""
    lock_file = _Below("run/control.lock")
    """Lock that the home's only control plane holds."""
    flags_file = _Below("run/flags.json")
    """The flags of the last `headrace up`."""
    control_file = _Below("run/control.json")
    """Addresses of the running control plane."""
    routes_file = _Below("run/routes.json")
    """The routes that the gateway acknowledged last."""
    gateway_file = _Below("run/gateway.json")
    """The running Envoy and its ports."""
    gateway_certificate = _Below("run/gateway-certificate.pem")
    """Certificate of the gateway."""
    admin_certificate = _Below("run/admin-certificate.pem")
    """Certificate of the management API."""

    def log_of(self, name: str) -> Path:
        """Return the log of the process called `name`."""
        return self.logs / f"{name}.log"

    def socket_dir(self) -> Path:
        """Return a private directory with a path short enough for sockets, equal in all processes.

        Raises:
            FailedPreconditionError: Another user owns that directory.
        """
        from headrace.gateway import runtime_dir  # noqa: PLC0415  # few who have a home need it

        return runtime_dir(self.root)


class HomeLock:
    """Lock that gives a home at most one control plane, held until `release` or process exit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FailedPreconditionError: Another control plane holds it; the message names its pid.
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
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
