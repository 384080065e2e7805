"""The same metrics in the three formats that scrapers read."""

import math
from collections.abc import Iterator
from itertools import accumulate

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.decoder import _DecodeVarint
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from headrace.control.metrics import Families, Source, merge
from headrace.control.metrics_formats import OPENMETRICS, PROTOBUF, TEXT, Format, negotiate
from headrace.control.metrics_protobuf import SCHEMA, to_native

EXEMPLAR = ' # {trace_id="4bf92f3577b34da6",request_id="a-b"} 0.07 1700000000.5'
SOURCE = Source(
    text=(
        "# HELP requests_total Requests, all of \\\\ them.\n"
        "# TYPE requests_total counter\n"
        'requests_total{model="m"} 3\n'
        "# TYPE nv_inference_count counter\n"
        "nv_inference_count 7 1700000000000\n"
        "# TYPE up_or_not gauge\n"
        f"up_or_not 1{EXEMPLAR}\n"
        "# TYPE envoy_rq counter\nenvoy_rq 1\n# TYPE envoy_rq_total counter\nenvoy_rq_total 1\n"
        "# TYPE envoy_thing untyped\n"
        "envoy_thing NaN\n"
        "# HELP wait_seconds Wait.\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{model="m",le="0.05"} 2\n'
        f'wait_seconds_bucket{{model="m",le="0.1"}} 3{EXEMPLAR}\n'
        'wait_seconds_bucket{model="m",le="+Inf"} 4\n'
        'wait_seconds_sum{model="m"} 0.75\n'
        'wait_seconds_count{model="m"} 4\n'
    )
)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;"
    "version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_2_NATIVE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
    "encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml", TEXT),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.1", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1,text/plain;q=0.1", TEXT),
        ("application/vnd.google.protobuf;proto=another.Message", TEXT),
        ("application/vnd.google.protobuf;encoding=text", TEXT),
        ("application/openmetrics-text;q=nan", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_2_NATIVE, PROTOBUF),
    ],
)
def test_a_scraper_gets_what_it_likes_best(accept: str, wanted: Format) -> None:
    assert negotiate(accept) is wanted


@given(st.text())
def test_no_accept_header_is_an_error(accept: str) -> None:
    assert negotiate(accept) in {TEXT, OPENMETRICS, PROTOBUF}
    assert negotiate(accept, native=False) in {TEXT, OPENMETRICS}


def test_openmetrics_can_be_read_and_has_exemplars() -> None:
    content = OPENMETRICS.render(merge([SOURCE])).decode()

    found = {family.name: family for family in _read(content)}
    assert content.endswith("# EOF\n")
    assert {name: family.type for name, family in found.items()} == {
        "requests": "counter",
        "nv_inference_count": "unknown",
        "up_or_not": "gauge",
        "envoy_rq": "unknown",
        "envoy_rq_total": "unknown",
        "envoy_thing": "unknown",
        "wait_seconds": "histogram",
    }
    assert found["requests"].documentation == "Requests, all of \\ them."
    (exemplar,) = [s.exemplar for s in found["wait_seconds"].samples if s.exemplar]
    assert exemplar.labels == {"trace_id": "4bf92f3577b34da6", "request_id": "a-b"}
    assert exemplar.value == 0.07


def test_the_text_format_has_no_exemplars() -> None:
    assert b" # {" not in TEXT.render(merge([SOURCE]))


def test_protobuf_says_the_same() -> None:
    found = {family.name: family for family in _decode(PROTOBUF.render(merge([SOURCE])))}

    assert {name: family.type for name, family in found.items()} == {
        "requests_total": 0,
        "nv_inference_count": 0,
        "up_or_not": 1,
        "envoy_rq": 0,
        "envoy_rq_total": 0,
        "envoy_thing": 3,
        "wait_seconds": 4,
    }
    assert found["requests_total"].help == "Requests, all of \\ them."
    assert found["requests_total"].metric[0].counter.value == 3
    assert math.isnan(found["envoy_thing"].metric[0].untyped.value)
    (metric,) = found["wait_seconds"].metric
    assert [(pair.name, pair.value) for pair in metric.label] == [("model", "m")]
    histogram = metric.histogram
    assert (histogram.sample_count, histogram.sample_sum) == (4, 0.75)
    assert [b.cumulative_count for b in histogram.bucket] == [2, 3, 4]
    exemplar = histogram.bucket[1].exemplar
    assert [pair.value for pair in exemplar.label] == ["4bf92f3577b34da6", "a-b"]
    assert (exemplar.value, exemplar.timestamp.nanos) == (0.07, 500_000_000)


