"""A command line that asks an endpoint something real, to copy and change."""

import base64
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from headrace.cli.management import Management
from headrace.core import VARIABLE, Array, Datatype, HeadraceError, ModelSignature, TensorSpec
from headrace.core.examples import example_inputs

_LONGEST_BODY: Final = 400


def command(
    http_url: str,
    endpoint: str,
    flag: str = "",
    *,
    gateway_ca: str = "",
    example: Mapping[str, float | str] = MappingProxyType({}),
) -> str:
    """A `curl` line for `endpoint` if its inputs are small, else a `headrace infer` line.

    Args:
        flag: What `headrace` needs besides, for instance ` --home DIR`.
        gateway_ca: The file of the gateway's certificate; empty for plain text. Only `headrace`
            knows that it may be trusted, so only that is named then.
        example: As `ModelSignature.example`, where the model's version is known.
    """
    short = f"headrace infer {endpoint}{flag}"
    if gateway_ca:
        return short
    try:
        document = Management(http_url).get(f"/v2/models/{endpoint}")
        inputs = [_spec(tensor) for tensor in document["inputs"]]
    except (HeadraceError, KeyError, ValueError):
        return short
    path, body = f"v2/models/{endpoint}/infer", example_body(inputs, example)
    if coded := _coded(inputs):
        path, body = f"v1/models/{endpoint}:predict", coded
    if len(body) > _LONGEST_BODY:
        return short
    return f"curl -s {http_url}/{path} -d '{body}'"


def example_of(management: Management, endpoint: Mapping[str, Any]) -> dict[str, float | str]:
    """`ModelSignature.example` of an endpoint of the status; empty where nobody knows it."""
    revisions = sorted(endpoint.get("revisions", []), key=lambda one: -one["weight"])
    name, colon, version = revisions[0]["model"].rpartition(":") if revisions else ("", "", "")
    if not colon or "/" in name:
        return {}
    try:
        document = management.get(f"/api/v1/models/{name}/versions/{version}")
    except HeadraceError:
        return {}
    example: dict[str, float | str] = document["signature"].get("example", {})
    return example


def example_body(
    inputs: list[TensorSpec], example: Mapping[str, float | str] = MappingProxyType({})
) -> str:
    """A V2 request with one made-up row, in numbers short enough to read."""
    batched = all(spec.shape[:1] == (VARIABLE,) for spec in inputs)
    signature = ModelSignature(inputs=tuple(inputs), outputs=(), batched=batched, example=example)
    tensors = [
        {
            "name": spec.name,
            "datatype": str(spec.datatype),
            "shape": list(array.shape),
            "data": _data(array, is_exact=spec.name in example),
        }
        for spec, array in zip(inputs, example_inputs(signature).values(), strict=True)
    ]
    return json.dumps({"inputs": tensors}, separators=(",", ":"))


def _coded(inputs: list[TensorSpec]) -> str:
    """A V1 request with one made-up row, if it is a file that nobody could read; else empty."""
    if len(inputs) != 1 or inputs[0].datatype is not Datatype.BYTES or inputs[0].shape != (-1,):
        return ""
    signature = ModelSignature(inputs=tuple(inputs), outputs=(), batched=True)
    (array,) = example_inputs(signature).values()
    raw: bytes = array[0]
    if raw.decode().isprintable():
        return ""
    rows = [{"b64": base64.b64encode(raw).decode()}]
    return json.dumps({"instances": rows}, separators=(",", ":"))


def _data(array: Array, *, is_exact: bool) -> list[Any]:
    flat = array.reshape(-1)
    if array.dtype.kind == "f" and not is_exact:
        return [round(float(value), 1) for value in flat]
    return [value.decode() if isinstance(value, bytes) else value for value in flat.tolist()]


def _spec(tensor: dict[str, Any]) -> TensorSpec:
    return TensorSpec(
        name=tensor["name"],
        datatype=Datatype(tensor["datatype"]),
        shape=tuple(map(int, tensor["shape"])),
    )
