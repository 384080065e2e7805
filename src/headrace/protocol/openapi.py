"""OpenAPI documents: of one model, from its signature with an example request, and of a server.

https://spec.openapis.org/oas/v3.1.0
"""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from headrace import __version__
from headrace.core import VARIABLE, Datatype, ModelSignature, Tensors, TensorSpec, datatype_of
from headrace.protocol.metadata import Document

_JSON: Final = "application/json"
_MAX_VALUES: Final = 10_000
"""Larger examples are left out: a document of megabytes helps nobody."""
_INTEGERS: Final = "iu"


def infer_document(inputs: Tensors) -> Document:
    """Return `inputs` as a V2 request in JSON.

    Raises:
        UnicodeDecodeError: A BYTES element is not UTF-8, so JSON cannot represent it.
    """
    return {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_of(array.dtype).value,
                "data": [
                    item.decode() if isinstance(item, bytes) else item
                    for item in array.ravel().tolist()
                ],
            }
            for name, array in inputs.items()
        ]
    }


def predict_document(inputs: Tensors, *, batched: bool) -> Document:
    """Return `inputs` as a V1 request: rows of a batched model's only input, else columns."""
    columns = {name: _texts(array.tolist()) for name, array in inputs.items()}
    if batched and len(columns) == 1:
        return {"instances": next(iter(columns.values()))}
    return {"inputs": columns}


def model_openapi(
    name: str,
    version: str,
    signature: ModelSignature,
    *,
    example: Tensors,
    server: bool = False,
) -> Document:
    """Return the document of one model.

    Args:
        example: Inputs that the model accepts; left out if JSON cannot represent them.
        server: Whether the document also describes the server's own paths.
    """
    base = f"/v2/models/{name}"
    v2, v1 = _examples(signature, example)
    paths: Document = {
        f"{base}/infer": {
            "post": _operation(
                name,
                "Run the model",
                body=_content("InferRequest", v2),
                answer="InferResponse",
                description=_described(signature, has_example=v2 is not None),
            )
        },
        f"{base}": {"get": _operation(name, "Inputs and outputs of the model")},
        f"{base}/ready": {"get": _operation(name, "Whether the model is ready")},
        f"{base}/config": {"get": _operation(name, "Configuration, in Triton's form")},
        f"{base}/stats": {"get": _operation(name, "Counts and durations, in Triton's form")},
        f"/v1/models/{name}:predict": {
            "post": _operation(
                name,
                "Run the model, by KServe's V1 protocol",
                body=_content("PredictRequest", v1),
                answer="PredictResponse",
            )
        },
        f"/endpoints/{name}/invocations": {
            "post": _operation(
                name,
                "Run the model, by MLflow's and SageMaker's protocol",
                # Values that are not text have no form in it.
                body=_content("PredictRequest", v1 if v2 is not None else None),
                answer="PredictResponse",
            )
        },
    }
    if server:
        paths |= _server_paths()
    schemas = {**_SCHEMAS, "InferRequest": _infer_request(map(_tensor_schema, signature.inputs))}
    return _document(f"{name}, version {version}", paths, schemas)


def server_openapi(names: Sequence[str]) -> Document:
    """Return the document of a server with several models; a path parameter has their names."""
    model: Document = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": list(names)},
    }
    version: Document = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
    }
    base = "/v2/models/{name}"
    infer = _operation("models", "Run a model", body=_content("InferRequest", None))
    predict = _operation(
        "models", "Run a model, by KServe's V1 protocol", body=_content("PredictRequest", None)
    )
    invoke = _operation(
        "models",
        "Run a model, by MLflow's and SageMaker's protocol",
        body=_content("PredictRequest", None),
    )
    gets = {
        base: "Inputs and outputs of a model",
        f"{base}/ready": "Whether a model is ready",
        f"{base}/config": "Configuration of a model, in Triton's form",
        f"{base}/stats": "Counts and durations of a model, in Triton's form",
        f"{base}/openapi.json": "OpenAPI document of a model, with an example request",
    }
    paths: Document = {
        f"{base}/infer": {"parameters": [model], "post": infer},
        f"{base}/versions/{{version}}/infer": {"parameters": [model, version], "post": infer},
        "/v1/models/{name}:predict": {"parameters": [model], "post": predict},
        "/endpoints/{name}/invocations": {"parameters": [model], "post": invoke},
        **{
            path: {"parameters": [model], "get": _operation("models", summary)}
            for path, summary in gets.items()
        },
        **_server_paths(),
    }
    schemas = {**_SCHEMAS, "InferRequest": _infer_request([_tensor_schema()])}
    return _document("Headrace", paths, schemas)


