"""What is written for a record: its answer, or by the stream's policy what takes its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from headrace.core import Code, HeadraceError
from headrace.streaming.codec import Answer
from headrace.streaming.dead_letters import ATTEMPTS, answer_id, answer_id_prefix, dead_letter
from headrace.streaming.ledger import NoAnswer, Outcome
from headrace.streaming.records import NewRecord, Place, Record
from headrace.streaming.settings import Policy, StreamSettings, Timestamps

Result = Answer | HeadraceError | None
"""What a model came to for one record; None for a record that is done with, and has no answer."""
VERSION: Final = "headrace-version"
"""The header of an answer that says which version it is of, where a stream has several."""
_OF_THE_INPUT: Final = frozenset({VERSION, ATTEMPTS})
"""Headers that say how the input record was made, which is wrong for its answer."""


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
    shadow: str = ""

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
                add(())
            elif not isinstance(result, Answer):
                add(self.failed(record, result, attempts=attempts, now_s=now_s))
            elif result.shadow is not None or result.version or record.headers:
                add(self._answer(record, result))
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

    def _answer(self, record: Record, answer: Answer) -> Outcome:
        mine = self._record(record, answer, self.sink, answer_id(self.stream, record))
        if answer.shadow is None or not self.shadow:
            return mine
        id_ = f"{answer_id(self.stream, record)}/shadow"
        return mine, self._record(record, answer.shadow, self.shadow, id_)

    def _record(self, record: Record, answer: Answer, topic: str, id_: str) -> NewRecord:
        headers = record.headers
        if headers:
            wanted = self.headers
            headers = tuple(
                header
                for header in headers
                if header[0] not in _OF_THE_INPUT and (wanted == "all" or header[0] in wanted)
            )
        if answer.version:
            headers = (*headers, (VERSION, answer.version.encode()))
        keeps_time = self.timestamps is Timestamps.SOURCE and record.timestamp_s > 0
        return NewRecord(
            topic=topic,
            key=answer.key,
            value=answer.value,
            headers=headers,
            timestamp_s=record.timestamp_s if keeps_time else None,
            id=id_,
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
        shadow="" if settings.shadow is None else settings.shadow.sink,
    )
