"""A right spec is read whole; of a wrong one every mistake is told, with its place."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import BatchingSpec, PaddingSpec
from headrace.core.spec.parse import (
    EndpointSpec,
    SpecError,
    SpecMistake,
    SystemSpec,
    is_model_path,
    json_schema,
    parse_spec,
)
from headrace.core.spec.yaml import MAX_BYTES, read_yaml

BASE = Path("/specs")


def parse(source: str | dict[str, Any], *files: str) -> SystemSpec:
    present = {BASE / file for file in files}
    return parse_spec(source, base_dir=BASE, exists=lambda path: path in present)


def spec_or_mistakes(source: str | dict[str, Any]) -> object:
    try:
        return parse(source)
    except SpecError as error:
        return error.mistakes


def mistakes(source: str | dict[str, Any]) -> dict[str, SpecMistake]:
    with pytest.raises(SpecError) as caught:
        parse(source)
    assert all(str(mistake) in str(caught.value) for mistake in caught.value.mistakes)
    return {mistake.place: mistake for mistake in caught.value.mistakes}


def endpoint(**fields: object) -> dict[str, Any]:
    return {"endpoints": [{"name": "m", "model": "m:1", **fields}]}


FULL = """
version: 1
gateway: {http_port: 8000, grpc_port: 8001, host: 127.0.0.1, max_body_bytes: 67108864,
          access_log: true}
endpoints:
  - name: digits
    model: ./digits.onnx
    replicas: 2
    batching: {max_batch_size: 16, max_queue_delay_s: 0, max_queue_size: 10,
               max_concurrent_runs: null, padding: {axis: 1, values: {ids: 0}, max_ratio: 1.2}}
    timeout_s: 30
    runtime: onnx
    labels: {prob: [cat, dog]}
  - name: fraud
    versions:
      - {model: "fraud:1", weight: 90, replicas: 2}
      - {model: "fraud:2", weight: 10}
"""


def test_every_field_of_the_documented_example_is_read() -> None:
    spec = parse(FULL)
    digits, fraud = spec.endpoints

    assert digits.model == "/specs/digits.onnx"
    assert digits.labels == {"prob": ("cat", "dog")}
    assert [(v.model, v.weight, v.replicas) for v in digits.split()] == [
        ("/specs/digits.onnx", 100, 2)
    ]
    assert [(v.model, v.weight, v.replicas) for v in fraud.split()] == [
        ("fraud:1", 90, 2),
        ("fraud:2", 10, 1),
    ]


def test_batching_becomes_the_message_that_a_replica_gets() -> None:
    batching = parse(FULL).endpoints[0].batching

    assert batching == BatchingSpec(
        max_batch_size=16,
        max_queue_size=10,
        padding=PaddingSpec(axis=1, values={"ids": 0.0}, max_ratio=1.2),
    )


def test_defaults_are_those_of_the_replica() -> None:
    spec = parse(endpoint())

    assert spec.endpoints[0].batching == BatchingSpec()


def test_declared_rows_reach_the_message_only_where_they_are_declared() -> None:
    plain = parse(endpoint()).endpoints[0].batching
    document = endpoint(batching={"rows_independent": True, "row_check_ratio": 0.0})
    declared = parse(document).endpoints[0].batching

    assert not [key for key in msgspec.to_builtins(plain) if key.startswith("row")]
    assert (declared.rows_independent, declared.row_check_ratio) == (True, 0.0)


def test_an_empty_system_is_a_system() -> None:
    assert parse("version: 1").endpoints == ()


def test_json_text_and_plain_data_say_the_same_as_yaml() -> None:
    document = parse(FULL).document()

    assert parse(document) == parse(FULL)
    assert parse(json.dumps(document)) == parse(FULL)
    assert document["version"] == 1
    assert "gateway" not in parse(endpoint()).document()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("fraud", "fraud"),
        ("fraud:3", "fraud:3"),
        ("digits.onnx", "/specs/digits.onnx"),
        ("absent.onnx", "absent.onnx"),
        ("./absent.onnx", "/specs/absent.onnx"),
        ("models/m.onnx", "/specs/models/m.onnx"),
        ("two words.onnx", "/specs/two words.onnx"),
        (".", "/specs"),
        ("/abs/m.onnx", "/abs/m.onnx"),
    ],
)
def test_a_model_is_a_path_or_a_reference(model: str, expected: str) -> None:
    found = parse(endpoint(model=model), "digits.onnx").endpoints[0].model

    assert found == expected
    assert is_model_path(expected) == expected.startswith("/")


def test_a_home_directory_is_expanded() -> None:
    assert parse(endpoint(model="~/m.onnx")).endpoints[0].model == str(Path.home() / "m.onnx")


def test_without_a_base_directory_relative_paths_are_refused() -> None:
    with pytest.raises(SpecError, match="neither an absolute path nor a registry reference"):
        parse_spec(endpoint(model="./m.onnx"))


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    found = mistakes("""\
version: 1
gateway: {hots: x, max_body_bytes: 3}
endpoints:
  - name: digits
    model: m:1
    batching:
      max_batch_sise: 32
      padding: {axis: 0}
  - name: digits
    versions:
      - {model: "fraud:1", weight: 90}
      - {model: "fraud:1", weight: 20}
    replicas: 2
  - name: a b
    model: x
    versions: [{weight: "3"}]
  - {name: z, replicas: true}
  - foo
