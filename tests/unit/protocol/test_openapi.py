"""OpenAPI documents, whose example requests the decoders accept."""

import json
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from headrace.core import Datatype, ModelSignature
from headrace.core.examples import example_inputs
from headrace.protocol import InferDecoder, V1Codec
from headrace.protocol.openapi import model_openapi, server_openapi
from tests.unit.protocol.models import MIXED, PAIR, ROW, of, spec

SIGNATURES = {
    "row": ROW,
    "two inputs": PAIR,
    "three datatypes": MIXED,
    "without batch": of("FP64", 2, 3, batched=False),
    **{datatype.value: of(datatype.value) for datatype in Datatype if datatype.value != "FP16"},
}


def document_of(signature: ModelSignature) -> dict[str, Any]:
    example = example_inputs(signature)
    document = model_openapi("m", "1", signature, example=example, server=True)
    read: dict[str, Any] = json.loads(json.dumps(document))
    return read


def body_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    content: dict[str, Any] = document["paths"][path]["post"]["requestBody"]["content"]
    return content["application/json"]  # type: ignore[no-any-return]


def schema_of(document: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    return {**body["schema"], "components": document["components"]}


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_the_example_of_infer_is_a_valid_request_with_the_example_inputs(
    signature: ModelSignature,
) -> None:
    document = document_of(signature)
    body = body_of(document, "/v2/models/m/infer")

    Draft202012Validator(schema_of(document, body)).validate(body["example"])
    decoder = InferDecoder("m", "1", signature, max_batch_size=8 if signature.batched else None)
    decoded = decoder.decode(json.dumps(body["example"]).encode())
    for name, array in example_inputs(signature).items():
        np.testing.assert_array_equal(decoded.inputs[name], array)


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_the_example_of_predict_is_a_valid_request_with_the_example_inputs(
    signature: ModelSignature,
) -> None:
    document = document_of(signature)
    body = body_of(document, "/v1/models/m:predict")

    Draft202012Validator(schema_of(document, body)).validate(body["example"])
    codec = V1Codec("m", "1", signature, max_batch_size=8 if signature.batched else None)
    decoded = codec.decode(json.dumps(body["example"]).encode())
    for name, array in example_inputs(signature).items():
        np.testing.assert_array_equal(decoded.inputs[name], array)


def test_inputs_without_json_form_have_no_example() -> None:
    for signature in (of("FP16"), of("FP32", 3, 224, 224, batched=False)):
        document = document_of(signature)

        for path in ("/v2/models/m/infer", "/v1/models/m:predict"):
            assert "example" not in body_of(document, path)
        described = document["paths"]["/v2/models/m/infer"]["post"]["description"]
        assert "send tensors in binary form" in described


def test_bytes_that_are_not_text_have_an_example_in_v1_only() -> None:
    signature = of("BYTES", 1, batched=False)
    picture = np.array([b"\xff\xd8"], object)
    document = model_openapi("m", "1", signature, example={"x": picture})

    assert "example" not in body_of(document, "/v2/models/m/infer")
    predict = body_of(document, "/v1/models/m:predict")["example"]
    decoded = V1Codec("m", "1", signature).decode(json.dumps(predict).encode())
    np.testing.assert_array_equal(decoded.inputs["x"], picture)


def test_the_schema_refuses_another_datatype_shape_and_name() -> None:
    document = document_of(ROW)
    body = body_of(document, "/v2/models/m/infer")
    validator = Draft202012Validator(schema_of(document, body))

    for change in ({"datatype": "INT64"}, {"shape": [1, 5]}, {"shape": [4]}, {"name": "w"}):
        request = json.loads(json.dumps(body["example"]))
        request["inputs"][0] |= change
        assert not validator.is_valid(request)


def test_the_document_of_a_server_names_its_models_once() -> None:
    document = json.loads(json.dumps(server_openapi(["a", "b"])))

    (parameter,) = document["paths"]["/v2/models/{name}/infer"]["parameters"]
    assert parameter["schema"]["enum"] == ["a", "b"]
    assert "/v2/health/ready" in document["paths"]


def test_shapes_are_described_with_their_variable_dimensions() -> None:
    signature = ModelSignature(inputs=(spec("t", "FP32", -1, 4),), outputs=(), batched=True)
    document = document_of(signature)

    request = document["components"]["schemas"]["InferRequest"]
    (tensor,) = request["properties"]["inputs"]["items"]["anyOf"]
    assert tensor["properties"]["shape"]["prefixItems"] == [
        {"type": "integer", "minimum": 0},
        {"const": 4},
    ]
