"""OpenAI's embeddings, the rerank request of Cohere, Jina and vLLM, and OpenAI's form of errors.

Fields that are not listed here, such as `user`, are ignored.
"""

import base64
import re
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import orjson

from headrace.core import (
    Array,
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    RuntimeFailedError,
)
from headrace.protocol.json_bounds import check_parts, check_values
from headrace.protocol.json_messages import UNREADABLE, unreadable
from headrace.protocol.values import Body

EMBEDDINGS_PATH: Final = b"/v1/embeddings"
RERANK_PATHS: Final = (b"/v1/rerank", b"/v2/rerank")
MAX_TEXTS: Final = 2048
"""Texts of one request, as for OpenAI's API."""
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
_FIELD: Final = re.compile(r"`\$\.(\w+)|missing required field `(\w+)`")
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
T = TypeVar("T")


class InvalidFieldError(InvalidArgumentError):
    """A field of the body is invalid."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(message)
        self.field = field


Count = Annotated[int, msgspec.Meta(ge=1)]


class ModelField(msgspec.Struct, gc=False):
    """The field that every request has."""

    model: str


class EmbeddingsRequest(ModelField, gc=False):
    """Body of `POST /v1/embeddings`."""

    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_TEXTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None


class RerankDocument(msgspec.Struct, gc=False):
    """A document as an object."""

    text: str


class RerankRequest(ModelField, gc=False):
    """Body of `POST /v1/rerank` and `/v2/rerank`."""

    query: str
    documents: Annotated[
        list[str | RerankDocument], msgspec.Meta(min_length=1, max_length=MAX_TEXTS)
    ]
    top_n: Count | None = None
    return_documents: bool | None = None


def decode_request(body: Body, kind: type[T]) -> T:
    """Return `body` as one of the requests above.

    Raises:
        InvalidArgumentError: It is not JSON, or has too many values.
        InvalidFieldError: A field is missing or has another type.
    """
    check_parts(body)
    check_values(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        match = _FIELD.search(str(error))
        field = (match[1] or match[2]) if match else None
        message = str(error)
        if field == "input" and ("got `int`" in message or "got `array`" in message):
            message = f"token ids are not supported, send texts: {message}"
        raise InvalidFieldError(message, field) from None
    except UNREADABLE as error:
        raise unreadable(error) from None


def model_and_version(model: str) -> tuple[str, str]:
    """Return the parts of the field `model`: `NAME` or `NAME:VERSION`; no version is empty."""
    name, _, version = model.partition(":")
    return name, version


def check_dimensions(dimensions: int | None, size: int) -> None:
    """Raise InvalidFieldError if vectors of `size` numbers cannot be cut to `dimensions`."""
    if dimensions is not None and dimensions > size:
        msg = f"'dimensions' is {dimensions}, but the vectors of this model have {size}"
        raise InvalidFieldError(msg, "dimensions")


def encode_embeddings(
    model: str, vectors: Array, tokens: int, *, as_base64: bool, dimensions: int | None
) -> bytes:
    """Return the response to `/v1/embeddings`.

    Args:
        vectors: FP32 [N, size].
        as_base64: Whether each vector is the base64 text of its little-endian FP32 numbers.
        dimensions: Numbers to keep of each vector, which is then scaled to length 1.

    Raises:
        InvalidFieldError: A vector has fewer numbers than `dimensions`.
        RuntimeFailedError: A vector is not finite.
    """
    size = vectors.shape[1]
    check_dimensions(dimensions, size)
    if dimensions is not None and dimensions < size:
        vectors = vectors[:, :dimensions]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    vectors = _finite(np.ascontiguousarray(vectors, "<f4"))
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector).decode() if as_base64 else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    document = {"object": "list", "data": data, "model": model, "usage": _usage(tokens)}
    return orjson.dumps(document, option=_NUMPY)


def encode_rerank(
    response_id: str,
    model: str,
    scores: Array,
    tokens: int,
    *,
    documents: Array | None,
    top_n: int | None,
) -> bytes:
    """Return the response to `/v1/rerank`: the `top_n` documents of the highest scores, or all.

    Args:
        scores: FP32 [N].
        documents: Texts as BYTES [N] that the response repeats; None for none.

    Raises:
        RuntimeFailedError: A score is not finite.
    """
    results: list[dict[str, Any]] = []
    for index in np.argsort(-_finite(scores), kind="stable")[:top_n].tolist():
        result = {"index": index, "relevance_score": scores[index]}
        if documents is not None:
            result["document"] = {"text": documents[index].decode()}
        results.append(result)
    document = {"id": response_id, "model": model, "results": results, "usage": _usage(tokens)}
    return orjson.dumps(document, option=_NUMPY)


def encode_openai_error(error: HeadraceError, status: int) -> bytes:
    """Return OpenAI's error body, `{"error": {"message", "type", "param", "code"}}`."""
    kind, code = "invalid_request_error", None
    if status >= _SERVER_ERROR:
        kind = "server_error"
    elif status == _TOO_MANY:
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    text = str(error)
    if isinstance(error, ModelNotFoundError):
        code = "model_not_found"
        name = f"{error.name}:{error.version}" if error.version else error.name
        text = f"The model `{name}` does not exist or you do not have access to it."
    fields = {
        "message": text.encode("utf-8", "replace").decode(),
        "type": kind,
        "param": getattr(error, "field", None),
        "code": code,
    }
    return orjson.dumps({"error": fields})


def _finite(numbers: Array) -> Array:
    if not np.isfinite(numbers).all():
        raise RuntimeFailedError("the model returned a number that is not finite")
    return numbers


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
