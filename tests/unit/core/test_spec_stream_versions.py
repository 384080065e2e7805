"""What may stand under `canary` and `shadow` of a stream, and how its mistakes are told."""

from pathlib import Path

import pytest

from headrace.core.spec import SpecError, StreamSpec, parse_spec

SPEC = """
version: 1
endpoints:
  - {name: fraud, model: /models/fraud.onnx}
streams:
  - name: pay
    model: ./old.onnx
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out}
"""


def parsed(text: str) -> StreamSpec:
    return parse_spec(text, base_dir=Path("/models")).streams[0]


def test_paths_of_other_versions_begin_where_the_file_is() -> None:
    stream = parsed(
        f"{SPEC}    canary: {{model: ./new.onnx, percent: 5}}\n    shadow: {{model: next.onnx:1}}\n"
    )

    assert stream.canary is not None
    assert stream.shadow is not None
    assert (stream.canary.model, stream.canary.percent) == ("/models/new.onnx", 5)
    assert (stream.canary.key, stream.canary.salt) == ("", "")
    assert (stream.shadow.model, stream.shadow.sink) == ("next.onnx:1", None)


def test_endpoints_of_the_file_may_be_other_versions_and_share_the_key_to_them() -> None:
    stream = parsed(f"{SPEC}    canary: {{endpoint: fraud, percent: 0}}\n    api_key_file: ./key\n")

    assert stream.canary is not None
    assert (stream.canary.endpoint, stream.api_key_file) == ("fraud", "/models/key")


def test_a_model_beside_an_endpoint_that_answers_may_be_of_a_format_with_code() -> None:
    text = SPEC.replace("model: ./old.onnx", "endpoint: fraud")
    stream = parsed(f"{text}    canary: {{model: ./new, percent: 5}}\n    allow_code: true\n")

    assert stream.allow_code


def test_a_document_with_all_of_it_is_read_again() -> None:
    text = f"{SPEC}    shadow: {{model: ./new.onnx, sink: beside, tolerance: 0.01}}\n"
    spec = parse_spec(
        f"{text}    canary: {{model: ./new.onnx, percent: 5, key: card}}\n",
        base_dir=Path("/models"),
    )

    assert parse_spec(spec.document()) == spec


@pytest.mark.parametrize(
    ("line", "place", "said"),
    [
        ("canary: {percent: 5}", "canary", "needs 'model', or 'endpoint'"),
        ("shadow: {}", "shadow", "needs 'model', or 'endpoint'"),
        ("canary: {model: a:1, endpoint: fraud, percent: 5}", "canary.endpoint", "exclude"),
        ("shadow: {endpoint: nobody}", "shadow.endpoint", "there are: fraud"),
        ("canary: {endpoint: nobody, percent: 5}", "canary.endpoint", "there are: fraud"),
        ("canary: {model: a:1}", "canary.percent", "is missing"),
        ("canary: {model: a:1, percent: 101}", "canary.percent", "less than or equal to 100"),
        ("canary: {model: a:1, percent: -1}", "canary.percent", "greater than or equal to 0"),
        ("canary: {model: a:1, percent: 2.5}", "canary.percent", "integer"),
        ("canary: {model: ./old.onnx, percent: 5}", "canary.model", "name another version"),
        ("shadow: {model: a:1, sink: in}", "shadow.sink", "a topic of the stream already"),
        ("shadow: {model: a:1, sink: out}", "shadow.sink", "a topic of the stream already"),
        ("shadow: {model: a:1, sink: pay-dead-letters}", "shadow.sink", "take another"),
        ("shadow: {model: a:1, sink: 'a b'}", "shadow.sink", "does not fit"),
        ("shadow: {model: a:1, tolerance: -1}", "shadow.tolerance", "greater than or equal to 0"),
        ("shadow: {model: a:1, tolerance: .nan}", "shadow.tolerance", "finite"),
        ("shadow: {model: a:1, percent: 5}", "shadow.percent", "is not a setting"),
    ],
)
def test_what_is_wrong_with_a_version_is_told_with_its_place(
    line: str, place: str, said: str
) -> None:
    with pytest.raises(SpecError) as error:
        parsed(f"{SPEC}    {line}\n")

    assert f"streams[0].{place} (line 10)" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("what", ["canary: {percent: 5, model", "shadow: {model"])
def test_a_model_that_is_none_is_told_where_it_stands(what: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_spec(SPEC.replace("./old.onnx", "a:1") + f"    {what}: 'a b'}}\n")

    assert f"streams[0].{what.partition(':')[0]}.model" in str(error.value)
    assert "neither an absolute path nor a registry reference" in str(error.value)


@pytest.mark.parametrize("kind", ["raw", "open_inference"])
def test_a_key_in_a_format_without_fields_is_a_mistake(kind: str) -> None:
    text = f"{SPEC}    format: {{kind: {kind}}}\n"

    assert parsed(f"{text}    canary: {{model: a:1, percent: 5}}\n").canary is not None
    with pytest.raises(SpecError, match=r"streams\[0\].canary.key .*without it records' keys"):
        parsed(f"{text}    canary: {{model: a:1, percent: 5, key: card}}\n")


def test_dead_letters_have_a_topic_of_their_own_also_where_nobody_names_it() -> None:
    with pytest.raises(SpecError, match="'pay-dead-letters' is read too"):
        parsed(SPEC.replace("[in]", "[in, pay-dead-letters]"))
    with pytest.raises(SpecError, match="'pay-dead-letters' is where answers go"):
        parsed(SPEC.replace("{topic: out}", "{topic: pay-dead-letters}"))
