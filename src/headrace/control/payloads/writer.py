"""Writer thread of sampled payloads.

Its queue is bounded. Further samples are dropped and counted, so a slow or full disk loses samples
and nothing else.
"""

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.control.payloads.files import (
    OPEN,
    PARTIAL,
    close_stream,
    file_name,
    hash_key,
    open_private,
    remove_oldest,
)
from headrace.core import Clock
from headrace.core.spec.observe import PayloadLogSpec
from headrace.observe.metrics import Family, counter
from headrace.serving.telemetry.report import PayloadSample

if TYPE_CHECKING:
    import pyarrow as pa

_LOG: Final = logging.getLogger("headrace.control")
_MAX_WAITING: Final = 8192
_MAX_WAITING_BYTES: Final = 64 << 20
_POLL_INTERVAL_S: Final = 1.0
_STOP_S: Final = 10.0
_COMPLAIN_S: Final = 60.0
_TIDY_S: Final = 60.0
_OVERHEAD_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    endpoint: str
    version: str
    settings: PayloadLogSpec
    samples: Sequence[PayloadSample]
    size_bytes: int


@dataclass(slots=True, kw_only=True)
class _Stream:
    """An open file; `sink` and `writer` are pyarrow's."""

    path: Path
    opened_at: float
    settings: PayloadLogSpec
    sink: "pa.NativeFile"
    writer: "pa.RecordBatchWriter"
    schema: "pa.Schema"