def test_a_native_histogram_has_all_values_where_they_were() -> None:
    (family,) = [f for f in _decode(PROTOBUF.render(merge([SOURCE]))) if f.name == "wait_seconds"]
    histogram = family.metric[0].histogram

    indices: list[int] = []
    end = 0
    for span in histogram.positive_span:
        indices += range(end + span.offset, end + span.offset + span.length)
        end = indices[-1] + 1
    counts = dict(zip(indices, histogram.positive_count, strict=True))
    ends = {index: 2 ** (index / 2**SCHEMA) for index in counts}
    assert histogram.schema == SCHEMA
    assert histogram.zero_count_float == 2  # at most the lowest bound
    assert histogram.zero_threshold == 0.05
    between = sum(count for index, count in counts.items() if ends[index] < 0.103)
    assert between == pytest.approx(1)
    assert sum(counts.values()) + 2 == pytest.approx(4)


increments = st.lists(st.integers(0, 1000), min_size=8, max_size=8)
BOUNDS = (0.001, 0.0011, 0.0013, 0.01, 0.5, 2.0, 100.0, math.inf)


@given(increments)
def test_native_buckets_lose_nothing(counts: list[int]) -> None:
    zero, native = to_native(BOUNDS, list(accumulate(counts)))

    assert zero == counts[0]
    assert zero + sum(native.values()) == pytest.approx(sum(counts))
    assert all(count >= 0 for count in native.values())


@given(increments, increments)
def test_native_buckets_never_fall(before: list[int], more: list[int]) -> None:
    after = [a + b for a, b in zip(before, more, strict=True)]

    _, old = to_native(BOUNDS, list(accumulate(before)))
    _, new = to_native(BOUNDS, list(accumulate(after)))

    assert all(new.get(index, 0.0) >= count for index, count in old.items())


def _read(content: str) -> Iterator[Metric]:
    return text_string_to_metric_families(content)  # type: ignore[no-untyped-call,no-any-return]


def _decode(content: bytes) -> list[Message]:
    kind = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("t.MetricFamily"))
    found, place = [], 0
    while place < len(content):
        size, place = _DecodeVarint(content, place)
        found.append(kind.FromString(content[place : place + size]))
        place += size
    return found


_T = descriptor_pb2.FieldDescriptorProto
_FIELDS: dict[str, dict[str, tuple[int, object]]] = {
    "LabelPair": {"name": (1, _T.TYPE_STRING), "value": (2, _T.TYPE_STRING)},
    "Value": {"value": (1, _T.TYPE_DOUBLE)},
    "Timestamp": {"seconds": (1, _T.TYPE_INT64), "nanos": (2, _T.TYPE_INT32)},
    "Exemplar": {
        "label": (1, ["LabelPair"]),
        "value": (2, _T.TYPE_DOUBLE),
        "timestamp": (3, "Timestamp"),
    },
    "Bucket": {
        "cumulative_count": (1, _T.TYPE_UINT64),
        "upper_bound": (2, _T.TYPE_DOUBLE),
        "exemplar": (3, "Exemplar"),
    },
    "BucketSpan": {"offset": (1, _T.TYPE_SINT32), "length": (2, _T.TYPE_UINT32)},
    "Histogram": {
        "sample_count": (1, _T.TYPE_UINT64),
        "sample_sum": (2, _T.TYPE_DOUBLE),
        "bucket": (3, ["Bucket"]),
        "sample_count_float": (4, _T.TYPE_DOUBLE),
        "schema": (5, _T.TYPE_SINT32),
        "zero_threshold": (6, _T.TYPE_DOUBLE),
        "zero_count_float": (8, _T.TYPE_DOUBLE),
        "positive_span": (12, ["BucketSpan"]),
        "positive_count": (14, [_T.TYPE_DOUBLE]),
    },
    "Metric": {
        "label": (1, ["LabelPair"]),
        "gauge": (2, "Value"),
        "counter": (3, "Value"),
        "untyped": (5, "Value"),
        "histogram": (7, "Histogram"),
    },
    "MetricFamily": {
        "name": (1, _T.TYPE_STRING),
        "help": (2, _T.TYPE_STRING),
        "type": (3, _T.TYPE_INT32),
        "metric": (4, ["Metric"]),
    },
}


def _pool() -> descriptor_pool.DescriptorPool:
    """The messages of `io.prometheus.client`, as far as they are used."""
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package="t", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            one = kind[0] if isinstance(kind, list) else kind
            label = _T.LABEL_REPEATED if isinstance(kind, list) else _T.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if isinstance(one, str):
                added.type, added.type_name = _T.TYPE_MESSAGE, f".t.{one}"
            else:
                added.type = one
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()
NOTHING: Families = {}


@pytest.mark.parametrize("wanted", [TEXT, OPENMETRICS, PROTOBUF], ids=["text", "open", "protobuf"])
def test_nothing_can_be_told_in_every_format(wanted: Format) -> None:
    assert wanted.render(NOTHING) in {b"", b"# EOF\n"}
