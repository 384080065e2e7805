"""The parts of `headrace stream` that need nothing to run."""

import io
import json
import re
from pathlib import Path

import msgspec
import pytest

from headrace.cli.base.options import moment
from headrace.cli.base.output import rows_text
from headrace.cli.stream.find import (
    MEMBER_COLUMNS,
    STREAM_COLUMNS,
    ShortForm,
    chosen,
    short_spec,
)
from headrace.cli.stream.foreground import live_text
from headrace.cli.stream.topics import lines_of, new_records, record_json, value_text
from headrace.control.streams.status import StreamView, WorkerView
from headrace.core import InvalidArgumentError, NotFoundError
from headrace.core.spec.parse import parse_spec
from headrace.core.text import iso_text
from headrace.streaming.records import Record, TopicPartition

NOW = 1_795_788_000.0  # 2026-11-27T14:00:00Z
FORM = ShortForm(broker="log:demo", sources=["in"], sink="out", model="m.onnx")
VIEW = StreamView(
    name="pay",
    state="running",
    model="fraud:3",
    topics=("in",),
    sink="out",
    group="pay",
    ready=1,
    workers=2,
    min_workers=1,
    max_workers=4,
    lag_records=1200,
    lag_s=0.25,
    rate=1234.5,
    answered=10_000,
    dead_letters=3,
    retries=0,
    restarts=0,
    message="",
    scaling="",
    members=(WorkerView(member="pay-0", state="running", partitions=("in/0",), outdated=True),),
)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("-0s", NOW),
        ("-2h", NOW - 7200),
        ("-90s", NOW - 90),
        ("-1.5d", NOW - 129_600),
        ("2026-11-27T06:00Z", NOW - 8 * 3600),
        ("2026-11-27T06:00", NOW - 8 * 3600),
        ("2026-11-27T07:00+01:00", NOW - 8 * 3600),
    ],
)
def test_a_moment_is_a_time_or_so_long_ago(text: str, at: float) -> None:
    assert moment(text, now=NOW) == at


@pytest.mark.parametrize("text", ["", "2h", "-2x", "yesterday", "2026-13-01", "2027-01-01", "-"])
def test_what_is_no_moment_is_told(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        moment(text, now=NOW)


def test_a_moment_is_told_in_utc() -> None:
    assert iso_text(NOW) == "2026-11-27T14:00:00Z"


def test_lines_become_records_and_empty_ones_none() -> None:
    lines = list(lines_of(io.BytesIO(b'{"id": 1}\r\n\n{"id": "b"}')))
    records = list(new_records("in", lines, key="id"))

    assert lines == [b'{"id": 1}', b'{"id": "b"}']
    assert [record.key for record in records] == [b"1", b"b"]


@pytest.mark.parametrize("line", [b"x", b"[1]", b"{}", b'{"id": null}', b'{"id": true}', b"\xff"])
def test_a_line_without_its_key_is_told_by_its_number(line: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="record 1 is not a JSON object"):
        list(new_records("in", [line], key="id"))


def test_values_that_are_no_text_are_shown_as_bytes() -> None:
    record = Record(
        topic_partition=TopicPartition("in", 1),
        offset=7,
        key=b"\xff",
        value=b"\x00\xff",
        timestamp_s=1.5,
    )
    told = json.loads(record_json(record))

    assert value_text(record) == repr(b"\x00\xff")
    assert (told["partition"], told["offset"], told["timestamp_s"]) == (1, 7, 1.5)
    assert told["key"] == {"b64": "/w=="}


def test_options_alone_make_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"x")
    [stream] = short_spec(FORM).streams

    assert (stream.name, stream.model) == ("m", str(tmp_path / "m.onnx"))
    assert stream.sink is not None
    assert (stream.source.topics, stream.sink.topic) == (("in",), "out")


def test_a_stream_of_an_endpoint_is_called_like_it() -> None:
    form = ShortForm(broker="log:demo", sources=["in"], sink="out", endpoint="fraud")

    assert short_spec(form).streams[0].name == "fraud"


def test_options_that_are_missing_are_told_together() -> None:
    with pytest.raises(InvalidArgumentError, match="--model or --endpoint, --broker, --from, --to"):
        short_spec(ShortForm(broker="", sources=[], sink=""))


def test_a_stream_is_chosen_by_its_name() -> None:
    spec = short_spec(ShortForm(broker="log:d", sources=["in"], sink="out", model="/m.onnx"))

    assert [stream.name for stream in chosen(spec, [], location="x")] == ["m"]
    with pytest.raises(NotFoundError, match="x has no stream 'nobody'; it has: m"):
        chosen(spec, ["nobody"], location="x")
    with pytest.raises(NotFoundError, match="has no 'streams'"):
        chosen(parse_spec({"version": 1}), [], location="x")


def test_a_live_line_says_state_rate_and_lag() -> None:
    text = live_text(VIEW)

    assert text == (
        "pay: running, 1,234 records/s, lag 1,200 (0.2 s), 10,000 answered, 3 dead letters"
    )


def test_rows_say_how_streams_and_workers_are() -> None:
    told = msgspec.to_builtins(VIEW)
    row = rows_text([told], STREAM_COLUMNS).plain.splitlines()[1]
    member = rows_text(told["members"], MEMBER_COLUMNS).plain.splitlines()[1]

    assert re.split(r"\s{2,}", row)[:6] == [
        *("pay", "running", "1/2 of 1-4", "1,234", "1,200", "250 ms")
    ]
    assert re.split(r"\s{2,}", member)[:5] == ["pay-0", "running, outdated", "-", "0", "in/0"]
