"""Conversion of scoring results to output records: answers, dead letters or nothing, by policy."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, assert_never

from headrace.core import Code, HeadraceError, InvalidArgumentError
from headrace.core.spec.stream_parts import FailurePolicy, Timestamps
from headrace.streaming.codec import EncodedAnswer
from headrace.streaming.dead_letters import (
    ATTEMPTS,
    dead_letter,
    size_bytes,
)
from headrace.streaming.in_flight import FailedRecord, Outcome
from headrace.streaming.records import NewRecord, Record
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
            if result is None:
                add(None)
            elif not isinstance(result, EncodedAnswer):
                add(self.failed(record, result, attempts=attempts, now_s=now_s))
            elif record.headers or len(result.value or b"") + len(result.key or b"") > limit_bytes:
                answer = self._with_headers(record, result)
                if size_bytes(answer) <= limit_bytes:
                    add(answer)
                    continue
                error = InvalidArgumentError(
                    f"the answer has {size_bytes(answer)} bytes, but topic '{sink}' takes records "
                    f"of up to {limit_bytes} bytes"
                )
                add(self.failed(record, error, attempts=attempts, now_s=now_s))
            else:  # the usual case, inline for speed
                at_s = record.timestamp_s
                add(
                    NewRecord(
                        topic=sink,
                        key=result.key,
                        value=result.value,
                        timestamp_s=at_s if copies_timestamp and at_s > 0 else None,
                        source=record,
                    )
                )
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

    def _with_headers(self, record: Record, answer: EncodedAnswer) -> NewRecord:
        passed_on = self._headers
        copies_timestamp = self._copies_timestamp and record.timestamp_s > 0
        return NewRecord(
            topic=self._sink,
            key=answer.key,
            value=answer.value,
            headers=tuple(
                header
                for header in record.headers
                # The number of attempts belongs to the input, not to its answer.
                if header[0] != ATTEMPTS and (passed_on == "all" or header[0] in passed_on)
            ),
            timestamp_s=record.timestamp_s if copies_timestamp else None,
            source=record,
        )
