"""Ownership of processes: the home that a recorded process belongs to.

A home has an id, created at its first start. A copy of it (`cp -a`, a snapshot, a restored archive)
has the same id and the same records of processes. So a record also names the directory of the home
that wrote it, by device and inode, which differ in a copy, and are equal in a moved home or behind
a symbolic link. Code that signals, adopts or calls a process that a file names calls `ProcessOwner`
first.
"""

import contextlib
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from headrace.core.processes import Process, find_by_arguments, start_ticks
from headrace.core.state_file import StateFile

_LOG: Final = logging.getLogger("headrace.control")
_FILE: Final = "identity.json"
_OLD_FILE: Final = "planner-id"
"""File of the id in release 0.1."""
_LOCK: Final = Path("run", "control.lock")
_OLD_ID: Final = re.compile(r"[0-9a-f]{16}")
_ID_BYTES: Final = 8
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class HomeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One home in one boot of the machine: the content of `identity.json`, and of each record."""

    id: str
    path: str
    """Its real path."""
    device: int
    inode: int
    boot: str
    """The kernel's id of this boot: pids of earlier boots are meaningless."""

    def owns_records_of(self, writer: "HomeIdentity") -> bool:
        """Whether processes that `writer` recorded are this home's."""
        return msgspec.structs.replace(writer, path=self.path) == self

    def continues(self, previous: "HomeIdentity") -> bool:
        """Whether this home is `former`, moved or after a reboot, and not a copy.

        Device numbers change when a file system is mounted again, paths when a home is moved. A
        home that was moved to another file system counts as a copy, without harm.
        """
        is_same_directory = self.inode == previous.inode and self.device == previous.device
        is_same_path = self.inode == previous.inode and self.path == previous.path
        return self.id == previous.id and (is_same_directory or is_same_path)


class RecordedProcess(Protocol):
    """A record of a process in a file. `home`: None in records of release 0.1."""

    @property
    def pid(self) -> int:
        """Return the pid; 0 between the record and the start of its process."""

    @property
    def start_ticks(self) -> int:
        """Return the start time of the process, in clock ticks since boot."""

    @property
    def home(self) -> HomeIdentity | None:
        """Return the home that started the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The process that runs under a record's pid now."""

    start_ticks: int | None
    names_home: bool
    """Whether its command line contains the home's path, or it holds the home's lock."""


def is_owned(
    record: RecordedProcess, identity: HomeIdentity | None, observation: Observation
) -> bool:
    """Whether the process of `record` runs and belongs to the home with `identity`.

    Args:
        identity: None for a home that was never started by this release.
    """
    if observation.start_ticks is None or observation.start_ticks != record.start_ticks:
        return False
    if record.home is None:
        return observation.names_home
    return identity is not None and identity.owns_records_of(record.home)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOwner:
    """The home at `root` as the owner of processes."""

    root: Path
    identity: HomeIdentity | None
    sockets: Path | None = None
    """The home's directory outside `root`, if it has one."""

    @classmethod
    def of(cls, root: Path, *, sockets: Path | None = None) -> "ProcessOwner":
        """Return the owner of processes of the home at `root`, which need not exist."""
        root = root.resolve()
        previous = _file(root).load()
        identity = None if previous is None else _identity(root, id_=previous.id)
        return cls(root=root, identity=identity, sockets=sockets)

    def is_running(self, record: RecordedProcess) -> bool:
        """Whether the process of `record` runs and belongs to this home."""
        return is_owned(record, self.identity, self._observe(record))

    def has_written(self, record: RecordedProcess) -> bool:
        """Whether this home wrote `record`, possibly before a move or a reboot."""
        if record.home is None:
            return self._observe(record).names_home
        return self.identity is not None and self.identity.continues(record.home)

    def adopt(self, record: RecordedProcess) -> Process | None:
        """Return the process of `record` to watch and signal; None if it ended or is not owned."""
        if not self.is_running(record):
            return None
        return Process.adopt(record.pid, record.start_ticks)

    def find(self, record: RecordedProcess, arguments: Sequence[str]) -> Process | None:
        """Return the process as `adopt` does; without a recorded pid, search command lines.

        Args:
            arguments: End of the command line, with the path of a file in this home.
        """
        if record.pid:
            return self.adopt(record)
        pid = find_by_arguments(arguments)
        ticks = None if pid is None else start_ticks(pid)
        return None if pid is None or ticks is None else Process.adopt(pid, ticks)

    def _observe(self, record: RecordedProcess) -> Observation:
        return Observation(
            start_ticks=start_ticks(record.pid) if record.pid else None,
            names_home=record.home is None and self._is_named_by(record.pid),
        )

    def _is_named_by(self, pid: int) -> bool:
        """Whether a process that release 0.1 started belongs to this home."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        folders = [self.root] if self.sockets is None else [self.root, self.sockets]
        arguments = [Path(os.fsdecode(part)) for part in command.split(b"\0")]
        if any(path.is_relative_to(folder) for path in arguments for folder in folders):
            return True
        return _lock_holder(self.root / _LOCK) == pid


def claim(root: Path) -> HomeIdentity:
    """Write and return the identity of the home at `root`, whose lock is held.

    A copy gets a new id. Its `run` describes processes of the original, and is cleared.

    Raises:
        OSError: The home cannot be written.
    """
    root = root.resolve()
    previous = _file(root).load()
    identity = _identity(root, id_=_old_id(root) if previous is None else previous.id)
    if previous is not None and not identity.continues(previous):
        identity = msgspec.structs.replace(identity, id=secrets.token_hex(_ID_BYTES))
        # Remove every file of `run`, including sockets, except the held lock.
        run = root / "run"
        for path in run.rglob("*"):
            if path != run / _LOCK.name and (path.is_symlink() or not path.is_dir()):
                path.unlink(missing_ok=True)
        extra = {"home": str(root), "original": previous.path, "id": identity.id}
        _LOG.warning("this home is a copy and gets a new id", extra=extra)
    if identity != previous:
        _file(root).save(identity)
        (root / _OLD_FILE).unlink(missing_ok=True)
    return identity


def _identity(root: Path, *, id_: str) -> HomeIdentity:
    status = root.stat()
    return HomeIdentity(
        id=id_,
        path=str(root),
        device=status.st_dev,
        inode=status.st_ino,
        boot=_BOOT.read_text(encoding="ascii").strip(),
    )


def _file(root: Path) -> StateFile[HomeIdentity]:
    """Return the state file with the identity of the home at `root` at its last start."""
    return StateFile(root / _FILE, HomeIdentity, "the identity of the home", durable=True)


def _old_id(root: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (root / _OLD_FILE).read_text(encoding="ascii").strip()
        if _OLD_ID.fullmatch(text):
            return text
    return secrets.token_hex(_ID_BYTES)


def _lock_holder(path: Path) -> int | None:
    """Return the process that holds the lock of a home; None if it is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        digits = os.pread(descriptor, 32, 0).strip()
        return int(digits) if digits.isdigit() else None
    finally:
        os.close(descriptor)
    return None
