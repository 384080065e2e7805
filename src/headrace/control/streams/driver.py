"""Driver of stream workers that run as sandboxed local processes."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from headrace.control.base.home import Home
from headrace.control.base.ownership import HomeIdentity, ProcessOwner
from headrace.control.base.settings import resolve_url
from headrace.control.local.driver import LocalDriver, RecordStore
from headrace.control.local.online_stores import OnlineStores
from headrace.control.local.sandbox import (
    Isolation,
    Sandbox,
    SandboxPurpose,
    data_limit,
    files_of,
    options_of,
)
from headrace.core import FailedPreconditionError, HeadraceError
from headrace.core.feature_settings import SQLITE
from headrace.core.files import make_private_dir
from headrace.core.processes import PASSED_FD, Process, python_module
from headrace.serving.memory import size_bytes
from headrace.streaming.brokers.log import file as bell
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.windows.state_file import group_folder, state_folder

_LOG_FILES: Final = "log.db*"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAccess:
    """A worker's access: paths to write, paths to read, and network."""

    own: list[Path]
    keep: list[Path]
    network: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confining:
    """Prepares the files of sandboxed workers."""

    home: Path
    sandbox: Sandbox
    stores: OnlineStores
    """Online stores that sandboxed processes read, held open."""

    def access(self, settings: WorkerSettings) -> WorkerAccess:
        """Return the access of a worker; its writable folders exist and belong to its user.

        Raises:
            OSError: A folder or a store cannot be prepared; the text has the remedy.
        """
        folder = embedded_log(settings.broker, self.home)
        own: list[Path] = []
        if settings.windows is not None:
            state = state_folder(msgspec.structs.replace(settings, home=str(self.home)))
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._give((state, *state.iterdir()))
            own.append(state)
        keep = [] if settings.model is None else list(files_of(Path(settings.model.path)))
        if settings.endpoint is not None:
            files = (settings.endpoint.ca_file, settings.endpoint.api_key_file)
            keep += [Path(file) for file in files if file]
        try:
            own = [*([] if folder is None else self._log(folder)), *own]
            reads, writes = _stores_of(settings)
            keep += self._read(reads)
            own += self._written(writes)
        except HeadraceError as error:
            raise OSError(str(error)) from error
        return WorkerAccess(
            own=own,
            keep=[path for path in keep if path not in own],
            network=folder is None
            or settings.endpoint is not None
            or not all(map(is_file, (*reads, *writes))),
        )

    def _log(self, folder: Path) -> list[Path]:
        """Create an embedded log's folder, give its files to the workers' user, and return it.

        Files that root creates there later get the owner of their database file from SQLite.
        Another user's folder without a log is not changed.
        """
        folder = Path(os.path.realpath(folder))
        logs = Path(os.path.realpath(self.home)) / "streams"
        is_ours = folder.is_relative_to(logs) and folder != logs
        if is_ours:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            self.stores.check_separate(folder, "name the log `log:NAME`")
            if not folder.parent.is_dir():
                msg = (
                    f"the embedded log's directory {folder.parent} does not exist; create it first"
                )
                raise FailedPreconditionError(msg)
        if folder.exists() and not is_ours and not any(folder.glob(_LOG_FILES)):
            return []
        folder.mkdir(exist_ok=True, mode=0o700)
        self._give((folder, folder / bell.FOLDER, *folder.glob(_LOG_FILES)))
        return [folder]

    def _written(self, urls: Iterable[str]) -> Iterator[Path]:
        """Yield the folders of written online stores, which hold nothing else.

        Raises:
            FailedPreconditionError: A folder holds other files, belongs neither to the home nor to
                the workers, or does not exist.
        """
        for url in urls:
            folder, uid = self.stores.directory_of(url), self._uid()
            if folder is None:
                continue
            file = folder / Path(url.removeprefix(SQLITE)).name
            if self.stores.is_own(folder):
                _check_alone(file)
                self.stores.prepare(url, for_others=uid is not None)
                self._give((folder, *folder.iterdir()))
                yield folder
            elif uid is not None and not _may_write(file, uid):
                msg = (
                    f"stream workers run as user {uid}, which may not write {file} and its folder; "
                    f"`chown {uid}` the file and its folder, or leave the online store in the "
                    "home"
                )
                raise FailedPreconditionError(msg)

    def _read(self, urls: Iterable[str]) -> Iterator[Path]:
        """Yield the folders of the online stores for feature lookups."""
        for url in urls:
            folder = self.stores.prepare(url, for_others=self._uid() is not None)
            if folder is not None:
                yield folder

    def _give(self, paths: Iterable[Path]) -> None:
        uid = self._uid()
        if uid is None:
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.chown(path, uid, uid, follow_symlinks=False)

    def _uid(self) -> int | None:
        """Return the user id of workers; None for this process's user."""
        return self.sandbox.user(SandboxPurpose.STREAM)


