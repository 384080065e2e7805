"""Several versions on one stream: a canary answers for some keys, a shadow for nobody.

All of them are asked by the thread that has the batch, one after the other. A shadow costs its
time; its errors cost nothing: it is left alone for a while after one that says it is away.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from headrace.core import HeadraceError
from headrace.streaming.answering import Answers, Counted
from headrace.streaming.arms import Arm, ArmRun, difference, is_chosen
from headrace.streaming.codec import NOTHING_ADDED, Added, Answer
from headrace.streaming.formats import Format
from headrace.streaming.outcomes import Result
from headrace.streaming.records import Record
from headrace.streaming.settings import CanarySettings, ShadowSettings

_log = logging.getLogger(__name__)

REST_S: Final = 5.0
"""So long a shadow that is away is not asked again."""


class ByKey:
    """Which records are a canary's."""

    def __init__(self, settings: CanarySettings, *, stream: str, reads: Format | None) -> None:
        self._percent = settings.percent
        self._salt = settings.salt or stream
        self._key = settings.key
        self._reads = reads

    def chosen(self, records: Sequence[Record]) -> list[bool]:
        """Whether each one is; one without a key is taken by where it lies."""
        keys = [record.key for record in records] if self._reads is None else self._keys(records)
        return [
            is_chosen(
                key if key is not None else _where(record), salt=self._salt, percent=self._percent
            )
            for key, record in zip(keys, records, strict=True)
        ]

    def _keys(self, records: Sequence[Record]) -> list[bytes | None]:
        assert self._reads is not None
        fields = self._reads.decode(records)
        column = iter(fields.columns[self._key])
        return [None if at in fields.errors else _key(next(column)) for at in range(len(records))]


class Versions:
    """A version that answers, and one that takes some of its records. See `Answers`."""

    def __init__(self, arms: tuple[Answers, Answers], names: tuple[str, str], by: ByKey) -> None:
        self._arms = arms
        self._names = names
        self._by = by
        self._runs: list[ArmRun] = []

    def answer(
        self, records: Sequence[Record], *, now_s: float, added: Added = NOTHING_ADDED
    ) -> list[Result]:
        """As `Answers`; each answer has its version."""
        chosen = self._by.chosen(records)
        results: list[Result] = [None] * len(records)
        for arm, wanted in ((0, False), (1, True)):
            places = [at for at, one in enumerate(chosen) if one is wanted]
            if not places:
                continue
            some = [records[at] for at in places]
            started = time.perf_counter()
            found = self._arms[arm].answer(some, now_s=now_s, added=added.of(places))
            seconds = time.perf_counter() - started
            name = self._names[arm]
            self._runs.append(
                ArmRun(
                    arm=Arm.CANARY if wanted else Arm.PRIMARY,
                    version=name,
                    records=len(some),
                    errors=sum(isinstance(one, HeadraceError) for one in found),
                    seconds=seconds,
                )
            )
            for at, one in zip(places, found, strict=True):
                results[at] = replace(one, version=name) if isinstance(one, Answer) else one
        return results

    def count(self) -> Counted:
        """As `Answers`."""
        counts = [arm.count() for arm in self._arms]
        runs, self._runs = self._runs, []
        return Counted(
            sum(one.runs for one in counts), sum(one.rows for one in counts), tuple(runs)
        )


class Shadowed:
    """Answers, and what a shadow would have said. See `Answers`.

    Both have to keep their outputs. `clock`: monotonic.
    """

    def __init__(
        self,
        inner: Answers,
        shadow: Answers,
        settings: ShadowSettings,
        *,
        version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner, self._shadow = inner, shadow
        self._settings = settings
        self._version = version
        self._clock = clock
        self._rests_until = -math.inf
        self._runs: list[ArmRun] = []

    def answer(
        self, records: Sequence[Record], *, now_s: float, added: Added = NOTHING_ADDED
    ) -> list[Result]:
        """As `Answers`; nothing of the shadow can spoil it."""
        results = self._inner.answer(records, now_s=now_s, added=added)
        places = [at for at, one in enumerate(results) if isinstance(one, Answer)]
        if not places:
            return results
        if self._clock() < self._rests_until:
            self._tell(skipped=len(places))
            return results
        started = time.perf_counter()
        try:
            some = [records[at] for at in places]
            shadows = self._shadow.answer(some, now_s=now_s, added=added.of(places))
        except HeadraceError as error:
            self._rests_until = self._clock() + REST_S
            _log.warning("the shadow is left alone for %g s: %s", REST_S, error)
            self._tell(records=len(places), errors=len(places))
            return results
        self._compare(results, places, shadows, time.perf_counter() - started)
        return results

    def count(self) -> Counted:
        """As `Answers`; the shadow's runs are not the stream's."""
        counted = self._inner.count()
        self._shadow.count()
        runs, self._runs = self._runs, []
        return counted._replace(arms=(*counted.arms, *runs))

    def _compare(
        self,
        results: list[Result],
        places: Sequence[int],
        shadows: Sequence[Result],
        seconds: float,
    ) -> None:
        compared = agreed = errors = 0
        largest = 0.0
        for at, shadow in zip(places, shadows, strict=True):
            answer = results[at]
            if not isinstance(shadow, Answer):
                errors += 1
                continue
            assert isinstance(answer, Answer)
            apart = difference(answer.outputs or {}, shadow.outputs or {})
            compared += 1
            agreed += apart <= self._settings.tolerance
            largest = max(largest, apart)
            if self._settings.sink:
                results[at] = replace(answer, shadow=replace(shadow, version=self._version))
        self._runs.append(
            ArmRun(
                arm=Arm.SHADOW,
                version=self._version,
                records=len(places),
                errors=errors,
                seconds=seconds,
                compared=compared,
                agreed=agreed,
                difference=largest,
            )
        )

    def _tell(self, *, records: int = 0, errors: int = 0, skipped: int = 0) -> None:
        run = ArmRun(
            arm=Arm.SHADOW, version=self._version, records=records, errors=errors, skipped=skipped
        )
        self._runs.append(run)


def _where(record: Record) -> bytes:
    topic, partition = record.place
    return f"{topic}/{partition}/{record.offset}".encode()


def _key(value: object) -> bytes | None:
    """As a caller would write it in a header; None for what is no key."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).encode(errors="surrogatepass")
