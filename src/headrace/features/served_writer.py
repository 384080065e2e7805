"""Background thread that logs a sample of served values; requests never wait for it."""

import contextlib
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.features.definitions import FeatureService
from headrace.features.lookup import FeatureRows
from headrace.features.served import SUFFIX, ServedRow, list_served, plain

_LOG: Final = logging.getLogger("headrace.features")
_FLUSH_S: Final = 1.0
_STOP_S: Final = 5.0
_LOG_INTERVAL_S: Final = 60.0
_US: Final = 1_000_000
_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSample:
    """Some rows of one read."""

    read_at: float
    """Unix time of the read."""

    keys: Mapping[str, Sequence[object]]

    rows: FeatureRows
    """Copies of the arrays."""

    count: int
    """Number of rows."""


class ServedFeaturesWriter:
    """Logs a sample of a service's rows into files of bounded size. Thread-safe.

        writer = ServedFeaturesWriter(service, served_directory(home, service.name), ratio=0.01)
        rows = reader.read(keys, values=values)
        writer.add(time, keys, rows)        # some microseconds; never blocks, never raises
        ...
        writer.stop()                       # writes pending rows, for 5 s at most

    `add` copies the rows it takes, so arrays may be changed afterwards. The queue is bounded: rows
    beyond the bound, or that cannot be written to disk, are dropped and counted in `dropped` by
    `queue` and `disk`; `written` counts the others. Several replicas may write to one directory,
    each into its own files; the oldest are deleted when all exceed `max_total_bytes`. The thread
    starts with the first row.

    Args:
        ratio: Share of reads, 0 to 1, evenly spread.
        rows_of_read: Maximum number of rows per read, evenly spread.
    """

    def __init__(
        self,
        service: FeatureService,
        directory: Path,
        *,
        ratio: float = 1.0,
        rows_of_read: int = 16,
        max_waiting_rows: int = 4096,
        max_file_bytes: int = 8 << 20,
        max_total_bytes: int = 64 << 20,
    ) -> None:
        self.written = 0
        self.dropped: Counter[str] = Counter()
        self._directory = directory
        self._service = service.name
        self._hash = service.schema_hash
        self._keys = [entity.join_key for entity in service.entities]
        self._share = EvenShare(ratio)
        self._rows_of_read = rows_of_read
        self._max_waiting_rows = max_waiting_rows
        self._waiting: deque[ServedSample] = deque()
        self._waiting_rows = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._file = ServedFile(directory, max_file_bytes, max_total_bytes)
        self._logged_at = -_LOG_INTERVAL_S

    def add(
        self, now: float, keys: Mapping[str, Sequence[object] | Array], rows: FeatureRows
    ) -> None:
        """Take a sample of one read.

        Args:
            now: Time of serving, in Unix time; the time of the read takes precedence if set.
            keys: As passed to `FeatureReader.read`.
        """
        with self._changed:
            if not self._share.takes():
                return
            count = len(next(iter(rows.columns.values()), ()))
            sampled_rows = min(count, self._rows_of_read)
            if self._is_stopping or self._waiting_rows + sampled_rows > self._max_waiting_rows:
                self.dropped["queue"] += sampled_rows
                return
            self._waiting_rows += sampled_rows
        sample = served_sample(
            now, {name: keys[name] for name in self._keys}, rows, count, sampled_rows
        )
        with self._changed:
            if self._is_stopping:
                self.dropped["queue"] += sampled_rows
                return
            self._waiting.append(sample)
            if self._waiting_rows > self._max_waiting_rows // 2:
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="served", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Write pending rows; give up after some seconds. Blocking; idempotent."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    # On the thread

    def _run(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                if not self._is_stopping:
                    self._changed.wait(_FLUSH_S)
                is_last = self._is_stopping
                samples = list(self._waiting)
                self._waiting.clear()
            if samples:
                self._write(samples)
        self._file.close()

    def _write(self, samples: Sequence[ServedSample]) -> None:
        count = sum(sample.count for sample in samples)
        try:
            encode = msgspec.json.Encoder().encode
            lines = [
                encode(row)
                for sample in samples
                for row in served_rows(
                    self._service, self._hash, sample.read_at, sample.keys, sample.rows
                )
            ]
            self._file.append(b"".join([line + b"\n" for line in lines]))
        except Exception as error:  # noqa: BLE001  # a supervisor's edge: the next rows may fit
            with self._changed:
                self.dropped["disk"] += count
            now = time.monotonic()
            if now - self._logged_at >= _LOG_INTERVAL_S:
                self._logged_at = now
                extra = {"directory": str(self._directory), "error": str(error)}
                _LOG.error("cannot write served features", extra=extra)
        else:
            with self._changed:
                self.written += count
        with self._changed:
            self._waiting_rows -= count


class EvenShare:
    """Selects an evenly spread share of items, including the first; `ratio` is 0 to 1."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._credit = 1.0 - ratio if ratio > 0.0 else 0.0

    def takes(self) -> bool:
        """Whether the next item is selected."""
        self._credit += self.ratio
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


class ServedFile:
    """The current log file, and the size limit of its directory. For one thread."""

    def __init__(
        self,
        directory: Path,
        max_file_bytes: int = 8 << 20,
        max_total_bytes: int = 64 << 20,
    ) -> None:
        self._directory = directory
        self._max_file_bytes = max_file_bytes
        self._max_total_bytes = max_total_bytes
        self._descriptor = -1
        self._size_bytes = 0
        self._files_opened = 0

    def append(self, data: bytes) -> None:
        """Write whole lines; raise OSError if that fails."""
        if self._descriptor >= 0 and not os.fstat(self._descriptor).st_nlink:
            self.close()  # another replica deleted it to free space
        if self._descriptor < 0:
            self._open()
        try:
            while data:
                written = os.write(self._descriptor, data)
                self._size_bytes += written
                data = data[written:]
        except OSError:
            self.close()  # the next row begins on a new line
            raise
        if self._size_bytes >= self._max_file_bytes:
            self.close()

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_oldest()
        begin = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._files_opened += 1
        path = self._directory / f"{begin}-{os.getpid():x}-{self._files_opened:x}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, _PRIVATE)
        self._size_bytes = 0

    def _remove_oldest(self) -> None:
        sizes: dict[Path, int] = {}
        for path in list_served(self._directory):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._max_total_bytes - self._max_file_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def served_rows(
    service: str,
    schema_hash: str,
    served_at: float,
    keys: Mapping[str, Sequence[object]],
    rows: FeatureRows,
) -> list[ServedRow]:
    """Return the log records of the rows of a read."""
    at_us = round((rows.read_at or served_at) * _US)
    columns = {name: column.tolist() for name, column in rows.columns.items()}
    request = {name: column.tolist() for name, column in rows.request.items()}
    ages = {name: view_ages.tolist() for name, view_ages in rows.ages_s.items()}
    count = len(next(iter(columns.values()), ()))
    return [
        ServedRow(
            at_us=at_us,
            service=service,
            schema_hash=schema_hash,
            keys={name: _key(values[row]) for name, values in keys.items()},
            columns={name: plain(values[row]) for name, values in columns.items()},
            statuses={
                name: str(view_statuses[row]) for name, view_statuses in rows.statuses.items()
            },
            event_us={
                name: at_us - round(view_ages[row] * _US)
                for name, view_ages in ages.items()
                if view_ages[row] == view_ages[row]  # NaN: there was no record
            },
            request={name: plain(values[row]) for name, values in request.items()},
        )
        for row in range(count)
    ]


def _key(value: object) -> int | str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else int(value)  # type: ignore[call-overload]  # was read as a key


def served_sample(
    now: float,
    keys: Mapping[str, Sequence[object] | Array],
    rows: FeatureRows,
    count: int,
    sampled_count: int,
) -> ServedSample:
    """Return copies of some of the `count` rows of a read, evenly spread."""
    selected = np.arange(sampled_count) * count // max(sampled_count, 1)
    positions = selected.tolist()
    part = FeatureRows(
        columns={name: column[selected] for name, column in rows.columns.items()},
        statuses={
            name: [view_statuses[i] for i in positions]
            for name, view_statuses in rows.statuses.items()
        },
        ages_s={name: view_ages[selected] for name, view_ages in rows.ages_s.items()},
        reasons={},
        request={name: column[selected] for name, column in rows.request.items()},
        read_at=rows.read_at,
    )
    flat = {n: v.reshape(-1) if isinstance(v, np.ndarray) else v for n, v in keys.items()}
    return ServedSample(
        read_at=now,
        keys={
            name: [v.item() if isinstance(v := values[i], np.generic) else v for i in positions]
            for name, values in flat.items()
        },
        rows=part,
        count=sampled_count,
    )