@dataclass(slots=True, kw_only=True)
class PayloadWriter:
    """Writes samples into files below `root`. `add` and `lost` may be called from any thread."""

    root: Path
    clock: Clock
    written: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Dropped samples by endpoint and reason: `replica` or `queue` full, or `disk` failed."""
    _waiting: deque[_Work] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _waiting_samples: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _is_stopping: bool = False
    _streams: dict[tuple[str, str], _Stream] = field(default_factory=dict)
    _complained_at: float = -_COMPLAIN_S

    def add(
        self,
        endpoint: str,
        version: str,
        settings: PayloadLogSpec,
        samples: Sequence[PayloadSample],
    ) -> None:
        """Queue samples for writing; drop and count them if the queue is full."""
        size_bytes = sum(map(_size_of, samples))
        with self._changed:
            is_full = (
                self._waiting_samples + len(samples) > _MAX_WAITING
                or self._waiting_bytes + size_bytes > _MAX_WAITING_BYTES
            )
            if is_full or self._is_stopping:
                self.dropped[endpoint, "queue"] += len(samples)
                return
            self._waiting.append(
                _Work(
                    endpoint=endpoint,
                    version=version,
                    settings=settings,
                    samples=samples,
                    size_bytes=size_bytes,
                )
            )
            self._waiting_bytes += size_bytes
            self._waiting_samples += len(samples)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="payloads", daemon=True)
                self._thread.start()
            self._changed.notify()

    def lost(self, endpoint: str, count: int) -> None:
        """Count samples that a replica dropped."""
        with self._changed:
            self.dropped[endpoint, "replica"] += count

    def stop(self) -> None:
        """Write the queued samples and close all files, for some seconds at most. Blocking."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def written_of(self, endpoint: str) -> int:
        """Return the number of written samples of an endpoint."""
        with self._changed:
            return self.written[endpoint]

    def dropped_of(self, endpoint: str) -> int:
        """Return the number of dropped samples of an endpoint, for all reasons."""
        with self._changed:
            return sum(n for (name, _), n in self.dropped.items() if name == endpoint)

    def families(self) -> list[Family]:
        """Return the counters as metrics."""
        with self._changed:
            written, dropped = dict(self.written), dict(self.dropped)
        return [
            counter(
                "headrace_payload_log_written_total",
                "Requests whose payload was written.",
                [((("endpoint", name),), count) for name, count in written.items()],
            ),
            counter(
                "headrace_payload_log_dropped_total",
                "Sampled requests whose payload was not written, because the disk is too slow.",
                [
                    ((("endpoint", name), ("reason", reason)), count)
                    for (name, reason), count in dropped.items()
                ],
            ),
        ]

    # Methods below run on the thread.

    def _run(self) -> None:
        tidied_at = -_TIDY_S
        while True:
            now = time.monotonic()
            if now - tidied_at >= _TIDY_S:
                tidied_at = now
                self._close_left_open()
            work = self._next()
            if work is not None:
                self._write(work)
            now = time.monotonic()
            for key, stream in list(self._streams.items()):
                if now - stream.opened_at >= stream.settings.max_age_s:
                    self._close(key)
            if work is None and self._is_stopping:
                for key in list(self._streams):
                    self._close(key)
                return

    def _close_left_open(self) -> None:
        """Close streams that a killed process or a full disk left, and remove unfinished files."""
        for path in self.root.glob(f"*/*{PARTIAL}"):
            path.unlink(missing_ok=True)
        for path in {*self.root.glob(f"*/*{OPEN}")} - self._in_use():
            try:
                close_stream(path)
            except Exception as error:  # noqa: BLE001  # a supervisor's edge: tried again later
                self._complain(path.parent.name, error)

    def _in_use(self) -> set[Path]:
        return {stream.path for stream in self._streams.values()}

    def _next(self) -> _Work | None:
        """Return the next work item; None after a timeout."""
        with self._changed:
            if not self._waiting and not self._is_stopping:
                self._changed.wait(_POLL_INTERVAL_S)
            if not self._waiting:
                return None
            work = self._waiting.popleft()
            self._waiting_bytes -= work.size_bytes
            self._waiting_samples -= len(work.samples)
            return work

    def _write(self, work: _Work) -> None:
        from headrace.control.payloads.columns import record_batches  # noqa: PLC0415  # pyarrow

        key = (work.endpoint, work.version)
        left = len(work.samples)
        try:
            for batch in record_batches(
                work.version, work.samples, work.settings, hash_key(self.root)
            ):
                stream = self._stream(key, work.settings, batch.schema)
                stream.writer.write_batch(batch)
                left -= batch.num_rows
                with self._changed:
                    self.written[work.endpoint] += batch.num_rows
                if stream.sink.tell() >= work.settings.max_file_bytes:
                    self._close(key)
        except Exception as error:  # noqa: BLE001  # a supervisor's edge: later samples may fit
            with self._changed:
                self.dropped[work.endpoint, "disk"] += left
            self._complain(work.endpoint, error)
            self._close(key)

    def _stream(
        self, key: tuple[str, str], settings: PayloadLogSpec, schema: "pa.Schema"
    ) -> _Stream:
        """Return the open file for these columns."""
        stream = self._streams.get(key)
        if stream is not None and stream.schema == schema:
            stream.settings = settings
            return stream
        if stream is not None:
            self._close(key)
        import pyarrow as pa  # noqa: PLC0415  # the extra `data`

        endpoint, version = key
        name = file_name(version, self.clock.now())
        path = self.root / endpoint / f"{name}{OPEN}"
        os.close(open_private(path))
        # It has no buffer, so a killed process loses nothing, and it continues after a short
        # write: a Python file would not, and a nearly full disk would truncate the stream.
        sink = pa.OSFile(str(path), "w")
        opened = _Stream(
            path=path,
            opened_at=time.monotonic(),
            settings=settings,
            sink=sink,
            writer=pa.ipc.new_stream(sink, schema),
            schema=schema,
        )
        self._streams[key] = opened
        return opened

    def _close(self, key: tuple[str, str]) -> None:
        """Convert the stream to a Parquet file, and remove the oldest files."""
        stream = self._streams.pop(key, None)
        if stream is None:
            return
        for step in (stream.writer.close, stream.sink.close, partial(close_stream, stream.path)):
            try:
                step()
            except Exception as error:  # noqa: BLE001  # as above; steps are independent
                self._complain(key[0], error)
        remove_oldest(
            stream.path.parent,
            most_bytes=stream.settings.max_total_bytes,
            in_use=self._in_use(),
        )

    def _complain(self, endpoint: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_S:
            self._complained_at = now
            extra = {"endpoint": endpoint, "error": str(error)}
            _LOG.error("cannot write the payload log", extra=extra)


def _size_of(sample: PayloadSample) -> int:
    tensors = (*sample.inputs, *sample.outputs)
    return _OVERHEAD_BYTES + sum(len(t.data) + sum(map(len, t.items)) for t in tensors)
