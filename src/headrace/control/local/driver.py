"""Driver and records of replicas that are processes of this machine."""

import asyncio
import hashlib
import logging
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from headrace.control.base.home import Home
from headrace.control.base.log_files import last_line
from headrace.control.base.ownership import HomeIdentity, ProcessOwner, RecordedProcess
from headrace.control.base.settings import resolve_url
from headrace.control.local.online_stores import OnlineStores
from headrace.control.local.sandbox import Isolation, Sandbox, data_limit, files_of
from headrace.control.model.desired import Revision
from headrace.core import DEFAULT_MAX_BODY_BYTES, HeadraceError, ReplicaSettings
from headrace.core.files import write_atomic
from headrace.core.processes import Process, python_module
from headrace.core.state_file import StateFile
from headrace.gateway import make_private
from headrace.serving.memory import size_bytes


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as last started.

    `pid` is 0 between the record and the start of its process: who finds it so looks for a process
    with the replica's settings file. `settings_sha256` is the digest of that file.
    """

    name: str
    serial: int
    endpoint: str
    version: str
    revision_id: str
    address: str
    settings_sha256: str
    pid: int = 0
    start_ticks: int = 0
    home: HomeIdentity | None = None
    was_ready: bool = False
    restarts: int = 0
    network: bool = False
    """It may open connections."""
    best_effort: bool = False
    memory_bytes: int | None = None
    deaths: int = 0
    """As of a `Replica`; `pid` is 0 once the process's end is in it."""
    is_ending: bool = False
    """Whether its process was told to end."""


class SupervisedRecord(RecordedProcess, Protocol):
    """The record of a process that a driver starts again."""

    @property
    def name(self) -> str:
        """What logs and the files of the process are called."""

    @property
    def serial(self) -> int:
        """Larger than those of processes that the home started before."""


