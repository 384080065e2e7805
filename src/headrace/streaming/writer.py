"""Writer of a stream's results: an answer for a record, or by policy a dead letter, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from headrace.core import Code, HeadraceError
from headrace.core.spec_stream_parts import Policy, Timestamps
from headrace.streaming.codec import Answer
from headrace.streaming.dead_letters import ATTEMPTS, answer_id, answer_id_prefix, dead_letter
from headrace.streaming.in_flight import NoAnswer, Outcome
from headrace.streaming.records import NewRecord, Place, Record
from headrace.streaming.settings import StreamSettings

Result = Answer | HeadraceError | None
"""The result of scoring one record; None for a record that is done with, and has no answer."""


class TooOldError(HeadraceError):
    """A record was written longer ago than its stream scores."""

    code = Code.DEADLINE_EXCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Makes what is written of results. Holds no state."""

    stream: str
    sink: str
    dead_letters: str
    policy: Policy
    headers: frozenset[str] | Literal["all"]
    """Input headers that answers copy: by name, or all."""
    timestamps: Timestamps = Timestamps.SOURCE

    def outcomes(
        self, records: Sequence[Record], results: Sequence[Result], *, attempts: int, now_s: float
    ) -> list[Outcome]:
        """What came of each record.

        Args:
            attempts: How often they were tried.
            now_s: Unix time.
        """
        outcomes: list[Outcome] = []
        add = outcomes.append
        sink, keeps_time = self.sink, self.timestamps is Timestamps.SOURCE
        place: Place | None = None
        prefix = ""
        for record, result in zip(records, results, strict=True):
            if result is None:
                add(None)
            elif not isinstance(result, Answer):
                add(self.failed(record, result, attempts=attempts, now_s=now_s))
            elif record.headers:
                add(self._with_headers(record, result))
            else:  # nearly all of them: without a call
                if record.place is not place:
                    place = record.place
                    prefix = answer_id_prefix(self.stream, place)
                at_s = record.timestamp_s
                add(
                    NewRecord(
                        topic=sink,
                        key=result.key,
                        value=result.value,
                        timestamp_s=at_s if keeps_time and at_s > 0 else None,
                        id=f"{prefix}{record.offset}",
                    )
                )
        return outcomes

    def failed(
        self, record: Record, error: HeadraceError, *, attempts: int, now_s: float
    ) -> NoAnswer:
        """What comes of a record that has no answer; one that is too old stops nothing."""
        match self.policy:
            case Policy.DEAD_LETTER:
                letter = dead_letter(
                    record,
                    error,
                    topic=self.dead_letters,
                    stream=self.stream,
                    attempts=attempts,
                    now_s=now_s,
                )
                return NoAnswer(error=error, letter=letter)
            case Policy.SKIP:
                return NoAnswer(error=error)
            case Policy.STOP:
                return NoAnswer(error=error, stops=not isinstance(error, TooOldError))
            case other:
                assert_never(other)

    def _with_headers(self, record: Record, answer: Answer) -> NewRecord:
        wanted = self.headers
        keeps_time = self.timestamps is Timestamps.SOURCE and record.timestamp_s > 0
        return NewRecord(
            topic=self.sink,
            key=answer.key,
            value=answer.value,
            headers=tuple(
                header
                for header in record.headers
                # How often the input was tried is no fact of its answer.
                if header[0] != ATTEMPTS and (wanted == "all" or header[0] in wanted)
            ),
            timestamp_s=record.timestamp_s if keeps_time else None,
            id=answer_id(self.stream, record),
        )


def writer_of(settings: StreamSettings) -> Writer:
    """What writes the results of a stream."""
    headers = settings.output.headers
    return Writer(
        stream=settings.name,
        sink=settings.sink,
        dead_letters=settings.dead_letters,
        policy=settings.errors.policy,
        headers=headers if headers == "all" else frozenset(headers),
        timestamps=settings.output.timestamps,
    )
