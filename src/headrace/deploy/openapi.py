"""Which requests may callers make of an endpoint? As OpenAPI 3.0.1 describes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from headrace.deploy.facts import Endpoint, Facts

_DATATYPES: Final = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)
_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One request. `schema`: of its body, empty for none; `parameters`: names in the path."""

    method: str
    path: str
    summary: str
    endpoint: Endpoint | None = None
    schema: str = ""
    parameters: tuple[str, ...] = ()
    binary: bool = False

    @property
    def validates(self) -> bool:
        """Whether a body is checked."""
        return bool(self.schema)

    @property
    def key(self) -> str:
        """The route, as an HTTP API names it."""
        return f"{self.method.upper()} {self.path}"

    def body(self) -> dict[str, Any]:
        """The operation."""
        found: dict[str, Any] = {"summary": self.summary}
        if self.parameters:
            found["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in self.parameters
            ]
        if self.schema:
            content = {_JSON: {"schema": {"$ref": f"#/components/schemas/{self.schema}"}}}
            if self.binary:
                content[_BINARY] = {"schema": {"type": "string", "format": "binary"}}
            found["requestBody"] = {"required": True, "content": content}
        found["responses"] = {"default": {"description": "as Headrace answers"}}
        return found


def operations(facts: Facts) -> Iterator[Operation]:
    """All requests that callers may make, first those about the server."""
    for path, summary in (
        ("/v2", "the server's name, version and protocol extensions"),
        ("/v2/health/live", "whether the server lives"),
        ("/v2/health/ready", "whether it can answer"),
    ):
        yield Operation(method="get", path=path, summary=summary)
    for endpoint in facts.endpoints:
        yield from _of(endpoint)


def _of(endpoint: Endpoint) -> Iterator[Operation]:
    base = f"/v2/models/{endpoint.name}"
    for path, names in ((base, ()), (f"{base}/versions/{{version}}", ("version",))):
        yield Operation(
            method="post",
            path=f"{path}/infer",
            summary=f"one run of {endpoint.name}",
            endpoint=endpoint,
            schema="InferRequest",
            parameters=names,
            binary=True,
        )
        for suffix, summary in (
            ("", "inputs and outputs"),
            ("/ready", "whether it can answer"),
            ("/config", "its configuration in Triton's form"),
            ("/stats", "its counters in Triton's form"),
        ):
            yield Operation(
                method="get",
                path=f"{path}{suffix}",
                summary=f"{endpoint.name}: {summary}",
                endpoint=endpoint,
                parameters=names,
            )
    v1 = f"/v1/models/{endpoint.name}"
    yield Operation(
        method="post",
        path=f"{v1}:predict",
        summary=f"one run of {endpoint.name}, by KServe's V1",
        endpoint=endpoint,
        schema="PredictRequest",
    )
    summary = f"{endpoint.name}: whether it can answer, by KServe's V1"
    yield Operation(method="get", path=v1, summary=summary, endpoint=endpoint)


def schemas() -> dict[str, Any]:
    """The bodies. Numbers and data stay open: the replica says best what is wrong with them."""
    tensor: dict[str, Any] = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"type": "string", "enum": list(_DATATYPES)},
            "parameters": {"type": "object"},
            "data": {"type": "array", "items": {}},
        },
    }
    request: dict[str, Any] = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    }
    predict: dict[str, Any] = {"type": "object"}
    return {"Tensor": tensor, "InferRequest": request, "PredictRequest": predict}
