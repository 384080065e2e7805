"""A canary answers for its keys, a shadow spoils nothing, and each is counted."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from headrace.core import (
    HeadraceError,
    InvalidArgumentError,
    ReplicaSettings,
    RuntimeFailedError,
    Tensors,
    UnavailableError,
)
from headrace.scoring.scorer import Scorer
from headrace.streaming.answering import Answerer, Answers
from headrace.streaming.arms import Arm, ArmRun, is_chosen
from headrace.streaming.assembling import Scorers, make_answers
from headrace.streaming.codec import Answer
from headrace.streaming.codecs import make_codec
from headrace.streaming.outcomes import VERSION, writer_of
from headrace.streaming.records import NewRecord, Record
from headrace.streaming.settings import (
    CanarySettings,
    FormatKind,
    FormatSettings,
    ShadowSettings,
    StreamSettings,
    check_settings,
)
from headrace.streaming.versions import REST_S, Shadowed
from tests.unit.streaming.parts import MATRIX, Adder, record, scorer

MODEL = ReplicaSettings(model_name="m", model_version="1", path="m.onnx")


class Plus(Adder):
    """The sum of each row, and something."""

    def __init__(self, more: float, error: HeadraceError | None = None) -> None:
        super().__init__(MATRIX, error)
        self.more = more

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        return {"sum": super().run(inputs, outputs)["sum"] + np.float32(self.more)}


def settings(
    canary: CanarySettings | None = None, shadow: ShadowSettings | None = None
) -> StreamSettings:
    return StreamSettings(
        name="s",
        broker="log:x",
        topics=["in"],
        sink="out",
        dead_letters="dead",
        group="g",
        member="m",
        model=MODEL,
        canary=canary,
        shadow=shadow,
        model_threads=1,
    )


def version(number: str, model: Plus) -> Scorer:
    found = scorer(MATRIX, model=model)
    found.version = number
    return found


def answers(
    said: StreamSettings, canary: Plus | None = None, shadow: Plus | None = None
) -> Answers:
    (found,) = make_answers(
        said,
        Scorers(
            primary=version("1", Plus(0)),
            canary=None if canary is None else version("2", canary),
            shadow=None if shadow is None else version("3", shadow),
        ),
    )
    return found


def rows(count: int) -> list[Record]:
    return [
        record(
            msgspec.json.encode({"x": [at, 0, 0], "user": f"u{at}", "n": at}),
            offset=at,
            key=b"key-%d" % at if at % 5 else None,
        )
        for at in range(count)
    ]


def sums(results: Sequence[object]) -> list[float]:
    return [
        msgspec.json.decode(one.value or b"")["sum"] if isinstance(one, Answer) else np.nan
        for one in results
    ]


@pytest.mark.parametrize("key", ["", "user", "n", "none"])
def test_a_canary_answers_for_its_keys(key: str) -> None:
    said = settings(CanarySettings(model=MODEL, percent=40, key=key, salt="x"))
    found = answers(said, canary=Plus(1000))
    records = rows(50)
    results = found.answer(records, now_s=0.0)

    units = {
        "": [one.key or b"in/0/%d" % one.offset for one in records],
        "user": [b"u%d" % at for at in range(50)],
        "n": [b"%d" % at for at in range(50)],
        "none": [b"in/0/%d" % at for at in range(50)],
    }[key]
    chosen = [is_chosen(unit, salt="x", percent=40) for unit in units]
    assert 0 < sum(chosen) < 50
    assert sums(results) == [at + 1000 * one for at, one in enumerate(chosen)]
    assert [one.version for one in results if isinstance(one, Answer)] == [
        "2" if one else "1" for one in chosen
    ]
    runs = {run.arm: run.records for run in found.count().arms}
    assert runs == {Arm.PRIMARY: 50 - sum(chosen), Arm.CANARY: sum(chosen)}


def test_answers_say_their_version_in_a_header_that_nobody_else_can_set() -> None:
    said = settings(CanarySettings(model=MODEL, percent=100))
    said = msgspec.structs.replace(
        said, output=msgspec.structs.replace(said.output, headers=("kept", VERSION))
    )
    one = record(b'{"x": [1, 2, 3]}', headers=(("kept", b"yes"), (VERSION, b"forged")))
    results = answers(said, canary=Plus(0)).answer([one], now_s=0.0)
    (written,) = writer_of(said).outcomes([one], results, attempts=1, now_s=0.0)

    assert isinstance(written, NewRecord)
    assert written.headers == (("kept", b"yes"), (VERSION, b"2"))


def test_a_canary_that_is_away_is_waited_for() -> None:
    said = settings(CanarySettings(model=MODEL, percent=100))

    with pytest.raises(UnavailableError):
        answers(said, canary=Plus(0, UnavailableError("away"))).answer(rows(2), now_s=0.0)


def test_a_canary_whose_records_fail_costs_these_only() -> None:
    said = settings(CanarySettings(model=MODEL, percent=50, key="user"))
    found = answers(said, canary=Plus(0, RuntimeFailedError("no")))
    results = found.answer(rows(40), now_s=0.0)

    failed = sum(isinstance(one, HeadraceError) for one in results)
    runs = {run.arm: (run.records, run.errors) for run in found.count().arms}
    assert runs == {Arm.PRIMARY: (40 - failed, 0), Arm.CANARY: (failed, failed)}


def test_two_versions_of_one_name_are_refused() -> None:
    scorers = Scorers(primary=version("1", Plus(0)), canary=version("1", Plus(0)))

    with pytest.raises(InvalidArgumentError, match="both versions are called '1'"):
        make_answers(settings(CanarySettings(model=MODEL)), scorers)


def test_a_shadow_is_compared_and_answers_nobody() -> None:
    said = settings(shadow=ShadowSettings(model=MODEL, tolerance=0.5))
    found = answers(said, shadow=Plus(0.25))
    results = found.answer(rows(8), now_s=0.0)
    different = answers(said, shadow=Plus(2.0))
    different.answer([*rows(3), record(b"{")], now_s=0.0)

    (run,), (other,) = found.count().arms, different.count().arms
    assert sums(results) == list(range(8))
    assert all(one.shadow is None for one in results if isinstance(one, Answer))
    assert (run.arm, run.version) == (Arm.SHADOW, "3")
    assert (run.records, run.compared, run.agreed, run.difference) == (8, 8, 8, 0.25)
    assert (other.records, other.compared, other.agreed, other.difference) == (3, 3, 0, 2.0)


def test_a_shadow_with_a_sink_writes_there_too() -> None:
    said = settings(shadow=ShadowSettings(model=MODEL, sink="shadows"))
    records = rows(2)
    results = answers(said, shadow=Plus(1)).answer(records, now_s=0.0)
    outcomes = writer_of(said).outcomes(records, results, attempts=1, now_s=0.0)

    for at, outcome in enumerate(outcomes):
        assert isinstance(outcome, tuple)
        mine, other = outcome
        assert (mine.topic, other.topic) == ("out", "shadows")
        assert msgspec.json.decode(mine.value or b"") == {"sum": at}
        assert msgspec.json.decode(other.value or b"") == {"sum": at + 1}
        assert other.headers == ((VERSION, b"3"),)
        assert mine.id != other.id


def test_a_shadow_sees_which_version_answered() -> None:
    said = settings(
        CanarySettings(model=MODEL, percent=100), ShadowSettings(model=MODEL, sink="shadows")
    )
    (result,) = answers(said, canary=Plus(1), shadow=Plus(5)).answer(rows(1), now_s=0.0)

    assert isinstance(result, Answer)
    assert result.shadow is not None
    assert (result.version, result.shadow.version) == ("2", "3")


def test_a_shadow_that_fails_is_left_alone_for_a_while() -> None:
    now = 0.0
    told = ShadowSettings(model=MODEL, sink="shadows")
    shadow = Plus(0, UnavailableError("away"))
    primary, other = (
        Answerer(one, make_codec(settings(), one), max_batch_size=256, keeps_outputs=True)
        for one in (version("1", Plus(0)), version("3", shadow))
    )
    inner = Shadowed(primary, other, told, version="3", clock=lambda: now)

    seen: list[Sequence[ArmRun]] = []
    for now in (0.0, REST_S / 2, REST_S + 1):  # the clock reads it
        if now > REST_S:
            shadow.error = None
        assert sums(inner.answer(rows(3), now_s=0.0)) == [0.0, 1.0, 2.0]
        seen.append(inner.count().arms)

    figures = [(run.records, run.errors, run.skipped, run.compared) for (run,) in seen]
    assert figures == [(3, 3, 0, 0), (0, 0, 3, 0), (3, 0, 0, 3)]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (settings(CanarySettings(percent=5)), "canary: name one of model and endpoint"),
        (settings(CanarySettings(model=MODEL, percent=101)), "canary.percent is 0 to 100"),
        (
            msgspec.structs.replace(
                settings(CanarySettings(model=MODEL, key="k")),
                format=FormatSettings(kind=FormatKind.RAW),
            ),
            "canary.key names a field",
        ),
        (settings(shadow=ShadowSettings(model=MODEL, sink="out")), "is a topic of the stream"),
        (settings(shadow=ShadowSettings(model=MODEL, tolerance=-1.0)), "is not negative"),
        (settings(shadow=ShadowSettings(model=MODEL, tolerance=float("nan"))), "is not negative"),
        (msgspec.structs.replace(settings(), sink=""), "sink names no topic"),
        (msgspec.structs.replace(settings(), model=None), "name one of model and endpoint"),
    ],
)
def test_versions_that_cannot_work_are_refused(said: StreamSettings, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        check_settings(said)
