"""What may stand under `streams`, and how its mistakes are told."""

from pathlib import Path
from typing import Any

import pytest

from headrace.control.desired.resolve_streams import stream_settings
from headrace.core.spec.parse import SpecError, StreamSpec, parse_spec

SPEC = """
version: 1
endpoints:
  - {name: fraud, model: /models/fraud.onnx}
streams:
  - name: pay
    model: ./m.onnx
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out}
"""


def parsed(text: str) -> StreamSpec:
    return parse_spec(text, base_dir=Path("/models")).streams[0]


def test_what_is_left_out_has_a_default_that_loses_nothing() -> None:
    stream = parsed(SPEC)

    assert stream.model == "/models/m.onnx"
    assert stream.source.start == "earliest"
    assert (stream.delivery, stream.errors.policy) == ("at_least_once", "dead_letter")
    assert stream.dead_letter_topic == "pay-dead-letters"
    assert (stream.bounds.min, stream.bounds.max) == (1, 1)


def test_a_stream_that_skips_has_no_topic_for_dead_letters() -> None:
    stream = parsed(SPEC + "    errors: {policy: skip}\n")

    assert stream.dead_letter_topic == ""


def test_workers_may_be_a_number_or_bounds() -> None:
    assert parsed(SPEC + "    workers: 3\n").bounds.max == 3
    bounds = parsed(SPEC + "    workers: {min: 2, max: 8, target_lag_s: 5}\n").bounds
    assert (bounds.min, bounds.max, bounds.target_lag_s) == (2, 8, 5.0)


def test_a_stream_may_ask_an_endpoint_of_the_file() -> None:
    stream = parsed(SPEC.replace("model: ./m.onnx", "endpoint: fraud"))

    assert (stream.model, stream.endpoint) == (None, "fraud")


def test_answers_keep_the_time_of_their_records_and_may_keep_all_headers() -> None:
    said = "topic: out, headers: all, timestamps: now"
    told = stream_settings(parsed(SPEC)).output
    other = stream_settings(parsed(SPEC.replace("topic: out", said))).output

    assert (told.timestamps, told.headers) == ("source", ("traceparent", "tracestate"))
    assert (other.timestamps, other.headers) == ("now", "all")


@pytest.mark.parametrize(
    ("sink", "forwards"),
    [
        ("topic: out", True),
        ("topic: out, key: id", False),
        ("topic: out, tombstones: skip", False),
        ("topic: out, key: id, tombstones: skip", False),
    ],
)
def test_records_without_a_value_are_forwarded_where_the_key_is_the_records_own(
    sink: str, *, forwards: bool
) -> None:
    told = stream_settings(parsed(SPEC.replace("topic: out", sink)))

    assert told.output.forwards_tombstones is forwards


