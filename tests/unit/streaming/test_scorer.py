"""Scoring of records, and the threads that do it."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Datatype,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
    RuntimeFailedError,
    SystemClock,
    UnavailableError,
)
from headrace.core.spec.stream_parts import FormatKind, StreamFormatSpec, StreamOutputSpec
from headrace.engine import PaddingPlan
from headrace.streaming.codec import NO_ADDED_FIELDS, Added, EncodedAnswer
from headrace.streaming.codecs import make_codec
from headrace.streaming.in_flight import ScoringBatch
from headrace.streaming.poll_loop import Finished
from headrace.streaming.records import NewRecord, Record
from headrace.streaming.scorer import Counted, ModelThreads, RecordScorer, Stages
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.writer import Result, TooOldError
from tests.unit.streaming import world
from tests.unit.streaming.formats.rows import avro_bytes, avro_record
from tests.unit.streaming.parts import (
    MATRIX,
    TOKENS,
    Adder,
    record,
    records,
    scorer,
    signature,
    spec,
)

JSON = StreamFormatSpec()
RAW = StreamFormatSpec(kind=FormatKind.RAW)
OIP = StreamFormatSpec(kind=FormatKind.OPEN_INFERENCE)


def settings(
    format_: StreamFormatSpec = JSON,
    *,
    output: StreamOutputSpec | None = None,
    sink: StreamFormatSpec | None = None,
) -> WorkerSettings:
    return world.settings(format=format_, sink_format=sink, output=output or StreamOutputSpec())


def answerer(
    of: ModelSignature,
    said: WorkerSettings | None = None,
    *,
    model: Adder | None = None,
    plan: PaddingPlan | None = None,
    max_batch_size: int = 256,
    max_age_s: float | None = None,
    forwards: bool = False,
) -> Stages:
    scores = scorer(of, plan=plan, model=model)
    codec = make_codec(said or settings(), scores)
    records = RecordScorer(scores, codec, max_batch_size=max_batch_size)
    return Stages(records, forwards=forwards, max_age_s=max_age_s)


def answers(of: ModelSignature, found: list[Record], **more: Any) -> list[Any]:  # noqa: ANN401  # as `answerer` takes them
    """Values as JSON, errors as texts."""
    return [shown(one) for one in answerer(of, **more).answer(found, now_s=1000.0)]


def shown(result: Result) -> Any:  # noqa: ANN401  # JSON
    return (
        msgspec.json.decode(result.value or b"")
        if isinstance(result, EncodedAnswer)
        else str(result)
    )


def test_objects_become_rows_and_rows_objects() -> None:
    found = answerer(MATRIX).answer(
        records(b'{"x": [1, 2, 3]}', b'{"x": [4.5, 0, 0], "more": {"a": [1]}}'), now_s=1000.0
    )

    assert found == [EncodedAnswer(b"k0", b'{"sum":6.0}'), EncodedAnswer(b"k1", b'{"sum":4.5}')]


@given(
    rows=st.lists(
        st.one_of(
            st.lists(st.integers(0, 50), min_size=3, max_size=3),
            st.lists(st.integers(-9, 50), max_size=5),
            st.sampled_from([None, "text", [1, "2", 3], [[1, 2, 3]], {"x": 1}, [1e39, 0, 0]]),
        ),
        min_size=1,
        max_size=20,
    ),
    max_records=st.integers(1, 8),
)
def test_each_good_row_is_answered_and_each_bad_one_is_told_why(
    rows: list[Any], max_records: int
) -> None:
    values = [msgspec.json.encode({"x": row}) for row in rows]
    found = answerer(MATRIX, max_batch_size=max_records).answer(records(*values), now_s=1000.0)

    for row, result in zip(rows, found, strict=True):
        is_good = (
            isinstance(row, list)
            and len(row) == 3
            and all(isinstance(one, int) and one >= 0 for one in row)
        )
        if is_good:
            assert shown(result) == {"sum": sum(row)}
        else:
            assert isinstance(result, HeadraceError)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b'{"x": "\xff"}', "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"{}", "missing required field `x`"),
        (b'{"x": [1, 2]}', "Expected [-1,3], got [1,2]"),
        (b'{"x": [1, 2, 1e40]}', "out of range for FP32"),
        (b'{"x": null}', "not readable as JSON"),
        (b'{"x": [1, 2, "1"]}', "not readable as JSON"),
        (b'{"x": [1, 1e999, NaN]}', "out of range"),
        (b'{"x": [1, NaN, "1"]}', "something else than numbers"),
        (b'{"x": [1, 2, -3]}', "a number is negative"),
    ],
)
def test_a_bad_record_costs_itself_only(value: bytes, text: str) -> None:
    good = b'{"x": [1, 1, 1]}'
    found = answerer(MATRIX).answer(records(good, value, good), now_s=1000.0)

    assert [shown(found[0]), shown(found[2])] == [{"sum": 3.0}] * 2
    assert isinstance(found[1], InvalidArgumentError)
    assert text in str(found[1])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20), st.booleans())
def test_records_without_a_value_change_no_answer_of_the_others(
    kinds: list[tuple[bool, bool]],
    forwards: bool,  # noqa: FBT001  # Hypothesis draws it
) -> None:
    """Records with a value are good or bad; records without one have a key or not."""
    values = {True: b'{"x": [1, 2, 3]}', False: b'{"x": "none"}'}
    mixed = [
        record(values[is_fine] if has_value else None, key=b"k" if is_fine else None)
        for has_value, is_fine in kinds
    ]
    stages = answerer(MATRIX, forwards=forwards)
    found = stages.answer(mixed, now_s=0.0)
    plain = stages.answer([one for one in mixed if one.value is not None], now_s=0.0)

    valued = [result for one, result in zip(mixed, found, strict=True) if one.value is not None]
    assert list(map(str, valued)) == list(map(str, plain))
    for one, result in zip(mixed, found, strict=True):
        if one.value is not None:
            continue
        if not forwards:
            assert result is None
        elif one.key is None:
            assert "neither a value nor a key" in str(result)
        else:
            assert result == EncodedAnswer(b"k", None)


@pytest.mark.parametrize("nulls", NullPolicy)
@pytest.mark.parametrize("kind", [FormatKind.JSON, FormatKind.AVRO])
def test_nulls_reach_the_model_as_nan_or_are_errors_as_the_stream_says(
    tmp_path: Path, kind: FormatKind, nulls: NullPolicy
) -> None:
    if kind is FormatKind.JSON:
        values = [b'{"x": [null, 2, 3]}', b'{"x": [NaN, 2, 3]}', b'{"x": [1, 2, 3]}']
        format_ = JSON
    else:
        schema = avro_record(*((name, ["null", "double"]) for name in "abc"))
        values = [
            avro_bytes(schema, {"a": first, "b": 2.0, "c": 3.0}) for first in (None, math.nan, 1.0)
        ]
        file = tmp_path / "record.avsc"
        file.write_bytes(msgspec.json.encode(schema))
        options = {"schema_file": str(file)}
        format_ = StreamFormatSpec(kind=kind, columns={"x": ["a", "b", "c"]}, options=options)
    said = msgspec.structs.replace(settings(format_, sink=JSON), nulls=nulls)

    found = answers(MATRIX, records(*values), said=said)

    assert found[1:] == [{"sum": None}, {"sum": 6.0}]
    if nulls is NullPolicy.NAN:
        assert found[0] == {"sum": None}
    else:
        assert "element 0 of 'x' is null" in found[0]


def test_columns_are_fields_of_their_own() -> None:
    said = settings(StreamFormatSpec(columns={"x": ["b", "a", "c"]}))
    three = signature(spec("x", Datatype.FP32, -1, 3))
    model = Adder(three)
    found = answers(
        three, records(b'{"a": 1, "b": 2, "c": 3}', b'{"a": 1, "b": 2}'), said=said, model=model
    )

    assert found[0] == {"sum": 6.0}
    assert "missing required field `c`" in found[1]


def test_columns_that_the_model_knows_need_not_be_named() -> None:
    known = signature(spec("x", Datatype.FP32, -1, 2), columns={"x": ("age", "income")})
    said = settings(StreamFormatSpec(columns={"x": []}))

    assert answers(known, records(b'{"age": 1, "income": 5}'), said=said) == [{"sum": 6.0}]


def test_a_column_may_be_a_bare_value() -> None:
    column = signature(spec("x", Datatype.FP32, -1, 1))
    found = answers(column, records(b'{"x": 1}', b'{"x": [2]}', b'{"x": [3, 4]}'))

    assert found[:2] == [{"sum": 1.0}, {"sum": 2.0}]
    assert "got [1,2]" in found[2]


def test_fields_keys_and_headers_of_the_input_are_passed_on() -> None:
    said = settings(output=StreamOutputSpec(key="user", fields=["id", "x", "none"]))
    found = answerer(MATRIX, said).answer(
        records(b'{"x": [1, 2, 3], "user": "u\xc3\xa9", "id": {"a": 18446744073709551616}}'),
        now_s=1000.0,
    )

    (answer,) = found
    assert isinstance(answer, EncodedAnswer)
    assert answer.key == "ué".encode()
    assert shown(answer) == {
        "id": {"a": 18446744073709551616},
        "x": [1.0, 2.0, 3.0],
        "none": None,
        "sum": 6.0,
    }


PADDING = PaddingPlan(axis=1, values={"ids": 0.0}, output_axes={"twice": (1,)}, max_ratio=3.0)


@pytest.mark.parametrize(
    ("plan", "shapes"), [(None, {(1, 1), (2, 2)}), (PADDING, {(3, 2)})], ids=["apart", "padded"]
)
def test_lengths_that_differ_are_run_apart_or_padded(
    plan: PaddingPlan | None, shapes: set[tuple[int, ...]]
) -> None:
    model = Adder(TOKENS)
    rows = records(b'{"ids": [1, 2]}', b'{"ids": [3]}', b'{"ids": [4, 5]}')

    assert answers(TOKENS, rows, plan=plan, model=model) == [
        {"twice": [2, 4]},
        {"twice": [6]},
        {"twice": [8, 10]},
    ]
    assert set(model.shapes) == shapes


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), bad=st.sets(st.integers(0, 11))
)
def test_padding_changes_no_answer(lengths: list[int], bad: set[int]) -> None:
    rows = [[-1 if at in bad else 1] * length for at, length in enumerate(lengths)]
    found = answers(
        TOKENS, records(*(msgspec.json.encode({"ids": row}) for row in rows)), plan=PADDING
    )

    for at, (row, answer) in enumerate(zip(rows, found, strict=True)):
        assert answer == (
            "a number is negative" if at in bad else {"twice": [2 * one for one in row]}
        )


def test_a_model_without_a_batch_axis_takes_one_record_a_run() -> None:
    alone = signature(spec("x", Datatype.FP32, -1), batched=False)
    model = Adder(alone)
    found = answers(alone, records(b'{"x": [1, 2]}', b'{"x": [3]}', b'{"x": [-1]}'), model=model)

    assert found == [{"sum": 3.0}, {"sum": 3.0}, "a number is negative"]


def test_raw_tensors_are_bytes_both_ways_whose_length_may_vary() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    fixed = answerer(MATRIX, settings(RAW)).answer(
        records(rows[0].tobytes(), b"123", rows[1].tobytes()), now_s=1000.0
    )
    varying = answerer(TOKENS, settings(RAW)).answer(
        records(np.array([1, 2]).tobytes(), b"", np.array([3]).tobytes()), now_s=1000.0
    )

    assert "expected 12 bytes, got 3" in str(fixed.pop(1))
    assert fixed == [
        EncodedAnswer(b"k0", np.float32(3).tobytes()),
        EncodedAnswer(b"k2", np.float32(12).tobytes()),
    ]
    assert "expected a multiple of 8 bytes, got 0" in str(varying.pop(1))
    assert varying == [
        EncodedAnswer(b"k0", np.array([2, 4]).tobytes()),
        EncodedAnswer(b"k2", np.array([6]).tobytes()),
    ]


@pytest.mark.parametrize(("value", "sum_"), [(1.0, 3.0), (math.nan, None)])
def test_raw_tensors_may_be_answered_in_json_which_has_no_nan(
    value: float, sum_: float | None
) -> None:
    raw = np.full(3, value, np.float32).tobytes()

    assert answers(MATRIX, records(raw), said=settings(RAW, sink=JSON)) == [{"sum": sum_}]


def oip(rows: list[list[float]], **more: object) -> bytes:
    flat = [value for row in rows for value in row]
    tensor = {"name": "x", "shape": [len(rows), 3], "datatype": "FP32", "data": flat}
    return msgspec.json.encode({"inputs": [tensor], **more})


def test_requests_of_the_protocol_have_responses_unless_one_of_their_rows_fails() -> None:
    good, bad = oip([[1, 2, 3], [4, 5, 6]], id="a"), oip([[1, 2, 3], [-1, 0, 0], [1, 1, 2]])
    found = answers(
        MATRIX, records(good, b"{}", oip([[1, 1, 1]]), bad, oip([[2, 2, 2]])), said=settings(OIP)
    )

    assert found[0]["id"] == "a"
    assert [found[at]["outputs"][0]["data"] for at in (0, 2, 4)] == [[6.0, 15.0], [3.0], [6.0]]
    assert "inputs" in found[1]
    assert found[3] == "a number is negative"


def test_a_request_for_binary_data_is_refused() -> None:
    body = oip([[1, 1, 1]], parameters={"binary_data_output": True})

    assert "binary output" in answers(MATRIX, records(body), said=settings(OIP))[0]


def test_what_may_pass_is_raised_for_all_of_them() -> None:
    broken = answerer(MATRIX, model=Adder(MATRIX, UnavailableError("the store is away")))
    with pytest.raises(UnavailableError, match="the store is away"):
        broken.answer(records(b'{"x": [1, 1, 1]}'), now_s=1000.0)


def test_what_will_not_pass_is_each_records() -> None:
    broken = answerer(MATRIX, model=Adder(MATRIX, RuntimeFailedError("a bug in the model")))
    found = broken.answer(records(*[b'{"x": [1, 1, 1]}'] * 3), now_s=1000.0)

    assert [shown(one) for one in found] == ["a bug in the model"] * 3


def test_records_that_are_too_old_are_not_scored() -> None:
    one = b'{"x": [1, 1, 1]}'
    found = answerer(MATRIX, max_age_s=10.0).answer(
        [
            record(one, timestamp_s=989.0),
            record(one, timestamp_s=991.0),
            record(one, timestamp_s=0.0),
        ],
        now_s=1000.0,
    )

    assert isinstance(found[0], TooOldError)
    assert "11.0 s old" in str(found[0])
    assert [shown(one) for one in found[1:]] == [{"sum": 3.0}] * 2


def test_runs_are_no_larger_than_a_batch() -> None:
    model = Adder(MATRIX)
    many = answerer(MATRIX, settings(OIP), model=model, max_batch_size=4)
    many.answer(records(*[oip([[1, 1, 1]] * 3)] * 3), now_s=1000.0)

    assert [shape[0] for shape in model.shapes] == [3, 3, 3]
    assert many.count() == Counted(3, 9)
    assert many.count() == Counted(0, 0)


def test_a_value_that_cannot_be_written_costs_its_own_record_only(tmp_path: Path) -> None:
    schema, file = avro_record(("sum", "float"), ("id", "int")), tmp_path / "answer.avsc"
    file.write_bytes(msgspec.json.encode(schema))
    avro = StreamFormatSpec(kind=FormatKind.AVRO, options={"schema_file": str(file)})
    said = settings(output=StreamOutputSpec(fields=["id"]), sink=avro)

    found = answerer(MATRIX, said).answer(
        records(
            b'{"x": [1, 2, 3], "id": 7}',
            b'{"x": [1, 2, 3], "id": "seven"}',
            b'{"x": [4, 5, 6], "id": 8}',
        ),
        now_s=1000.0,
    )

    assert isinstance(found.pop(1), InvalidArgumentError)
    assert found == [
        EncodedAnswer(b"k0", avro_bytes(schema, {"sum": 6.0, "id": 7})),
        EncodedAnswer(b"k2", avro_bytes(schema, {"sum": 15.0, "id": 8})),
    ]


class Scripted:
    """Answers when it is let, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.may_go = threading.Event()

    def answer(
        self, found: Sequence[Record], *, now_s: float, added: Added = NO_ADDED_FIELDS
    ) -> list[Result]:
        del now_s, added
        assert self.may_go.wait(10)
        if self.error is not None:
            raise self.error
        return [EncodedAnswer(one.key, b"done") for one in found]

    def count(self) -> Counted:
        return Counted(1, 2)


