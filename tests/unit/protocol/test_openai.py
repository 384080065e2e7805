"""Bodies of OpenAI's routes: parsing, vectors as numbers and as base64, ranks, errors."""

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headrace.core import (
    Array,
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    RuntimeFailedError,
)
from headrace.protocol import http_status
from headrace.protocol.openai import (
    MAX_TEXTS,
    EmbeddingsRequest,
    InvalidFieldError,
    RerankDocument,
    RerankRequest,
    decode_request,
    encode_embeddings,
    encode_openai_error,
    encode_rerank,
    model_and_version,
)

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=5), child),
    max_leaves=8,
)
KEYS = ("model", "input", "encoding_format", "dimensions", "query", "documents", "top_n")


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def encoded(vectors: Array, *, as_base64: bool = False, dimensions: int | None = None) -> list[Any]:
    raw = encode_embeddings("m", vectors, 7, as_base64=as_base64, dimensions=dimensions)
    document = json.loads(raw)
    assert document["object"] == "list"
    assert document["model"] == "m"
    assert document["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item["index"] for item in document["data"]] == list(range(len(vectors)))
    return [item["embedding"] for item in document["data"]]


def test_request_may_have_one_text_or_several() -> None:
    one = decode_request(body(model="m", input="a", user="u"), EmbeddingsRequest)
    many = decode_request(
        body(model="m", input=["a", "b"], dimensions=2, encoding_format="base64"),
        EmbeddingsRequest,
    )

    assert one == EmbeddingsRequest("m", "a")
    assert many == EmbeddingsRequest("m", ["a", "b"], "base64", 2)


def test_document_may_be_a_text_or_an_object() -> None:
    request = decode_request(
        body(model="m", query="q", documents=["a", {"text": "b", "id": 1}]), RerankRequest
    )

    assert request.documents == ["a", RerankDocument("b")]


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"input": "a"}, "model", "missing"),
        ({"model": 1, "input": "a"}, "model", "Expected `str`"),
        ({"model": "m"}, "input", "missing"),
        ({"model": "m", "input": []}, "input", "length >= 1"),
        ({"model": "m", "input": ["a"] * (MAX_TEXTS + 1)}, "input", "length <= 2048"),
        ({"model": "m", "input": [1, 2]}, "input", "token ids are not supported"),
        ({"model": "m", "input": [[1], [2]]}, "input", "token ids are not supported"),
        ({"model": "m", "input": {"a": "b"}}, "input", "Expected"),
        ({"model": "m", "input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"model": "m", "input": "a", "dimensions": 1.5}, "dimensions", "Expected `int"),
        ({"model": "m", "input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, object], field: str, reason: str) -> None:
    with pytest.raises(InvalidFieldError, match=reason) as caught:
        decode_request(body(**fields), EmbeddingsRequest)

    error = json.loads(encode_openai_error(caught.value, 400))["error"]
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert reason in error["message"]


@given(
    st.binary(max_size=50)
    | st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda fields: json.dumps(fields).encode())
)
def test_hostile_body_is_a_request_or_an_invalid_argument(raw: bytes) -> None:
    for kind in (EmbeddingsRequest, RerankRequest):
        try:
            request = decode_request(raw, kind)
        except InvalidArgumentError as error:
            document = json.loads(encode_openai_error(error, http_status(error)))
        else:
            document = json.loads(msgspec.json.encode(request))  # its texts are UTF-8
        assert document


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 5)), elements=FINITE))
def test_base64_and_numbers_have_the_same_bits(vectors: Array) -> None:
    numbers = np.array(encoded(vectors), np.float32)
    raw = b"".join(map(base64.b64decode, encoded(vectors, as_base64=True)))

    assert numbers.tobytes() == vectors.tobytes()
    assert raw == vectors.tobytes()


@given(arrays(np.float32, (2, 6), elements=st.floats(-100, 100, width=32)), st.integers(1, 6))
def test_dimensions_keep_the_first_numbers_at_length_1(vectors: Array, size: int) -> None:
    cut = np.array(encoded(vectors, dimensions=size), np.float32)

    assert cut.shape == (2, size)
    if size == 6:
        np.testing.assert_array_equal(cut, vectors)
        return
    first = vectors[:, :size].astype(np.float64)
    lengths = np.linalg.norm(first, axis=1, keepdims=True)
    is_long = lengths[:, 0] > 1e-6
    np.testing.assert_allclose(cut[is_long], first[is_long] / lengths[is_long], atol=1e-6)


def test_more_dimensions_than_the_vectors_have_are_refused() -> None:
    with pytest.raises(InvalidFieldError, match="is 5, but the vectors of this model have 4"):
        encoded(np.ones((1, 4), np.float32), dimensions=5)


def test_number_that_is_not_finite_is_a_failure_of_the_model() -> None:
    with pytest.raises(RuntimeFailedError):
        encoded(np.array([[1, np.nan]], np.float32))
    with pytest.raises(RuntimeFailedError):
        encode_rerank("i", "m", np.array([np.inf], np.float32), 1, documents=None, top_n=None)


@given(arrays(np.float32, st.integers(1, 9), elements=FINITE), st.integers(1, 12) | st.none())
def test_results_are_the_best_documents_in_order(scores: Array, top_n: int | None) -> None:
    documents = np.array([str(i).encode() for i in range(len(scores))], np.object_)

    document = json.loads(encode_rerank("i", "m", scores, 5, documents=documents, top_n=top_n))

    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:top_n]
    assert [result["index"] for result in document["results"]] == order
    for result in document["results"]:
        assert np.float32(result["relevance_score"]) == scores[result["index"]]
        assert result["document"] == {"text": str(result["index"])}
    assert document["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize(
    ("error", "kind", "code", "message"),
    [
        (
            ModelNotFoundError("x", "2"),
            "invalid_request_error",
            "model_not_found",
            "The model `x:2` does not exist or you do not have access to it.",
        ),
        (
            OverloadedError("full", retry_after_s=1.0),
            "rate_limit_error",
            "rate_limit_exceeded",
            "full; retry in 1 s",
        ),
        (HeadraceError("broken \ud800"), "server_error", None, "broken ?"),
    ],
)
def test_errors_have_the_form_of_openai(
    error: HeadraceError, kind: str, code: str | None, message: str
) -> None:
    assert json.loads(encode_openai_error(error, http_status(error))) == {
        "error": {"message": message, "type": kind, "param": None, "code": code}
    }


@pytest.mark.parametrize(
    ("model", "expected"), [("m", ("m", "")), ("m:2", ("m", "2")), ("a:b:c", ("a", "b:c"))]
)
def test_model_may_name_a_version(model: str, expected: tuple[str, str]) -> None:
    assert model_and_version(model) == expected