""")

    assert {place: mistake.line for place, mistake in found.items()} == {
        "gateway.hots": 2,
        "gateway.max_body_bytes": 2,
        "endpoints[0].batching.max_batch_sise": 7,
        "endpoints[0].batching.padding.axis": 8,
        "endpoints[1].name": 9,
        "endpoints[1].versions": 10,
        "endpoints[1].versions[1].model": 12,
        "endpoints[1].replicas": 13,
        "endpoints[2].name": 14,
        "endpoints[2].versions": 16,
        "endpoints[2].versions[0].weight": 16,
        "endpoints[3]": 17,
        "endpoints[3].replicas": 17,
        "endpoints[4]": 18,
    }


@pytest.mark.parametrize(
    ("fields", "place", "text"),
    [
        ({"modle": "x"}, "endpoints[0].modle", "did you mean 'model'?"),
        ({"qqq": 1}, "endpoints[0].qqq", "allowed settings: name, model"),
        ({"batching": {"max_queue": 1}}, "endpoints[0].batching.max_queue", "did you mean"),
        ({"batching": 3}, "endpoints[0].batching", "should be a mapping"),
        ({"labels": {"p": "cat"}}, "endpoints[0].labels.p", "should be a list"),
        ({"timeout_s": 0}, "endpoints[0].timeout_s", "greater than 0"),
        ({"timeout_s": float("nan")}, "endpoints[0].timeout_s", "got nan"),
        ({"replicas": 0}, "endpoints[0].replicas", "greater than or equal to 1"),
        ({"replicas": "2"}, "endpoints[0].replicas", "valid integer"),
        ({"name": "x" * 200}, "endpoints[0].name", "must have 1 to 128 letters"),
        ({"model": "a:b"}, "endpoints[0].model", "neither"),
        ({"model": "a\0b"}, "endpoints[0].model", "neither"),
        ({"model": ""}, "endpoints[0].model", "at least 1 character"),
        ({"model": None}, "endpoints[0]", "needs 'model'"),
        ({"model": None, "versions": []}, "endpoints[0].versions", "at least 1 item"),
    ],
)
def test_a_mistake_says_where_and_what(fields: dict[str, Any], place: str, text: str) -> None:
    source = endpoint(**fields)
    with pytest.raises(SpecError) as caught:
        parse_spec(source, base_dir=None)
    found = {mistake.place: mistake.message for mistake in caught.value.mistakes}

    assert text in found[place]
    assert all(len(message) < 400 for message in found.values())


@pytest.mark.parametrize("weights", [[50, 49], [0, 0], [100, 100], [99]])
def test_weights_sum_to_a_hundred(weights: list[int]) -> None:
    versions = [{"model": f"m:{i}", "weight": w} for i, w in enumerate(weights)]
    found = mistakes({"endpoints": [{"name": "m", "versions": versions}]})

    assert f"sum to {sum(weights)}" in found["endpoints[0].versions"].message


def test_models_made_in_code_are_checked_as_well() -> None:
    one = EndpointSpec(name="m", model="m:1")

    with pytest.raises(ValueError, match="already the name"):
        SystemSpec(endpoints=(one, one))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing"),
        ("- 1", "holds a list"),
        ("just text", "holds a str"),
        ("a: [", "is not YAML"),
        ("\tversion: 1", "tab"),
        ("endpoints:\n\t- name: x", "tab"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("version: *nobody", "undefined alias"),
        ("version: 1\nversion: 1", "appears twice"),
        ("version: !!python/object:os.system x", "only plain values"),
        ("? [a]\n: b", "key that is not text"),
        ("version: 1\n<<: 3", "not a mapping"),
        ("<<: &a {<<: *a}", "merges itself"),
        ("a: &a [*a]", "deeper than"),
        ("[" * 5000, "nested too deep"),
        ("a: \x00", "is not YAML"),
        ("version: 0b_", "is not a number"),
        ("x" * (MAX_BYTES + 1), "longer than"),
    ],
)
def test_hazards_of_yaml_are_told_as_mistakes(text: str, message: str) -> None:
    with pytest.raises(SpecError, match="mistake") as caught:
        parse(text)
    assert message in str(caught.value)


def test_aliases_that_multiply_are_cut_short() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]

    with pytest.raises(SpecError, match="more than 50000 values"):
        parse("\n".join(rows))


def test_merges_that_multiply_are_cut_short() -> None:
    rows = ["a0: &a0 {}"]
    rows += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)]

    with pytest.raises(SpecError, match="more than 50000 values"):
        parse("\n".join(rows))


def test_defaults_can_be_shared_by_anchors() -> None:
    document = read_yaml("d: &d {x: 1, y: 2}\ne: {<<: *d, y: 3}\nf: {<<: [*d, {z: 4}]}").value

    assert document["e"] == {"x": 1, "y": 3}
    assert document["f"] == {"x": 1, "y": 2, "z": 4}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x1F", 31),
        ("010", 10),
        ("1_000", 1000),
        ("-3", -3),
        ("1.5e3", 1500.0),
        (".inf", float("inf")),
        ("true", True),
        ("~", None),
        ("yes", "yes"),
        ("2026-01-01", "2026-01-01"),
        ("'8'", "8"),
    ],
)
def test_scalars_are_what_yaml_1_2_says(text: str, value: object) -> None:
    assert read_yaml(f"x: {text}").value["x"] == value


@given(st.text(max_size=200))
def test_no_text_makes_anything_but_a_spec_or_a_list_of_mistakes(text: str) -> None:
    assert spec_or_mistakes(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "model", "versions", "weight", "batching", "gateway", "replicas", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(["version", "gateway", "endpoints", "y"]), json_values))
def test_no_document_makes_anything_but_a_spec_or_a_list_of_mistakes(
    document: dict[str, Any],
) -> None:
    assert spec_or_mistakes(document)


def test_the_json_schema_describes_every_field() -> None:
    schema = json_schema()

    assert schema["title"] == "headrace.yaml"
    for model in [schema, *schema["$defs"].values()]:
        assert model["additionalProperties"] is False
        for name, field in model["properties"].items():
            assert "description" in json.dumps(field), name


def test_what_a_connection_may_cost_is_bounded_and_has_defaults() -> None:
    assert parse({}).gateway.connections.request_timeout_s == 60.0

    wrong = mistakes({"gateway": {"connections": {"max": 0, "idle_timeout_s": 0, "maximum": 1}}})

    assert wrong.keys() == {
        "gateway.connections.max",
        "gateway.connections.idle_timeout_s",
        "gateway.connections.maximum",
    }


@pytest.mark.parametrize(
    "uri", ["s3://models/a.onnx", "hf://org/name@main", "oci://ghcr.io/ml/digits:v1"]
)
def test_models_of_a_file_may_be_uris(uri: str) -> None:
    spec = parse(
        {
            "version": 1,
            "endpoints": [
                {"name": "a", "model": uri},
                {"name": "b", "versions": [{"model": uri, "weight": 100}]},
            ],
        }
    )

    assert spec.endpoints[0].model == uri
    assert spec.endpoints[1].split()[0].model == uri


def test_wrong_uris_are_mistakes_with_their_location() -> None:
    endpoints = [{"name": "a", "model": "s3://bucket"}, {"name": "b", "model": "ftp://host/a"}]
    found = mistakes({"version": 1, "endpoints": endpoints})

    assert "needs the key of a model" in found["endpoints[0].model"].message
    assert "is not a URI of s3://" in found["endpoints[1].model"].message


def test_uri_of_a_spec_without_a_file_is_refused_with_the_command_that_stores_it() -> None:
    with pytest.raises(SpecError, match="headrace models push NAME URI"):
        parse_spec({"version": 1, "endpoints": [{"name": "a", "model": "hf://org/name"}]})


def _named(name: str, fallback: object = None, protocol: str = "openai") -> dict[str, Any]:
    upstream = {"url": "http://8.8.8.8", "protocol": protocol}
    return {"name": name, "upstream": upstream, **({"fallback": fallback} if fallback else {})}


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ((_named("a", "a"),), "a -> a is a circle; a fallback must not lead back"),
        ((_named("a", "b"), _named("b", "c"), _named("c", "b")), "a -> b -> c -> b is a circle"),
        ((_named("a", "c"), _named("b")), "there is no endpoint 'c'; there are: a, b"),
        ((_named("a", "b"), _named("b", protocol="v2")), "'b' does not speak OpenAI's API"),
        ((_named("a", "b", "v2"), _named("b")), "'a' does not speak OpenAI's API"),
        (
            (*(_named(x, y) for x, y in zip("abcd", "bcde", strict=True)), _named("e")),
            "a -> b -> c -> d -> e has 4 fallbacks; there may be 3",
        ),
    ],
)
def test_a_fallback_that_cannot_answer_is_refused(
    endpoints: tuple[dict[str, Any], ...], message: str
) -> None:
    wrong = mistakes({"endpoints": list(endpoints)})

    assert message in wrong["endpoints[0].fallback"].message


def test_fallbacks_are_chained_and_may_be_models() -> None:
    model = {"name": "d", "model": "d:1"}
    spec = parse({"endpoints": [_named("a", "b"), _named("b", "c"), _named("c", "d"), model]})

    assert [endpoint.fallback for endpoint in spec.endpoints] == ["b", "c", "d", None]
    assert mistakes({"endpoints": [_named("a", "b"), _named("b", [1])]}).keys() == {
        "endpoints[1].fallback"
    }