def _document(title: str, paths: Document, schemas: Document) -> Document:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": __version__,
            "description": "Open Inference Protocol (V2) and KServe V1. Bodies may also hold "
            "tensors in binary form; gRPC is on the same port.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "token": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _server_paths() -> Document:
    gets = {
        "/v2": "Name, version and protocol extensions of the server",
        "/v2/models": "Names of the endpoints",
        "/v2/health/live": "Whether the server runs",
        "/v2/health/ready": "Whether the server is ready",
    }
    return {path: {"get": _operation("server", summary)} for path, summary in gets.items()}


def _operation(
    tag: str,
    summary: str,
    *,
    body: Document | None = None,
    answer: str = "",
    description: str = "",
) -> Document:
    error = {"description": "The reason", "content": _content("Error", None)}
    success: Document = {"description": "Success"}
    if answer:
        success["content"] = _content(answer, None)
    return {
        "tags": [tag],
        "summary": summary,
        **({"description": description} if description else {}),
        **({"requestBody": {"required": True, "content": body}} if body is not None else {}),
        "responses": {"200": success, "default": error},
    }


def _content(schema: str, example: Document | None) -> Document:
    media: Document = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    if example is not None:
        media["example"] = example
    return {_JSON: media}


def _examples(
    signature: ModelSignature, example: Tensors
) -> tuple[Document | None, Document | None]:
    """Return the example request of V2 and of V1; None where JSON cannot represent it."""
    is_half = any(spec.datatype is Datatype.FP16 for spec in signature.inputs)
    if is_half or sum(array.size for array in example.values()) > _MAX_VALUES:
        return None, None
    v1 = predict_document(example, batched=signature.batched)
    try:
        return infer_document(example), v1
    except UnicodeDecodeError:
        return None, v1


def _described(signature: ModelSignature, *, has_example: bool) -> str:
    """Return the text about the shapes of a request."""
    notes = []
    if signature.batched:
        notes.append("The first dimension of every tensor is the number of rows.")
    if has_example and signature.has_variable_size:
        notes.append("Variable dimensions (-1) have size 1 in the example.")
    if not has_example:
        notes.append("JSON has no example of these inputs: send tensors in binary form.")
    return " ".join(notes)


def _tensor_schema(spec: TensorSpec | None = None) -> Document:
    """Return the schema of an input; of any input for None."""
    name: Document = {"type": "string"}
    datatype: Document = {"type": "string", "enum": [kind.value for kind in Datatype]}
    shape: Document = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    items: Document = {}
    title = "Tensor"
    if spec is not None:
        title = spec.name
        name["const"] = spec.name
        datatype = {"type": "string", "const": spec.datatype.value}
        sizes = [
            {"type": "integer", "minimum": 0} if size == VARIABLE else {"const": size}
            for size in spec.shape
        ]
        shape |= {"minItems": len(sizes), "maxItems": len(sizes)}
        if sizes:
            shape["prefixItems"] = sizes
        shape["description"] = f"{list(spec.shape)}; -1 is any size"
        items = {"type": ["array", *_json_types(spec.datatype)]}
    return {
        "title": title,
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": name,
            "shape": shape,
            "datatype": datatype,
            "data": {
                "type": "array",
                "items": items,
                "description": "Values in row-major order, flat or nested.",
            },
            "parameters": {"type": "object"},
        },
    }


def _json_types(datatype: Datatype) -> Iterator[str]:
    if datatype is Datatype.BOOL:
        yield "boolean"
    elif datatype is Datatype.BYTES:
        yield "string"
    elif datatype.dtype.kind in _INTEGERS:
        yield "integer"
    else:
        yield from ("number", "string", "null")  # "Infinity", and null for NaN


def _infer_request(tensors: Iterable[Document]) -> Document:
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": {"anyOf": list(tensors)}},
            "outputs": {"type": "array", "items": _REQUESTED_OUTPUT},
            "parameters": {"type": "object"},
        },
    }


def _texts(value: Any) -> Any:  # noqa: ANN401  # nested lists
    """Return nested lists with bytes as JSON: text, or base64 if they are not UTF-8."""
    if isinstance(value, list):
        return [_texts(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": b64encode(value).decode()}


_REQUESTED_OUTPUT: Final[Document] = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
}
_SCHEMAS: Final[Mapping[str, Document]] = {
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _tensor_schema()},
        },
    },
    "PredictRequest": {
        "type": "object",
        "properties": {
            "instances": {"type": "array", "description": "Rows."},
            "inputs": {"description": "Columns: one tensor, or an object of tensors by name."},
        },
    },
    "PredictResponse": {
        "type": "object",
        "required": ["predictions"],
        "properties": {"predictions": {}},
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
}
