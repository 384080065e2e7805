"""Records of replicas and stream workers, by which the next control plane adopts them."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from headrace.control.home import Home
from headrace.control.ownership import HomeIdentity, ProcessOwner, RecordedProcess
from headrace.core.files import write_atomic
from headrace.core.processes import Process
from headrace.core.state_file import StateFile

_LOG: Final = logging.getLogger("headrace.control")


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as last started.

    `pid` is 0 between the record and the start of its process: who finds it so looks for a process
    with the replica's settings file. `settings_sha256` is the digest of that file. `network`: it
    may open connections.
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
