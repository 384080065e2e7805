"""Where does everything of one installation lie? Paths under HEADRACE_HOME."""

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.control.files import make_private_dir
from headrace.core import FailedPreconditionError

_MAX_SOCKET_PATH: Final = 107
_LONGEST_SOCKET_NAME: Final = len("/control-0123456789.sock")


@dataclass(frozen=True, slots=True)
class Home:
    """Paths of one installation; `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> "Home":
        """The home at `path`, its directories made.

        Raises:
            FailedPreconditionError: `path` cannot be written.
        """
        home = cls(path.absolute())
        try:
            for directory in (home.root, home.run, home.records, home.replica_settings, home.logs):
                make_private_dir(directory)
        except OSError as error:
            message = f"cannot use {home.root} as HEADRACE_HOME: {error.strerror or error}"
            raise FailedPreconditionError(message) from error
        return home

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
    def logs(self) -> Path:
        """One log per process."""
        return self.root / "logs"

    @property
    def state_file(self) -> Path:
        """The desired state."""
        return self.root / "state.json"

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

    def log_of(self, name: str) -> Path:
        """The log of the process called `name`."""
        return self.logs / f"{name}.log"

    def sockets(self) -> Path:
        """A private directory short enough for socket paths.

        The run directory itself, or for a long home one in the temporary directory that is named
        by a digest of the home, so that every process finds the same.

        Raises:
            FailedPreconditionError: Somebody else owns that directory.
        """
        if len(os.fsencode(self.run)) + _LONGEST_SOCKET_NAME <= _MAX_SOCKET_PATH:
            return self.run
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{digest}"
        make_private_dir(path)
        found = path.lstat()
        is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not is_private or found.st_mode & 0o077:
            message = f"{path} is not a private directory of this user; remove it"
            raise FailedPreconditionError(message)
        return path