def embedded_log(url: str, home: Path) -> Path | None:
    """Return the folder of the embedded log that a URL names; None for another broker."""
    if not url.lower().startswith("log:"):
        return None
    path = unquote(urlsplit(url).path)
    return Path(path) if path.startswith("/") else home / "streams" / path


def is_file(url: str) -> bool:
    """Whether an online store is a file of this machine."""
    return url.startswith(SQLITE) or "://" not in url


def _stores_of(settings: WorkerSettings) -> tuple[list[str], list[str]]:
    """Return the URLs of the online stores that a worker reads, and of those that it writes.

    Raises:
        FailedPreconditionError: A variable is not set.
    """
    looked_up = msgspec.UNSET if settings.model is None else settings.model.features
    reads = [] if looked_up is msgspec.UNSET else [resolve_url(looked_up.online_store)]
    writes = [] if settings.features is None else [resolve_url(settings.features.online_store)]
    return reads, writes


def _check_alone(file: Path) -> None:
    """Check that a store's folder holds nothing else, because workers will own the folder."""
    folder = file.parent
    names = (path.name for path in folder.iterdir() if path.name != file.name)
    other = next((name for name in names if not name.startswith(f"{file.name}-")), None)
    if other is not None:
        msg = (
            f"stream workers would own {folder} to write {file.name}, which also holds {other}; "
            f"move {file.name}* into a separate folder while nothing runs"
        )
        raise FailedPreconditionError(msg)


def _may_write(file: Path, uid: int) -> bool:
    there = [path.stat() for path in (file.parent, file) if path.exists()]
    return bool(there) and all(stat.st_uid == uid or stat.st_mode & 0o002 for stat in there)


_MODULE: Final = "headrace.streaming"


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as last started.

    `pid` is 0 between the record's write and the process's start: an adopting control plane then
    searches for a process with the worker's settings file.
    """

    stream: str
    index: int
    serial: int
    revision: str
    pid: int = 0
    start_ticks: int = 0
    home: HomeIdentity | None = None
    restarts: int = 0
    was_ready: bool = False

    @property
    def name(self) -> str:
        """Name of the worker for the broker, logs and metrics."""
        return member_of(self.stream, self.index)


def member_of(stream: str, index: int, *, prefix: str = "") -> str:
    """Return the name of a stream's member; hosts that share a stream have different prefixes."""
    return "-".join(filter(None, (prefix, stream, str(index))))


