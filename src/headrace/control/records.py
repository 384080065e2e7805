"""Records of replicas, by which the next control plane recognises their processes."""

import hashlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.home import Home
from headrace.control.ownership import HomeIdentity
from headrace.core.files import write_atomic
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


class RecordStore:
    """Reads and writes the records of one home; each write is atomic."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def settings_path(self, name: str) -> Path:
        """The settings file of the replica called `name`."""
        return self._home.replica_settings / f"{name}.json"

    def write_settings(self, name: str, data: bytes) -> None:
        """Keep what the replica called `name` is told."""
        write_atomic(self.settings_path(name), data, durable=False)

    def write(self, record: ReplicaRecord) -> None:
        """Keep `record`."""
        write_atomic(self._path(record.name), msgspec.json.encode(record), durable=False)

    def read_all(self) -> list[ReplicaRecord]:
        """Every record by serial; unreadable ones are removed."""
        found = []
        for path in self._home.records.glob("*.json"):
            record = StateFile(path, ReplicaRecord, "the record of a replica").load()
            if record is None:
                path.unlink(missing_ok=True)
            else:
                found.append(record)
        return sorted(found, key=lambda record: record.serial)

    def remove(self, name: str) -> None:
        """Drop the record and settings of a replica that is gone."""
        self._path(name).unlink(missing_ok=True)
        self.settings_path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._home.records / f"{name}.json"


def digest_of(data: bytes) -> str:
    """SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
