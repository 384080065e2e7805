"""Where sockets live: in the home directory if its path is short enough, else in a short one."""

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.gateway.errors import UnsafeDirectoryError
from headrace.gateway.settings import MAX_SOCKET_PATH_BYTES

GATEWAY_USER: Final = 61_176
"""User and group of Envoy where root starts it. systemd leaves the number unused."""
_ROOM_FOR_NAMES: Final = 40
_PRIVATE: Final = 0o700
_GATEWAYS: Final = 0o2750
"""Of root, and open to the gateway's group, which files and directories made in it inherit."""


def gateway_user() -> int | None:
    """The user that Envoy runs as; None for the one that this process is."""
    return GATEWAY_USER if os.geteuid() == 0 else None


def socket_mode() -> int:
    """The mode of a socket that Envoy connects to, in a directory of `make_private`."""
    return 0o600 if gateway_user() is None else 0o660


def runtime_dir(home: Path, *, environ: Mapping[str, str] = os.environ) -> Path:
    """A private directory whose sockets have names that Linux takes; see `make_private`.

    It is `home/run`, if a socket there may have a name of 40 bytes; else a directory named by the
    home's hash under `XDG_RUNTIME_DIR`, or under `/tmp/headrace-UID`: always the same for one home.

    Raises:
        UnsafeDirectoryError: Somebody else owns the directory, or it is a symbolic link.
    """
    home = home.resolve()
    direct = home / "run"
    if _fits(direct):
        home.mkdir(parents=True, exist_ok=True)
        return make_private(direct)
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    session = Path(environ.get("XDG_RUNTIME_DIR", "")) / "headrace"
    if session.is_absolute() and session.parent.is_dir() and _fits(session / name):
        return make_private(make_private(session) / name)
    # Others may create names in /tmp too; `make_private` refuses what is not ours.
    return make_private(make_private(Path("/tmp") / f"headrace-{os.getuid()}") / name)  # noqa: S108


def make_private(path: Path) -> Path:
    """`path` as a directory that only this user, and root's Envoy, can enter; created if absent.

    Raises:
        UnsafeDirectoryError: It belongs to somebody else, or is no directory.
    """
    path.mkdir(mode=_PRIVATE, exist_ok=True) if not path.is_symlink() else None
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectoryError(path, "it is not a directory")
    if status.st_uid != os.getuid():
        raise UnsafeDirectoryError(path, f"user {status.st_uid} owns it")
    group = gateway_user()
    if group is not None and status.st_gid != group:
        os.chown(path, -1, group)
    mode = _PRIVATE if group is None else _GATEWAYS
    if stat.S_IMODE(status.st_mode) != mode:
        path.chmod(mode)
    return path


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory)) + 1 + _ROOM_FOR_NAMES <= MAX_SOCKET_PATH_BYTES
