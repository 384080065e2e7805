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

    @property
    def run(self) -> Path:
        """What belongs to running processes."""
        return self.root / "run"

    @property
    def records(self) -> Path:
        """One record per replica."""
        return self.run / "replicas"

    @property
    def replica_settings(self) -> Path:
        """One settings file per replica."""
        return self.run / "settings"

    @property
    def stream_workers(self) -> Path:
        """A record and a settings file per worker of a stream."""
        return self.run / "streams"

    def job_run(self, run_id: str) -> Path:
        """What belongs to the process of a job's run."""
        return self.run / "jobs" / run_id

    @property
    def artifacts(self) -> Path:
        """The content of all model versions."""
        return self.root / "artifacts" / "sha256"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.root / "logs"

    @property
    def payloads(self) -> Path:
        """Sampled requests and answers, a directory per endpoint."""
        return self.root / "payloads"

    @property
    def state_file(self) -> Path:
        """Where version 0.1 kept the desired state."""
        return self.root / "state.json"

    @property
    def scaling_file(self) -> Path:
        """What the autoscaler remembers."""
        return self.root / "scaling.json"

    @property
    def history_file(self) -> Path:
        """What became of the requests of the last day."""
        return self.root / "history.bin"

    @property
    def load_file(self) -> Path:
        """How busy replicas were over the last day."""
        return self.root / "load.bin"

    @property
    def checkpoint_file(self) -> Path:
        """Where the audit trail ended when it was looked at last."""
        return self.root / "trail-checkpoint.json"

    @property
    def materialized_file(self) -> Path:
        """What became of scheduled runs of feature views."""
        return self.root / "features" / "materialized.json"

    @property
    def streams_file(self) -> Path:
        """What was ordered of streams besides the spec."""
        return self.root / "streams.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one control plane of this home."""
        return self.run / "control.lock"

    @property
    def control_file(self) -> Path:
        """Where the running control plane is reached."""
        return self.run / "control.json"

    @property
    def routes_file(self) -> Path:
        """The routes that the gateway acknowledged last."""
        return self.run / "routes.json"

    @property
    def gateway_file(self) -> Path:
        """Which Envoy runs, with which ports."""
        return self.run / "gateway.json"

    @property
    def gateway_certificate(self) -> Path:
        """What the gateway shows to callers."""
        return self.run / "gateway-certificate.pem"

    @property
    def admin_certificate(self) -> Path:
        """What the management API shows."""
        return self.run / "admin-certificate.pem"

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