@dataclass(slots=True, kw_only=True)
class StreamDriver:
    """Starts, adopts and stops workers; methods must be called from one thread."""

    run: Path
    """Directory of records and settings."""
    sockets: Path
    """Directory of sockets, with a short path."""
    home: Path
    """Directory with embedded logs and window states."""
    log_of: Callable[[str], Path]
    """Returns the log file of a named process."""
    sandbox: Sandbox | None = None
    """Sandbox of the workers; None starts them with all rights of this process."""
    stores: OnlineStores | None = None
    """Online stores that sandboxed workers read."""
    attached: bool = False
    """Whether workers end with this process, which then needs no records."""
    log_format: str = "text"
    member_prefix: str = ""
    """Prefix of member names at brokers, so that hosts that share a stream have different
    member names; empty for none.
    """
    _serial: int = 0
    _records: RecordStore[WorkerRecord] = field(init=False)
    _ends: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._records = RecordStore(
            kind=WorkerRecord,
            folder=self.run,
            settings_folder=self.run,
            settings_suffix=".settings.json",
            owner=ProcessOwner.of(self.home, sockets=self.sockets),
        )

    def adopt(self) -> list[tuple[WorkerRecord, Process | None]]:
        """Adopt and return all workers of an earlier control plane, dead ones included."""
        records = self._records.read_all()
        self._serial = max([self._serial, *(record.serial for record in records)])
        find = self._records.owner.find
        return [(record, find(record, self._arguments(record.name))) for record in records]

    def start(
        self,
        stream: str,
        index: int,
        settings: WorkerSettings,
        *,
        revision: str,
        restarts: int,
    ) -> tuple[WorkerRecord, Process]:
        """Start a member.

        Raises:
            OSError: The process could not be started, or the disk is full.
        """
        self._serial += 1
        record = WorkerRecord(
            stream=stream, index=index, serial=self._serial, revision=revision, restarts=restarts
        )
        worker_settings = msgspec.structs.replace(
            settings,
            member=member_of(stream, index, prefix=self.member_prefix),
            uds=self.address_of(record).removeprefix("unix:"),
            home=str(self.home),
            log_format=self.log_format,
        )
        make_private_dir(self.run)
        make_private_dir(self._run_dir(record))
        self._records.write_settings(record.name, msgspec.json.encode(worker_settings))
        # The record is written first, so a crash in between leaves a process that can be found.
        self._records.write(record)
        process = self._spawn(record, worker_settings)
        record = self._records.started(record, process)
        self.note(record)
        return record, process

    def note(self, record: WorkerRecord) -> None:
        """Write a record if possible; a full disk ends no worker."""
        self._records.write_if_possible(record)

    def address_of(self, record: WorkerRecord) -> str:
        """Return the address of a worker's status server."""
        return f"unix:{self._run_dir(record) / 'w.sock'}"

    def clean(self, record: WorkerRecord) -> None:
        """Remove the files of a worker's ended process except its log."""
        shutil.rmtree(self._run_dir(record), ignore_errors=True)
        self._release(record.name)

    def forget(self, record: WorkerRecord) -> None:
        """Remove a worker's files like `clean`, and its record and settings."""
        self.clean(record)
        self._records.remove(record.name)
        if self.sandbox is not None:
            self.sandbox.forget(_report(record.name))

    def forget_state(self, stream: str, group: str) -> None:
        """Remove a group's window states; its workers must have ended."""
        folder = group_folder(self.home, stream, group)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # used by another group, or absent
            folder.parent.rmdir()

    def isolation_of(self, record: WorkerRecord) -> Isolation | None:
        """Return the isolation of a worker's process; None if unknown."""
        if self.sandbox is None or not record.pid:
            return None
        return self.sandbox.isolation(_report(record.name), record.pid)

    def _spawn(self, record: WorkerRecord, worker_settings: WorkerSettings) -> Process:
        command = python_module(_MODULE, *self._arguments(record.name))
        log = self.log_of(f"stream-{record.name}")
        if self.sandbox is not None:
            command = self._confined(command, record, worker_settings, self.sandbox)
        environment = None
        if self.sandbox is not None:
            # Only variables that its settings and options file name.
            settings = msgspec.json.encode(worker_settings).decode()
            environment = self.sandbox.environment.of(settings, options_of(worker_settings.broker))
        launcher = self.sandbox is not None
        if not self.attached:
            return Process.spawn(command, log=log, environment=environment, launcher=launcher)
        # The worker reads the other end, which closes when this process ends.
        reader, writer = os.pipe()
        try:
            process = Process.spawn(
                [*command, "--attached"],
                log=log,
                pass_fd=reader,
                environment=environment,
                launcher=launcher,
            )
        except OSError:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        self._release(record.name)
        self._ends[record.name] = writer
        return process

    def _release(self, member: str) -> None:
        writer = self._ends.pop(member, None)
        if writer is not None:
            os.close(writer)

    def _confined(
        self, command: list[str], record: WorkerRecord, settings: WorkerSettings, sandbox: Sandbox
    ) -> list[str]:
        assert self.stores is not None, "confined workers need the stores that they read"
        access = Confining(home=self.home, sandbox=sandbox, stores=self.stores).access(settings)
        size = 0 if settings.model is None else size_bytes(Path(settings.model.path))
        try:
            return sandbox.command(
                command,
                name=_report(record.name),
                serial=SandboxPurpose.STREAM,
                own=[self._run_dir(record), self._records.settings_path(record.name), *access.own],
                keep=access.keep,
                network=access.network,
                passed=PASSED_FD if self.attached else None,
                data_bytes=data_limit(size),
            )
        except HeadraceError as error:
            raise OSError(str(error)) from error

    def _arguments(self, member: str) -> list[str]:
        return ["--settings", str(self._records.settings_path(member))]

    def _run_dir(self, record: WorkerRecord) -> Path:
        return self.sockets / f"s{record.serial}"


def make_stream_driver(home: Home, replicas: LocalDriver) -> StreamDriver:
    """Return the driver of a home's stream workers, set up like its replicas' driver."""
    return StreamDriver(
        run=home.stream_workers,
        sockets=replicas.socket_dir,
        home=home.root,
        log_of=home.log_of,
        sandbox=replicas.sandbox,
        stores=replicas.stores,
        log_format=replicas.log_format,
    )


def _report(member: str) -> str:
    """Return the name of a member's isolation report, which differs from all replica names."""
    return f"stream~{member}"
