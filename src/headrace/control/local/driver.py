"""Driver and records of replicas that run as local processes."""

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

    `pid` is 0 between the record's write and the process's start: an adopting control plane then
    searches for a process with the replica's settings file. `settings_sha256` is its digest.
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
    """Whether the process may open connections."""
    best_effort: bool = False
    memory_bytes: int | None = None
    deaths: int = 0
    """Number of crashes, as in `Replica`; `pid` is 0 once the process's end is counted."""
    is_ending: bool = False
    """Whether the process was asked to stop."""


class SupervisedRecord(RecordedProcess, Protocol):
    """Record of a process that a driver restarts."""

    @property
    def name(self) -> str:
        """Name of the process in logs and file names."""

    @property
    def serial(self) -> int:
        """Number that increases with each process of the home."""


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
        """Return the settings file of the process called `name`."""
        return self.settings_folder / f"{name}{self.settings_suffix}"

    def write_settings(self, name: str, data: bytes) -> None:
        """Write the settings of the process called `name`."""
        write_atomic(self.settings_path(name), data, durable=False)

    def write(self, record: Record) -> None:
        """Write a process's record."""
        write_atomic(self._path(record.name), msgspec.json.encode(record), durable=False)

    def write_if_possible(self, record: Record) -> None:
        """Write a record, but only log a failure: the next control plane can recover it.

        A full disk must not end a running process.
        """
        try:
            self.write(record)
        except OSError as error:
            _LOG.error("cannot write a record", extra={"process": record.name, "error": str(error)})

    def read_all(self) -> list[Record]:
        """Return every record by serial; unreadable ones are logged and removed."""
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
        """Return `record` with the process that was started for it."""
        return msgspec.structs.replace(  # type: ignore[type-var]  # records are structs
            record, pid=process.pid, start_ticks=process.start_ticks, home=self.owner.identity
        )

    def remove(self, name: str) -> None:
        """Remove the record and settings of a process that is gone."""
        self._path(name).unlink(missing_ok=True)
        self.settings_path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def replica_records(home: Home, owner: ProcessOwner) -> RecordStore[ReplicaRecord]:
    """Return the store of a home's replica records."""
    return RecordStore(
        kind=ReplicaRecord, folder=home.records, settings_folder=home.replica_settings, owner=owner
    )