def threads_of(*scripted: Scripted) -> tuple[ModelThreads, threading.Semaphore]:
    woken = threading.Semaphore(0)
    return ModelThreads(scripted, world.writer(), clock=SystemClock(), wake=woken.release), woken


def collected(threads: ModelThreads, woken: threading.Semaphore) -> list[Finished]:
    assert woken.acquire(timeout=10)
    return threads.finished()


def test_one_runs_and_one_waits_and_then_there_is_no_room() -> None:
    scripted = Scripted()
    threads, woken = threads_of(scripted)
    seen = [(threads.is_free, threads.has_room)]
    for _ in range(2):
        threads.submit(ScoringBatch(records=records(b"a")))
        seen.append((threads.is_free, threads.has_room))
    scripted.may_go.set()
    found = collected(threads, woken) + collected(threads, woken)

    assert seen == [(True, True), (False, True), (False, False)]
    assert len(found) == 2
    assert threads.is_idle
    threads.close()


def test_outcomes_come_back_with_their_batch() -> None:
    scripted = Scripted()
    threads, woken = threads_of(scripted)
    batch = ScoringBatch(records=records(b"a", b"b"), attempts=1)
    threads.submit(batch)
    scripted.may_go.set()
    threads.wait(10)
    (found,) = collected(threads, woken)

    assert found.batch is batch
    assert (found.runs, found.rows) == (1, 2)
    assert isinstance(found.result, list)
    assert [one.key for one in found.result if isinstance(one, NewRecord)] == [b"k0", b"k1"]
    threads.close()


def test_what_may_pass_comes_back_as_an_error() -> None:
    scripted = Scripted(UnavailableError("away"))
    threads, woken = threads_of(scripted)
    threads.submit(ScoringBatch(records=records(b"a")))
    scripted.may_go.set()
    (found,) = collected(threads, woken)

    assert isinstance(found.result, UnavailableError)
    threads.close()


def test_a_bug_is_raised_where_it_is_seen() -> None:
    scripted = Scripted(TypeError("a bug"))
    threads, woken = threads_of(scripted)
    threads.submit(ScoringBatch(records=records(b"a")))
    scripted.may_go.set()
    with pytest.raises(TypeError, match="a bug"):
        collected(threads, woken)
    threads.close()
