"""Driver of stream workers that are processes of this machine; a new control plane adopts them."""

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.environment import options_of
from headrace.control.home import Home
from headrace.control.local import LocalDriver
from headrace.control.online_stores import OnlineStores
from headrace.control.ownership import HomeIdentity, ProcessOwner
from headrace.control.records import RecordStore
from headrace.control.sandbox import Isolation, Occasion, Sandbox, data_limit
from headrace.control.streams.confining import Confining
from headrace.core import HeadraceError
from headrace.core.files import make_private_dir
from headrace.core.processes import PASSED_FD, Process, python_module
from headrace.serving.memory import size_bytes
from headrace.streaming.settings import StreamSettings
from headrace.streaming.windows.state_file import group_folder

_LOG: Final = logging.getLogger("headrace.control")
_MODULE: Final = "headrace.streaming"


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as last started.

    `pid` is 0 between the record and the start of its process: who finds it so looks for a process
    with the worker's settings file.
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
        """What the broker, logs and metrics call it."""
        return member_of(self.stream, self.index)


def member_of(stream: str, index: int, *, prefix: str = "") -> str:
    """The name of a stream's member; hosts that share a stream have prefixes of their own."""
    return "-".join(filter(None, (prefix, stream, str(index))))


@dataclass(slots=True, kw_only=True)
class StreamDriver:
    """Starts, adopts and ends workers; methods belong to one thread.

    `run`: a directory with records and settings. `sockets`: a directory with a short path.
    `log_of`: the log of a process by its name. `home`: where embedded logs and windows' states lie.
    `sandbox`: None starts processes that may do whatever this one may. `stores`: the online stores
    that confined ones read. `attached`: they end with this process, which then needs no records of
    them. `member_prefix`: put before their names where brokers are told them, so that hosts which
    share a stream have members of different names; empty for none.
    """

    run: Path
    sockets: Path
    home: Path
    log_of: Callable[[str], Path]
    sandbox: Sandbox | None = None
    stores: OnlineStores | None = None
    attached: bool = False
    log_format: str = "text"
    member_prefix: str = ""
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
        """Every worker that an earlier control plane left, dead ones included."""
        records = self._records.read_all()
        self._serial = max([self._serial, *(record.serial for record in records)])
        find = self._records.owner.find
        return [(record, find(record, self._arguments(record.name))) for record in records]

    def start(
        self, stream: str, index: int, settings: StreamSettings, *, revision: str, restarts: int
    ) -> tuple[WorkerRecord, Process]:
        """Start a member.

        Raises:
            OSError: The process could not be started, or the disk is full.
        """
        self._serial += 1
        record = WorkerRecord(
            stream=stream, index=index, serial=self._serial, revision=revision, restarts=restarts
        )
        told = msgspec.structs.replace(
            settings,
            member=member_of(stream, index, prefix=self.member_prefix),
            uds=self.address_of(record).removeprefix("unix:"),
            home=str(self.home),
            log_format=self.log_format,
        )
        make_private_dir(self.run)
        make_private_dir(self._run_dir(record))
        self._records.write_settings(record.name, msgspec.json.encode(told))
        # The record comes first: a crash between the two leaves a process that can be found.
        self._records.write(record)
        process = self._spawn(record, told)
        record = self._records.started(record, process)
        self.note(record)
        return record, process

    def note(self, record: WorkerRecord) -> None:
        """Write what the next control plane could also find out; a full disk ends no worker."""
        self._records.write_if_possible(record)

    def address_of(self, record: WorkerRecord) -> str:
        """Where a worker is asked."""
        return f"unix:{self._run_dir(record) / 'w.sock'}"

    def clean(self, record: WorkerRecord) -> None:
        """Remove what the process of a worker left behind, its log excepted."""
        shutil.rmtree(self._run_dir(record), ignore_errors=True)
        self._let_go(record.name)

    def forget(self, record: WorkerRecord) -> None:
        """As `clean`, and what would bring it back."""
        self.clean(record)
        self._records.remove(record.name)
        if self.sandbox is not None:
            self.sandbox.forget(_report(record.name))

    def forget_state(self, stream: str, group: str) -> None:
        """Remove what windows came to; its workers have to have ended."""
        folder = group_folder(self.home, stream, group)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another group's, or there is none
            folder.parent.rmdir()

    def isolation_of(self, record: WorkerRecord) -> Isolation | None:
        """How a worker's process is kept apart; None if nobody knows."""
        if self.sandbox is None or not record.pid:
            return None
        return self.sandbox.isolation(_report(record.name), record.pid)

    def _spawn(self, record: WorkerRecord, told: StreamSettings) -> Process:
        command = python_module(_MODULE, *self._arguments(record.name))
        log = self.log_of(f"stream-{record.name}")
        if self.sandbox is not None:
            command = self._confined(command, record, told, self.sandbox)
        environment = self._environment(told)
        launcher = self.sandbox is not None
        if not self.attached:
            return Process.spawn(command, log=log, environment=environment, launcher=launcher)
        # The worker reads the other end: it hears when this process is no more.
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
        self._let_go(record.name)
        self._ends[record.name] = writer
        return process

    def _environment(self, told: StreamSettings) -> dict[str, str] | None:
        """With what its own settings name, also in a file of options, and nobody else's."""
        if self.sandbox is None:
            return None
        settings = msgspec.json.encode(told).decode()
        return self.sandbox.environment.of(settings, options_of(told.broker))

    def _let_go(self, member: str) -> None:
        writer = self._ends.pop(member, None)
        if writer is not None:
            os.close(writer)

    def _confined(
        self, command: list[str], record: WorkerRecord, told: StreamSettings, sandbox: Sandbox
    ) -> list[str]:
        assert self.stores is not None, "whoever confines workers holds what they read"
        seen = Confining(home=self.home, sandbox=sandbox, stores=self.stores).seen(told)
        size = 0 if told.model is None else size_bytes(Path(told.model.path))
        try:
            return sandbox.command(
                command,
                name=_report(record.name),
                serial=Occasion.STREAM,
                own=[self._run_dir(record), self._records.settings_path(record.name), *seen.own],
                keep=seen.keep,
                network=seen.network,
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
    """What starts the workers of a home's streams, as its replicas are started."""
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
    """What the report of its isolation is called: no replica is called so."""
    return f"stream~{member}"


def send(process: Process | None, signum: signal.Signals) -> None:
    """Send a signal, if there is a process."""
    if process is not None:
        process.send(signum)
