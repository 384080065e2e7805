"""What a worker counts, as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from headrace.core import Code, InvalidArgumentError
from headrace.streaming.in_flight import DueDelivery, FailedRecord
from headrace.streaming.metrics import Counters, render_metrics
from headrace.streaming.records import NewRecord
from headrace.streaming.settings import PartitionStatus, StreamStatus, WorkerState
from tests.unit.streaming.parts import record


def samples(counters: Counters, status: StreamStatus) -> dict[tuple[str, tuple[str, ...]], float]:
    text = render_metrics(counters, status).decode()
    return {
        (
            sample.name,
            tuple(v for k, v in sorted(sample.labels.items()) if k != "stream"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_answers_and_dead_letters_are_counted_apart() -> None:
    counters = Counters()
    letter = NewRecord(topic="dead", key=None, value=b"")
    due = DueDelivery(
        answered=[record(b"", timestamp_s=99.75), record(b"", timestamp_s=0.0)],
        failed=[
            FailedRecord(error=InvalidArgumentError("x"), dead_letter=letter),
            FailedRecord(error=InvalidArgumentError("x")),
        ],
    )
    counters.delivered(due, now_s=100.0, seconds=0.5)
    found = samples(counters, StreamStatus(stream="s", member="m"))

    assert found["headrace_stream_records_answered_total", ()] == 2
    assert found["headrace_stream_dead_letters_total", ()] == 1
    name = "headrace_stream_records_without_answer_total"
    assert found[name, (Code.INVALID_ARGUMENT,)] == 2
    assert found["headrace_stream_latency_seconds_count", ()] == 1
    assert found["headrace_stream_latency_seconds_sum", ()] == 0.25


def test_the_state_and_the_lag_of_each_place_are_told() -> None:
    status = StreamStatus(
        stream='a "b"\n',
        member="m",
        state=WorkerState.RETRYING,
        problem="away",
        partitions=[
            PartitionStatus(topic="in", partition=0, lag_records=7, lag_s=1.5),
            PartitionStatus(topic="in", partition=1),
        ],
    )
    found = samples(Counters(), status)

    assert found["headrace_stream_lag_records", ("0", "in")] == 7
    assert found["headrace_stream_lag_seconds", ("0", "in")] == 1.5
    assert ("headrace_stream_lag_records", ("1", "in")) not in found
    assert found["headrace_stream_trouble", ()] == 1
    assert found["headrace_stream_state", ("retrying",)] == 1
    assert found["headrace_stream_state", ("running",)] == 0