def test_a_document_says_what_was_written_and_is_read_again() -> None:
    spec = parse_spec(SPEC + "    workers: {max: 4}\n", base_dir=Path("/models"))

    assert parse_spec(spec.document()) == spec
    assert spec.document()["streams"][0]["workers"] == {"max": 4}


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("topic: out", "topic: in", "streams[0].sink.topic (line 9)", "without end"),
        ("[in]", "[in], group_protocol: classic", "source.group_protocol", "kafka://HOST:PORT"),
        ("topic: out", "topic: out, key: id, tombstones: forward", "sink.tombstones", "'skip'"),
        ("topic: out", "topic: out, headers: some", "streams[0].sink.headers", "'all'"),
        ("topic: out", "topic: out, timestamps: old", "streams[0].sink.timestamps", "'source'"),
        ("model: ./m.onnx", "endpoint: nobody", "streams[0].endpoint (line 7)", "there are: fraud"),
        ("model: ./m.onnx", "paused: true", "streams[0] (line 6)", "needs 'model'"),
        ("model: ./m.onnx", "model: 'a b'", "streams[0].model", "neither an absolute path"),
        ("[in]", "[]", "streams[0].source.topics (line 8)", "at least 1"),
        ("[in]", '["a b"]', "streams[0].source.topics[0] (line 8)", "does not match"),
        ("broker:", "brokr:", "streams[0].source.brokr (line 8)", "did you mean 'broker'?"),
        ("name: pay", "name: '../x'", "streams[0].name (line 6)", "must have 1 to 128 letters"),
    ],
)
def test_a_mistake_is_told_with_its_place(old: str, new: str, place: str, said: str) -> None:
    text = SPEC.replace(old, new)

    with pytest.raises(SpecError) as error:
        parse_spec(text, base_dir=None if "a b" in new else Path("/models"))

    assert place in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("line", "place", "said"),
    [
        ("workers: 0", "streams[0].workers", "greater than or equal to 1"),
        ("workers: {min: 5, max: 2}", "streams[0].workers.min", "more than 'max', which is 2"),
        ("endpoint: fraud", "streams[0].endpoint", "exclude each other"),
        ("api_key_file: k", "streams[0].api_key_file", "is only for a stream with 'endpoint'"),
        ("dead_letters: in", "streams[0].dead_letters", "would be read again without end"),
        ("dead_letters: out", "streams[0].dead_letters", "use another topic"),
        ("delivery: once", "streams[0].delivery", "'exactly_once'"),
        ("errors: {max_delay_s: 0.01}", "streams[0].errors.max_delay_s", "less than the first"),
        ("format: {kind: csv}", "streams[0].format.kind", "'json'"),
    ],
)
def test_what_disagrees_is_told_too(line: str, place: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        parsed(f"{SPEC}    {line}\n")

    assert place in str(error.value)
    assert said in str(error.value)


def test_two_streams_have_two_names() -> None:
    again = SPEC[SPEC.index("  - name: pay") :]

    with pytest.raises(SpecError, match=r"'pay' is already the name of streams\[0\]"):
        parsed(SPEC + again)


BOTH = """
version: 1
streams:
  - name: a
    model: /m.onnx
    source: {{broker: "{}", topics: [x, in]{}}}
    sink: {{topic: out-a}}
  - name: b
    model: /m.onnx
    source: {{broker: "{}", topics: [{}]{}}}
    sink: {{topic: out-b}}
"""
G = ", group: g"


@pytest.mark.parametrize(
    ("first", "second", "topic", "groups"),
    [
        ("log:demo", "log:demo", "in", (G, G)),
        ("log:demo", "log:demo", "in", ("", ", group: a")),
        ("log:///var/x/", "log:///var/x", "in", (G, G)),
        ("kafka://u:p@h:9092,i:9092", "kafka://i:9092?linger.ms=5", "in", (G, G)),
    ],
)
def test_two_streams_of_one_group_are_refused_with_both_names(
    first: str, second: str, topic: str, groups: tuple[str, str]
) -> None:
    text = BOTH.format(first, groups[0], second, topic, groups[1]).replace("u:p@", "u:${P}@")

    with pytest.raises(SpecError) as error:
        parse_spec(text)

    assert "streams[1].source.group (line 10)" in str(error.value)
    assert "each record of 'in' would be scored by either 'a' or 'b'" in str(error.value)


@pytest.mark.parametrize(
    ("second", "topic", "groups"),
    [
        ("log:demo", "in", ("", "")),
        ("log:demo", "in", (G, "")),
        ("log:demo", "other", (G, G)),
        ("log:more", "in", (G, G)),
        ("kafka://demo", "in", (G, G)),
    ],
)
def test_streams_that_share_no_record_may_be_called_alike(
    second: str, topic: str, groups: tuple[str, str]
) -> None:
    spec = parse_spec(BOTH.format("log:demo", groups[0], second, topic, groups[1]))

    assert [stream.name for stream in spec.streams] == ["a", "b"]


def test_dead_letters_have_a_topic_of_their_own_also_where_nobody_names_it() -> None:
    with pytest.raises(SpecError, match="'pay-dead-letters' is also a source topic"):
        parsed(SPEC.replace("[in]", "[in, pay-dead-letters]"))
    with pytest.raises(SpecError, match="'pay-dead-letters' is the topic of the sink"):
        parsed(SPEC.replace("{topic: out}", "{topic: pay-dead-letters}"))


@pytest.mark.parametrize("key", ["canary", "shadow"])
def test_other_versions_of_a_stream_are_refused_with_what_to_name_instead(key: str) -> None:
    with pytest.raises(SpecError, match=rf"streams\[0\].{key} .*name an 'endpoint'"):
        parsed(f"{SPEC}    {key}: {{model: ./new.onnx, percent: 5}}\n")


def test_dead_letters_of_a_stream_that_keeps_none_are_a_mistake() -> None:
    with pytest.raises(SpecError, match="policy: stop"):
        parsed(SPEC + "    dead_letters: dead\n    errors: {policy: stop}\n")


def test_a_stream_with_an_endpoint_leaves_the_model_to_it() -> None:
    text = SPEC.replace("model: ./m.onnx", "endpoint: fraud") + "    allow_code: true\n"

    with pytest.raises(SpecError, match="'endpoint': the endpoint has its own"):
        parsed(text)


def shared(first: str, second: str) -> dict[str, Any]:
    """Two streams of one group, which an earlier version accepted."""
    streams = [
        {
            "name": name,
            "model": "m:1",
            "source": {"broker": "log:demo", "topics": ["in"], "group": "g"},
            "sink": {"topic": f"out-{name}"},
        }
        for name in (first, second)
    ]
    return {"version": 1, "streams": streams}


def test_a_spec_in_force_keeps_streams_of_one_group_also_behind_another_stream() -> None:
    other = {**shared("x", "y")["streams"][0], "name": "x"}
    other["source"] = {**other["source"], "group": "h"}
    moved = {"version": 1, "streams": [other, *shared("a", "b")["streams"]]}
    other["sink"] = {"topic": "elsewhere"}

    assert parse_spec(shared("a", "b"), in_force=shared("a", "b")).streams[1].source.group == "g"
    assert len(parse_spec(moved, in_force=shared("a", "b")).streams) == 3
    with pytest.raises(SpecError, match="use another group"):
        parse_spec(shared("a", "b"))


def test_a_spec_in_force_lets_no_other_streams_share_a_group() -> None:
    with pytest.raises(SpecError) as error:
        parse_spec(shared("a", "c"), in_force=shared("a", "b"))

    assert [mistake.place for mistake in error.value.mistakes] == ["streams[1].source.group"]


OPENAI = """
version: 1
endpoints:
  - {name: chat, upstream: {url: "http://10.0.0.1:9000", protocol: openai}}
  - {name: other, upstream: {url: "http://10.0.0.1:9000"}}
  - {name: file, model: /models/m.gguf}
streams:
  - name: answers
    endpoint: chat
    openai: {body: {messages: [{role: system, content: "Be brief."}], max_tokens: 8}}
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out}
"""


def test_a_stream_may_call_a_path_of_openai() -> None:
    chat = parsed(OPENAI).openai
    text = OPENAI.replace("endpoint: chat", "endpoint: file").replace(
        "{body:", "{path: /v1/embeddings}  #"
    )
    texts = parsed(text + "    max_batch_size: 64\n")

    assert chat is not None
    assert (chat.path, chat.body["max_tokens"]) == ("/v1/chat/completions", 8)
    assert texts.openai is not None
    assert (texts.openai.path, texts.max_batch_size) == ("/v1/embeddings", 64)


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("max_tokens", "stream", "streams[0].openai", "the stream sets 'stream'"),
        ("{body:", "{path: /v1/completions, body:", "streams[0].openai", "are for /v1/chat/comp"),
        ('[{role: system, content: "Be brief."}]', "none", "streams[0].openai", "are a list of"),
        ("{body:", "{path: /v1/images, body:", "streams[0].openai.path", "'/v1/embeddings'"),
        ("endpoint: chat", "endpoint: other", "streams[0].openai", "has protocol 'v2'"),
        ("endpoint: chat", "model: ./m.onnx", "streams[0].openai", "only for a stream with"),
        ("openai: {", "labels: {} #", "streams[0].endpoint", "not tensors; set 'openai'"),
        ("sink:", "max_batch_size: 4\n    sink:", "max_batch_size", "set 'model_threads'"),
        ("topic: out", "topic: out, format: {kind: openai}", "format", "for input and output"),
        (
            "sink:",
            "windows: {windows: [{name: n, size_s: 60}]}\n    sink:",
            "streams[0].windows",
            "has one text",
        ),
    ],
)
def test_what_disagrees_with_openai_is_told(old: str, new: str, place: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        parsed(OPENAI.replace(old, new))

    assert place in str(error.value)
    assert said in str(error.value)


def test_bodies_of_openai_need_the_setting() -> None:
    with pytest.raises(SpecError, match="is for a stream with the setting 'openai'"):
        parsed(SPEC + "    format: {kind: openai}\n")