def digest_of(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


_LOG: Final = logging.getLogger("headrace.control")
_MODULE: Final = "headrace.serving"


@dataclass(slots=True, kw_only=True)
class Running:
    """A replica's record and its process, which is None once it ended.

    `settings` is the new process's settings; None for an adopted process, whose file exists.
    """

    record: ReplicaRecord
    process: Process | None
    settings: bytes | None = None
    died_unwatched: bool = False
    """Whether it died while no control plane watched."""


@dataclass(slots=True)
class LocalDriver:
    """Starts, adopts and ends replicas as processes of this machine.

    Each replica runs in a separate session, so that it survives the end of the control plane by any
    signal. Methods must be called from one thread.
    """

    home: Home
    socket_dir: Path
    log_format: str = "text"
    module: str = _MODULE
    """Module run as `python -m`; tests replace it."""
    sandbox: Sandbox | None = None
    """Sandbox of the processes; None starts them with all rights of this process."""
    stores: OnlineStores = field(init=False)
    _running: dict[str, Running] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)
    _records: RecordStore[ReplicaRecord] = field(init=False)

    def __post_init__(self) -> None:
        owner = ProcessOwner.of(self.home.root, sockets=self.socket_dir)
        self._records = replica_records(self.home, owner)
        self.stores = OnlineStores(self.home.root, self.socket_dir)

    def address_of(self, serial: int) -> str:
        """Return the listening address of the replica with `serial`."""
        return f"unix:{self._run_dir(serial) / 'http.sock'}"

    def _run_dir(self, serial: int) -> Path:
        """Return the replica's private directory, in which it may write."""
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
        """Restart a replica whose process ended; raises OSError like `start`.

        Args:
            revision: The replica's revision with its current paths; None keeps the settings.
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
        """Return the encoded settings of the replica called `name`."""
        settings = msgspec.structs.replace(
            revision.hosts or revision.settings,
            uds=address.removeprefix("unix:"),
            replica=name,
            log_format=self.log_format,
        )
        return msgspec.json.encode(settings)

    def adopt_all(self) -> list[Running]:
        """Adopt and return all replicas of an earlier control plane, dead ones included."""
        for record in self._records.read_all():
            process = self._records.owner.find(record, self._arguments(record.name)[1:])
            if process is not None and process.pid != record.pid:
                record = self._records.started(record, process)  # noqa: PLW2901  # is current
                self._records.write(record)
            elif process is None:
                # The recorded address may belong to the home's path before it was moved.
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
        """Return the names of all replicas that were not forgotten."""
        return list(self._running)

    def process_of(self, name: str) -> Process | None:
        """Return the running process of a replica; None if it does not run."""
        running = self._running.get(name)
        return None if running is None else running.process

    def settings_of(self, name: str) -> ReplicaSettings:
        """Return a replica's settings from its file.

        Raises:
            OSError, msgspec.DecodeError: The file is gone or damaged.
        """
        data = self._records.settings_path(name).read_bytes()
        return msgspec.json.decode(data, type=ReplicaSettings)

    def note_ready(self, name: str) -> None:
        """Record, for the next control plane, that this replica has been ready."""
        running = self._running[name]
        # Log once per replica why it is not fully isolated.
        isolation = self.isolation_of(name)
        if isolation is not None and isolation.problems and name not in self._reported:
            self._reported.add(name)
            reason = "; ".join(isolation.problems)
            _LOG.warning("replica is not isolated", extra={"replica": name, "why": reason})
        if not running.record.was_ready:
            running.record = msgspec.structs.replace(running.record, was_ready=True)
            self._records.write_if_possible(running.record)

    def note_death(self, name: str, deaths: int) -> None:
        """Record a replica's number of crashes for the next control plane."""
        running = self._running[name]
        running.record = _ended(running.record, deaths)
        self._records.write_if_possible(running.record)

    def note_exit(self, name: str) -> str:
        """Release an ended process; return the last line of its log, which says why it ended."""
        running = self._running[name]
        if running.process is not None:
            running.process.close()
            running.process = None
        return last_line(self.home.log_of(name))

    def drain(self, name: str) -> None:
        """Ask a replica to finish its requests and to exit."""
        self._note_ending(name)
        self._send(name, signal.SIGTERM)

    def kill(self, name: str) -> None:
        """Kill a replica's process."""
        self._note_ending(name)
        self._send(name, signal.SIGKILL)

    def _note_ending(self, name: str) -> None:
        """Record that the process was asked to stop, so that its end does not count as a crash."""
        running = self._running.get(name)
        if running is not None and not running.record.is_ending:
            running.record = msgspec.structs.replace(running.record, is_ending=True)
            self._records.write_if_possible(running.record)

    def forget(self, name: str) -> None:
        """Remove a replica's files except its log."""
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
        """Stop watching; the replicas keep running."""
        self.stores.close()
        for running in self._running.values():
            if running.process is not None:
                running.process.close()

    def _arguments(self, name: str) -> list[str]:
        return python_module(self.module, "--settings", str(self._records.settings_path(name)))

    def _command(self, running: Running) -> list[str]:
        """Return the command line of the replica in its sandbox.

        Raises:
            OSError: The replica cannot be isolated, or its online store cannot be used.
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
        """Return the environment without other replicas' secrets; pools get models later."""
        if self.sandbox is None:
            return None
        text = self._records.settings_path(name).read_text(encoding="utf-8")
        is_pools = "path" not in msgspec.json.decode(text)
        return self.sandbox.environment.of(text, parts=["endpoints"] if is_pools else ())

    def _read_by(self, document: Mapping[str, Any]) -> list[Path]:
        """Return the paths that a replica reads: its model's files, or all artifacts for a pool."""
        if "path" not in document:
            self.home.artifacts.mkdir(parents=True, exist_ok=True)
            self.home.artifacts.chmod(0o755)  # `Home.at` made the home around it private
            return [self.home.artifacts]
        return files_of(Path(document["path"]))

    def isolation_of(self, name: str) -> Isolation | None:
        """Return the isolation of a replica's process; None if unknown."""
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
        # The record is written first, so a crash in between leaves a process that can be found.
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
    """Return the replica's memory limit in bytes, from the size of its models and requests."""
    if "path" not in document:
        size = document["memory_bytes"]
    else:
        size = sum(map(size_bytes, files_of(Path(document["path"]))))
    return data_limit(size, max_body_bytes=document.get("max_body_bytes", DEFAULT_MAX_BODY_BYTES))


def _ended(record: ReplicaRecord, deaths: int) -> ReplicaRecord:
    """Return `record` for a replica whose process has ended and whose crash is counted."""
    return msgspec.structs.replace(record, pid=0, start_ticks=0, deaths=deaths)
