"""What may stand under `push` of a stream, and how its mistakes are told."""

import pytest

from headrace.core.spec.parse import SpecError, StreamSpec, parse_spec

SPEC = """
version: 1
streams:
  - name: pay
    source: {broker: "log:demo", topics: [in]}
    push: {view: spending}
"""
STORES = """
online_stores:
  - {name: feast, url: "feast:///repo"}
  - {name: hopsworks, url: "hopsworks://h/s"}
"""


def parsed(text: str) -> StreamSpec:
    return parse_spec(text).streams[0]


def test_a_stream_may_only_push() -> None:
    stream = parsed(SPEC)

    assert stream.push is not None
    assert (stream.model, stream.endpoint, stream.sink) == (None, None, None)
    assert (stream.push.view, stream.push.online_store, stream.push.timeout_s) == (
        "spending",
        None,
        5.0,
    )


def test_a_stream_may_push_and_answer() -> None:
    stream = parsed(f"{SPEC}    model: /m.onnx\n    sink: {{topic: out}}\n")

    assert stream.push is not None
    assert stream.sink is not None


@pytest.mark.parametrize(
    ("line", "place", "said"),
    [
        ("sink: {topic: out}", "streams[0]", "without 'sink' the stream only pushes"),
        ("model: /m.onnx", "streams[0].sink", "is missing"),
        ("features: {service: fraud}", "streams[0].features", "is only for a stream with 'model'"),
        ("allow_code: true", "streams[0].allow_code", "is only for a stream with 'model'"),
        ("api_key_file: k", "streams[0].api_key_file", "is only for a stream with 'endpoint'"),
        ("format: {kind: raw}", "streams[0].push", "the format 'raw' has none"),
        ("dead_letters: in", "streams[0].dead_letters", "would be read again without end"),
    ],
)
def test_what_fits_no_stream_that_only_pushes_is_told(line: str, place: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        parsed(f"{SPEC}    {line}\n")

    assert f"{place} (line " in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("push", "place", "said"),
    [
        ("{}", "view", "is missing"),
        ("{view: ''}", "view", "at least 1"),
        ("{view: v, fields: {spend: ''}}", "fields.spend", "at least 1"),
        ("{view: v, timeout_s: 0}", "timeout_s", "got "),
        ("{view: v, timeout_s: .nan}", "timeout_s", "got "),
        ("{view: v, online_store: feast}", "online_store", "belongs to Feast"),
        ("{view: v, online_store: hopsworks}", "online_store", "belongs to Hopsworks"),
        ("{view: v, home: /x}", "home", "is not a setting"),
    ],
)
def test_a_push_that_cannot_be_is_told_with_its_place(push: str, place: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        parsed(SPEC.replace("{view: spending}", push) + STORES)

    assert f"streams[0].push.{place} (line 6)" in str(error.value)
    assert said in str(error.value)


def test_a_stream_that_neither_scores_nor_pushes_is_told_what_it_may_be() -> None:
    with pytest.raises(SpecError, match="or 'push' alone"):
        parsed(SPEC.replace("    push: {view: spending}\n", ""))
