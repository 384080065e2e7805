"""Thread that writes a sample of served values beside the requests, which never wait for it."""

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
_COMPLAIN_S: Final = 60.0
_US: Final = 1_000_000
_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSample:
    """Some rows of one read, `count` of them; arrays are copies."""

    at: float
    keys: Mapping[str, Sequence[object]]
    rows: FeatureRows
    count: int


class ServedFeaturesWriter:
    """Writes a sample of what a service gave into files of bounded size. Safe for threads.

        writer = ServedFeaturesWriter(service, served_directory(home, service.name), ratio=0.01)
        rows = reader.read(keys, values=values)
        writer.add(time, keys, rows)        # some microseconds; never waits, never raises
        ...
        writer.stop()                       # writes what waits, for 5 s at most

    `add` copies the rows that it takes, so arrays may be changed afterwards. What waits is bounded:
    beyond that, and where the disk takes nothing, rows are dropped and counted in `dropped` by
    `queue` and `disk`; `written` counts the others. Several replicas may write to one directory,
    each into files of its own; the oldest go when all take more than `max_total_bytes`. The thread
    begins with the first row.

    Args:
        ratio: Of reads, 0 to 1; which ones is evenly spread.
        rows_of_read: At most so many rows of each read are taken, evenly spread.
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
        self._complained_at = -_COMPLAIN_S

    def add(
        self, now: float, keys: Mapping[str, Sequence[object] | Array], rows: FeatureRows
    ) -> None:
        """Take a sample of one read.

        Args:
            now: When it was served, in Unix time; the time of the read counts if `rows` has it.
            keys: As they were given to `FeatureReader.read`.
        """
        with self._changed:
            if not self._share.takes():
                return
            count = len(next(iter(rows.columns.values()), ()))
            taken = min(count, self._rows_of_read)
            if self._is_stopping or self._waiting_rows + taken > self._max_waiting_rows:
                self.dropped["queue"] += taken
                return
            self._waiting_rows += taken
        sample = served_sample(now, {name: keys[name] for name in self._keys}, rows, count, taken)
        with self._changed:
            if self._is_stopping:
                self.dropped["queue"] += taken
                return
            self._waiting.append(sample)
            if self._waiting_rows > self._max_waiting_rows // 2:
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="served", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Write what waits; after some seconds it is given up. Blocking; twice is once."""
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
                some = list(self._waiting)
                self._waiting.clear()
            if some:
                self._write(some)
        self._file.close()

    def _write(self, some: Sequence[ServedSample]) -> None:
        count = sum(sample.count for sample in some)
        try:
            encode = msgspec.json.Encoder().encode
            lines = [
                encode(row)
                for sample in some
                for row in served_rows(
                    self._service, self._hash, sample.at, sample.keys, sample.rows
                )
            ]
            self._file.append(b"".join([line + b"\n" for line in lines]))
        except Exception as error:  # noqa: BLE001  # a supervisor's edge: the next rows may fit
            with self._changed:
                self.dropped["disk"] += count
            now = time.monotonic()
            if now - self._complained_at >= _COMPLAIN_S:
                self._complained_at = now
                extra = {"directory": str(self._directory), "error": str(error)}
                _LOG.error("cannot write served features", extra=extra)
        else:
            with self._changed:
                self.written += count
        with self._changed:
            self._waiting_rows -= count


class EvenShare:
    """Takes a share of what comes, evenly spread, the first among it; `ratio` is 0 to 1."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._credit = 1.0 - ratio if ratio > 0.0 else 0.0

    def takes(self) -> bool:
        """Whether the one that comes now is taken."""
        self._credit += self.ratio
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


class ServedFile:
    """The file that is written now, and the bound of all beside it. For one thread."""

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
        self._made = 0

    def append(self, data: bytes) -> None:
        """Write whole lines; OSError if that fails."""
        if self._descriptor >= 0 and not os.fstat(self._descriptor).st_nlink:
            self.close()  # another replica made room
        if self._descriptor < 0:
            self._open()
        try:
            while data:
                written = os.write(self._descriptor, data)
                self._size_bytes += written
                data = data[written:]
        except OSError:
            self.close()  # what comes next begins on a line of its own
            raise
        if self._size_bytes >= self._max_file_bytes:
            self.close()

    def close(self) -> None:
        """End the file, if there is one."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_oldest()
        begin = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._made += 1
        path = self._directory / f"{begin}-{os.getpid():x}-{self._made:x}{SUFFIX}"
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
    at: float,
    keys: Mapping[str, Sequence[object]],
    rows: FeatureRows,
) -> list[ServedRow]:
    """Records of what was read."""
    at_us = round((rows.at or at) * _US)
    columns = {name: column.tolist() for name, column in rows.columns.items()}
    request = {name: column.tolist() for name, column in rows.request.items()}
    ages = {name: of_view.tolist() for name, of_view in rows.ages_s.items()}
    count = len(next(iter(columns.values()), ()))
    return [
        ServedRow(
            at_us=at_us,
            service=service,
            schema_hash=schema_hash,
            keys={name: _key(values[row]) for name, values in keys.items()},
            columns={name: plain(values[row]) for name, values in columns.items()},
            statuses={name: str(of_view[row]) for name, of_view in rows.statuses.items()},
            event_us={
                name: at_us - round(of_view[row] * _US)
                for name, of_view in ages.items()
                if of_view[row] == of_view[row]  # NaN: there was no record
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
    taken: int,
) -> ServedSample:
    """Copies of `taken` of the `count` rows of a read, evenly spread."""
    some = np.arange(taken) * count // max(taken, 1)
    listed = some.tolist()
    part = FeatureRows(
        columns={name: column[some] for name, column in rows.columns.items()},
        statuses={name: [of[i] for i in listed] for name, of in rows.statuses.items()},
        ages_s={name: of[some] for name, of in rows.ages_s.items()},
        reasons={},
        request={name: column[some] for name, column in rows.request.items()},
        at=rows.at,
    )
    flat = {n: v.reshape(-1) if isinstance(v, np.ndarray) else v for n, v in keys.items()}
    return ServedSample(
        at=now,
        keys={
            name: [v.item() if isinstance(v := values[i], np.generic) else v for i in listed]
            for name, values in flat.items()
        },
        rows=part,
        count=taken,
    )