Record = TypeVar("Record", bound=SupervisedRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStore(Generic[Record]):
    """Records and settings files of processes that outlive a control plane.

    Each write is atomic.
    """

    kind: type[Record]
    folder: Path
    settings_folder: Path
    owner: ProcessOwner
    settings_suffix: str = ".json"

    def settings_path(self, name: str) -> Path:
        """The settings file of the process called `name`."""
        return self.settings_folder / f"{name}{self.settings_suffix}"

    def write_settings(self, name: str, data: bytes) -> None:
        """Write the settings of the process called `name`."""
        write_atomic(self.settings_path(name), data, durable=False)

    def write(self, record: Record) -> None:
        """Write a process's record."""
        write_atomic(self._path(record.name), msgspec.json.encode(record), durable=False)

    def write_if_possible(self, record: Record) -> None:
        """As `write`, for what the next control plane could find out by itself.

        A full disk is no reason to end a process that runs.
        """
        try:
            self.write(record)
        except OSError as error:
            _LOG.error("cannot write a record", extra={"process": record.name, "error": str(error)})

    def read_all(self) -> list[Record]:
        """Every record by serial; unreadable ones are logged and removed."""
        records: list[Record] = []
        for path in self.folder.glob("*.json"):
            if self.settings_folder == self.folder and path.name.endswith(self.settings_suffix):
                continue
            record = StateFile(path, self.kind, "the record of a process").load()
            if record is None:
                path.unlink(missing_ok=True)
            else:
                records.append(record)
        return sorted(records, key=lambda record: record.serial)

    def started(self, record: Record, process: Process) -> Record:
        """`record` with the process that was started for it."""
        return msgspec.structs.replace(  # type: ignore[type-var]  # a record is a struct
            record, pid=process.pid, start_ticks=process.start_ticks, home=self.owner.identity
        )

    def remove(self, name: str) -> None:
        """Remove the record and settings of a process that is gone."""
        self._path(name).unlink(missing_ok=True)
        self.settings_path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def replica_records(home: Home, owner: ProcessOwner) -> RecordStore[ReplicaRecord]:
    """The records of a home's replicas."""
    return RecordStore(
        kind=ReplicaRecord, folder=home.records, settings_folder=home.replica_settings, owner=owner
    )


def digest_of(data: bytes) -> str:
    """SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


_LOG: Final = logging.getLogger("headrace.control")
_MODULE: Final = "headrace.serving"


@dataclass(slots=True, kw_only=True)
class Running:
    """A replica's record and its process; None once the process ended.

    `settings` is what a new process is told; None for an adopted one, whose file is there.
    """

    record: ReplicaRecord
    process: Process | None
    settings: bytes | None = None
    died_unwatched: bool = False
    """Whether it died while no control plane watched."""


@dataclass(slots=True)
class LocalDriver:
    """Starts, adopts and ends replicas as processes of this machine.

    Each replica runs in a session of its own, so that the end of the control plane, by whatever
    signal, does not reach it. Methods belong to one thread.
    """

    home: Home
    socket_dir: Path
    log_format: str = "text"
    module: str = _MODULE
    """What is run as `python -m`; tests put a stand-in here."""
    sandbox: Sandbox | None = None
    """None starts processes that may do whatever this one may."""
    stores: OnlineStores = field(init=False)
    _running: dict[str, Running] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)
    _records: RecordStore[ReplicaRecord] = field(init=False)

    def __post_init__(self) -> None:
        owner = ProcessOwner.of(self.home.root, sockets=self.socket_dir)
        self._records = replica_records(self.home, owner)
        self.stores = OnlineStores(self.home.root, self.socket_dir)

    def address_of(self, serial: int) -> str:
        """Where the replica with `serial` listens."""
        return f"unix:{self._run_dir(serial) / 'http.sock'}"

    def _run_dir(self, serial: int) -> Path:
        """What is the replica's own, and nobody else's: it may write there."""
        return self.socket_dir / f"r{serial}"

    def start(self, *, name: str, serial: int, revision: Revision) -> Process:
        """Start a new replica.

        Raises:
            OSError: The process could not be started, or the disk is full.
        """
        address = self.address_of(serial)
        data = self._settings_for(name, address, revision)
        record = ReplicaRecord(
            name=name,
            serial=serial,
            endpoint=revision.endpoint,
            version=revision.version,
            revision_id=revision.id,
            address=address,
            settings_sha256=digest_of(data),
            network=revision.network,
            best_effort=revision.best_effort,
            memory_bytes=revision.memory_bytes,
        )
        self._running[name] = Running(record=record, process=None, settings=data)
        return self._spawn(self._running[name])

    def restart(self, name: str, revision: Revision | None = None) -> Process:
        """Start a replica again whose process ended; OSError as `start`.

        Args:
            revision: Its own, with the paths that hold now; None to tell it what it was told.
        """
        running = self._running[name]
        again = running.record.restarts + 1
        running.record = msgspec.structs.replace(running.record, restarts=again)
        if revision is not None:
            running.settings = self._settings_for(name, running.record.address, revision)
            digest = digest_of(running.settings)
            running.record = msgspec.structs.replace(running.record, settings_sha256=digest)
        return self._spawn(running)

    def _settings_for(self, name: str, address: str, revision: Revision) -> bytes:
        """What the replica called `name` is told."""
        settings = msgspec.structs.replace(
            revision.hosts or revision.settings,
            uds=address.removeprefix("unix:"),
            replica=name,
            log_format=self.log_format,
        )
        return msgspec.json.encode(settings)

    def adopt_all(self) -> list[Running]:
        """Every replica that an earlier control plane left, dead ones included."""
        for record in self._records.read_all():
            process = self._records.owner.find(record, self._arguments(record.name)[1:])
            if process is not None and process.pid != record.pid:
                record = self._records.started(record, process)  # noqa: PLW2901  # the one we go on with
                self._records.write(record)
            elif process is None:
                # Where it listened may be of another home, from which this one was moved here.
                address = self.address_of(record.serial)
                record = msgspec.structs.replace(record, address=address)  # noqa: PLW2901  # as above
            has_died = process is None and record.pid and record.was_ready and not record.is_ending
            if has_died:
                record = _ended(record, record.deaths + 1)  # noqa: PLW2901  # as above
                self._records.write_if_possible(record)
            self._running[record.name] = Running(
                record=record, process=process, died_unwatched=bool(has_died)
            )
        return list(self._running.values())

    def names(self) -> list[str]:
        """Every replica that was not forgotten."""
        return list(self._running)

    def process_of(self, name: str) -> Process | None:
        """The running process of a replica."""
        running = self._running.get(name)
        return None if running is None else running.process

    def settings_of(self, name: str) -> ReplicaSettings:
        """What a replica was told.

        Raises:
            OSError, msgspec.DecodeError: The file is gone or damaged.
        """
        data = self._records.settings_path(name).read_bytes()
        return msgspec.json.decode(data, type=ReplicaSettings)

    def note_ready(self, name: str) -> None:
        """Remember over a restart of the control plane that this replica has been ready."""
        running = self._running[name]
        # Log once for each replica what keeps it from being kept apart.
        isolation = self.isolation_of(name)
        if isolation is not None and isolation.problems and name not in self._reported:
            self._reported.add(name)
            why = "; ".join(isolation.problems)
            _LOG.warning("replica is not isolated", extra={"replica": name, "why": why})
        if not running.record.was_ready:
            running.record = msgspec.structs.replace(running.record, was_ready=True)
            self._records.write_if_possible(running.record)

    def note_death(self, name: str, deaths: int) -> None:
        """Remember over a restart of the control plane how often a replica died by now."""
        running = self._running[name]
        running.record = _ended(running.record, deaths)
        self._records.write_if_possible(running.record)

    def note_exit(self, name: str) -> str:
        """Let go of a process that ended; the last line of its log, which says why."""
        running = self._running[name]
        if running.process is not None:
            running.process.close()
            running.process = None
        return last_line(self.home.log_of(name))

    def drain(self, name: str) -> None:
        """Tell a replica to finish what it has and to end."""
        self._note_ending(name)
        self._send(name, signal.SIGTERM)

    def kill(self, name: str) -> None:
        """End a replica's process now."""
        self._note_ending(name)
        self._send(name, signal.SIGKILL)

    def _note_ending(self, name: str) -> None:
        """An end that was asked for is no death, whoever finds it."""
        running = self._running.get(name)
        if running is not None and not running.record.is_ending:
            running.record = msgspec.structs.replace(running.record, is_ending=True)
            self._records.write_if_possible(running.record)

    def forget(self, name: str) -> None:
        """Remove what a replica left behind, its log excepted."""
        running = self._running.pop(name, None)
        self._records.remove(name)
        if self.sandbox is not None:
            self.sandbox.forget(name)
        if running is not None:
            Path(running.record.address.removeprefix("unix:")).unlink(missing_ok=True)
            shutil.rmtree(self._run_dir(running.record.serial), ignore_errors=True)
            if running.process is not None:
                running.process.close()

    async def stop(self, *, drain_s: float) -> None:
        """Drain all replicas together, kill those that run after `drain_s`, and forget them."""

        async def end(process: Process) -> None:
            if not await process.end(within_s=drain_s):
                extra = {"pid": process.pid}
                _LOG.warning("replica did not drain in time; killed", extra=extra)

        processes = [running.process for running in self._running.values()]
        await asyncio.gather(*(end(process) for process in processes if process is not None))
        for name in self.names():
            self.forget(name)

    def close(self) -> None:
        """Stop watching; the replicas go on."""
        self.stores.close()
        for running in self._running.values():
            if running.process is not None:
                running.process.close()

    def _arguments(self, name: str) -> list[str]:
        return python_module(self.module, "--settings", str(self._records.settings_path(name)))

    def _command(self, running: Running) -> list[str]:
        """The command line of the replica in its sandbox.

        Raises:
            OSError: It cannot be isolated, or its online store cannot be used.
        """
        record = running.record
        arguments = self._arguments(record.name)
        if self.sandbox is None:
            return arguments
        settings = self._records.settings_path(record.name)
        document = msgspec.json.decode(running.settings or settings.read_bytes())
        try:
            keep = self._read_by(document)
            features = document.get("features")
            if features is not None:
                url = resolve_url(features["online_store"])
                store = self.stores.prepare(url, for_others=not self.sandbox.kernel_features().user)
                keep += [] if store is None else [store]
            return self.sandbox.command(
                arguments,
                name=record.name,
                serial=record.serial,
                own=[self._run_dir(record.serial), settings],
                keep=keep,
                network=record.network,
                data_bytes=record.memory_bytes or _data_limit(document),
                best_effort=record.best_effort,
                forks="path" not in document,  # a pool tries models
            )
        except HeadraceError as error:
            raise OSError(str(error)) from error

    def _environment(self, name: str) -> dict[str, str] | None:
        """Without secrets of others; what a pool's process serves is told later."""
        if self.sandbox is None:
            return None
        text = self._records.settings_path(name).read_text(encoding="utf-8")
        is_pools = "path" not in msgspec.json.decode(text)
        return self.sandbox.environment.of(text, parts=["endpoints"] if is_pools else ())

    def _read_by(self, document: Mapping[str, Any]) -> list[Path]:
        """What a replica reads: its model, with what lies beside it; a pool may get any version."""
        if "path" not in document:
            self.home.artifacts.mkdir(parents=True, exist_ok=True)
            self.home.artifacts.chmod(0o755)  # `Home.at` made the home around it private
            return [self.home.artifacts]
        return files_of(Path(document["path"]))

    def isolation_of(self, name: str) -> Isolation | None:
        """How a replica's process is kept apart; None if nobody knows."""
        running = self._running.get(name)
        if self.sandbox is None or running is None or running.process is None:
            return None
        return self.sandbox.isolation(name, running.process.pid)

    def _spawn(self, running: Running) -> Process:
        name = running.record.name
        run_dir = self._run_dir(running.record.serial)
        if not run_dir.is_dir():  # else it belongs to the replica's user already
            make_private(run_dir)
        if running.settings is not None:
            self._records.write_settings(name, running.settings)
        # The record comes first: a crash between the two leaves a process that can be found.
        running.record = msgspec.structs.replace(
            running.record, pid=0, start_ticks=0, is_ending=False
        )
        self._records.write(running.record)
        process = Process.spawn(
            self._command(running),
            log=self.home.log_of(name),
            environment=self._environment(name),
            launcher=self.sandbox is not None,
        )
        running.process = process
        running.record = self._records.started(running.record, process)
        self._records.write_if_possible(running.record)
        return process

    def _send(self, name: str, signum: signal.Signals) -> None:
        process = self.process_of(name)
        if process is not None:
            process.send(signum)


def _data_limit(document: Mapping[str, Any]) -> int:
    """The most that a replica may allocate, by the size of what it serves and of its requests."""
    if "path" not in document:
        size = document["memory_bytes"]
    else:
        size = sum(map(size_bytes, files_of(Path(document["path"]))))
    return data_limit(size, max_body_bytes=document.get("max_body_bytes", DEFAULT_MAX_BODY_BYTES))


def _ended(record: ReplicaRecord, deaths: int) -> ReplicaRecord:
    """The record of a replica whose process is gone and counted."""
    return msgspec.structs.replace(record, pid=0, start_ticks=0, deaths=deaths)
