"""Requests as bytes, in each form a caller may send, and answers back as tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

DATATYPES: Final = {"float32": "FP32", "int64": "INT64"}
DTYPES: Final = {"FP32": np.float32, "INT64": np.int64}
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
# A gRPC message travels behind one byte (is it compressed) and four bytes (its length).
FRAME_BYTES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One POST: where it goes, what it says."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def http(self, host: str = "bench") -> bytes:
        """The whole HTTP/1.1 request."""
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body

    def with_headers(self, extra: Mapping[str, str]) -> "Payload":
        """The same with more headers."""
        return Payload(path=self.path, body=self.body, headers={**self.headers, **extra})


def json_payload(model: str, inputs: Tensors) -> Payload:
    """V2 JSON, data as flat lists in the shortest text that keeps every bit of an FP32."""
    tensors = [{**_spec(name, array), "data": array.ravel()} for name, array in inputs.items()]
    body = orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"Content-Type": "application/json"}
    return Payload(path=f"/v2/models/{model}/infer", body=body, headers=headers)


def text_payload(model: str, sentence: str) -> Payload:
    """One text as a BYTES tensor, in JSON, its answer as binary."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [sentence]}
    body = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {"Content-Type": "application/json"}
    return Payload(path=f"/v2/models/{model}/infer", body=body, headers=headers)


def binary_payload(model: str, inputs: Tensors) -> Payload:
    """V2 with the binary tensor extension in both directions."""
    tensors = [
        {**_spec(name, array), "parameters": {"binary_data_size": array.nbytes}}
        for name, array in inputs.items()
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(array.tobytes() for array in inputs.values())
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Payload(path=f"/v2/models/{model}/infer", body=body, headers=headers)


def raw_payload(array: Array) -> Payload:
    """Nothing but the bytes of one tensor, for a server that knows what to expect."""
    return Payload(path="/", body=array.tobytes())


def grpc_request(model: str, inputs: Tensors) -> service_pb2.ModelInferRequest:
    """A `ModelInferRequest` with raw contents, as tritonclient sends it."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def grpc_payload(model: str, inputs: Tensors) -> Payload:
    """The same request framed, for a load tool that speaks HTTP/2 and no gRPC."""
    message = grpc_request(model, inputs).SerializeToString()
    frame = b"\0" + len(message).to_bytes(4, "big") + message
    return Payload(
        path=INFER, body=frame, headers={"content-type": "application/grpc", "te": "trailers"}
    )


def read_json(body: bytes) -> dict[str, Array]:
    """The tensors of a V2 JSON answer."""
    return {
        output["name"]: np.array(output["data"], DTYPES[output["datatype"]]).reshape(
            output["shape"]
        )
        for output in json.loads(body)["outputs"]
    }


def read_binary(body: bytes, head_bytes: int) -> dict[str, Array]:
    """The tensors of a V2 answer whose JSON head is `head_bytes` long."""
    tensors = {}
    at = head_bytes
    for output in json.loads(body[:head_bytes])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        flat = np.frombuffer(
            body, DTYPES[output["datatype"]], offset=at, count=size // _width(output)
        )
        tensors[output["name"]] = flat.reshape(output["shape"])
        at += size
    return tensors


def read_grpc(response: service_pb2.ModelInferResponse) -> dict[str, Array]:
    """The tensors of a `ModelInferResponse` with raw contents."""
    return {
        output.name: np.frombuffer(raw, DTYPES[output.datatype]).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def write_payloads(payloads: list[Payload], folder: Path) -> Path:
    """Store bodies as files; the path of a list of them that the load tools read.

    A line per request: file, path, then `name: value` headers, separated by tabs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, payload in enumerate(payloads):
        file = folder / f"{number}.body"
        file.write_bytes(payload.body)
        headers = [f"{name}: {value}" for name, value in payload.headers.items()]
        lines.append("\t".join([str(file), payload.path, *headers]))
    index = folder / "payloads.tsv"
    index.write_text("\n".join(lines) + "\n")
    return index


def read_payloads(index: Path) -> list[Payload]:
    """What `write_payloads` stored."""
    payloads = []
    for line in index.read_text().splitlines():
        file, path, *headers = line.split("\t")
        pairs = dict(header.split(": ", 1) for header in headers)
        payloads.append(Payload(path=path, body=Path(file).read_bytes(), headers=pairs))
    return payloads


def _spec(name: str, array: Array) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": DATATYPES[array.dtype.name],
    }


def _width(output: Mapping[str, Any]) -> int:
    return np.dtype(DTYPES[output["datatype"]]).itemsize
