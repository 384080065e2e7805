"""Conversion of scoring results to output records: answers, dead letters or nothing, by policy."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, assert_never

from headrace.core import Code, HeadraceError, InvalidArgumentError
from headrace.core.spec.stream_parts import FailurePolicy, Timestamps
from headrace.streaming.codec import EncodedAnswer
from headrace.streaming.dead_letters import ATTEMPTS, dead_letter, size_bytes
from headrace.streaming.in_flight import FailedRecord, Outcome
from headrace.streaming.records import Header, NewRecord, Record
from headrace.streaming.settings import WorkerSettings

Result = EncodedAnswer | HeadraceError | None
"""Result of scoring one record; None for a record that needs no answer."""
NO_LIMITS: Final[Mapping[str, int]] = MappingProxyType({})


class TooOldError(HeadraceError):
    """The record is older than the stream's `max_age_s`."""

    code = Code.DEADLINE_EXCEEDED


class ResultWriter:
    """Converts results to output records. Stateless.

    Args:
        limits: Largest record in bytes of each topic; an absent topic has no known limit.
    """

    def __init__(self, settings: WorkerSettings, limits: Mapping[str, int] = NO_LIMITS) -> None:
        self._limits = limits
        self._stream = settings.name
        self._sink = settings.sink
        self._dead_letters = settings.dead_letters
        self._policy = settings.errors.policy
        self._headers = settings.output.headers
        self._copies_timestamp = settings.output.timestamps is Timestamps.SOURCE

    def outcomes(
        self, records: Sequence[Record], results: Sequence[Result], *, attempts: int, now_s: float
    ) -> list[Outcome]:
        """Return the outcome of each record.

        Args:
            attempts: How often the records were tried.
            now_s: Unix time.
        """
        outcomes: list[Outcome] = []
        add = outcomes.append
        sink, copies_timestamp = self._sink, self._copies_timestamp
        limit_bytes = self._limits.get(sink, math.inf)
        for record, result in zip(records, results, strict=True):
            if not isinstance(result, EncodedAnswer):
                add(
                    None
                    if result is None
                    else self.failed(record, result, attempts=attempts, now_s=now_s)
                )
                continue
            at_s = record.timestamp_s
            key, value = result.key, result.value
            answer = NewRecord(
                topic=sink,
                key=key,
                value=value,
                headers=self._passed_on(record.headers) if record.headers else (),
                timestamp_s=at_s if copies_timestamp and at_s > 0 else None,
                source=record,
            )
            size = len(value or b"") + len(key or b"")  # in most cases without a call
            if answer.headers:
                size = size_bytes(answer)
            if size > limit_bytes:
                error = InvalidArgumentError(
                    f"the answer has {size} bytes, but topic '{sink}' takes records of up to "
                    f"{limit_bytes} bytes"
                )
                add(self.failed(record, error, attempts=attempts, now_s=now_s))
                continue
            add(answer)
        return outcomes

    def failed(
        self, record: Record, error: HeadraceError, *, attempts: int, now_s: float
    ) -> FailedRecord:
        """Return the outcome of a record without an answer; one that is too old stops nothing."""
        match self._policy:
            case FailurePolicy.DEAD_LETTER:
                letter = dead_letter(
                    record,
                    error,
                    topic=self._dead_letters,
                    stream=self._stream,
                    attempts=attempts,
                    now_s=now_s,
                    limit_bytes=self._limits.get(self._dead_letters),
                )
                return FailedRecord(error=error, dead_letter=letter)
            case FailurePolicy.SKIP:
                return FailedRecord(error=error)
            case FailurePolicy.STOP:
                return FailedRecord(error=error, stops=not isinstance(error, TooOldError))
            case other:
                assert_never(other)

    def _passed_on(self, headers: Sequence[Header]) -> tuple[Header, ...]:
        names = self._headers
        # The number of attempts belongs to the input, not to its answer.
        return tuple(h for h in headers if h[0] != ATTEMPTS and (names == "all" or h[0] in names))
