"""Metadata of the server and its models, as the documents of V2 REST.

They are plain dicts with the field names of the protobuf messages, so gRPC answers from the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
import orjson

from headrace import __version__
from headrace.core import (
    BatchingSpec,
    Datatype,
    ModelSignature,
    TensorSpec,
)
from headrace.observe import BatchStatistics, Duration, ModelStatistics
from headrace.protocol.json_messages import UNREADABLE, unreadable
from headrace.protocol.values import Body

Document = dict[str, Any]
SERVER_NAME: Final = "headrace"
EXTENSIONS: Final = (
    "classification",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "schedule_policy",
)
"""Implemented extensions: perf_analyzer and other clients rely on the list."""

_PLATFORMS: Final = {
    "onnx": "onnxruntime_onnx",
    "savedmodel": "tensorflow_savedmodel",
    "torchscript": "pytorch_libtorch",
}
_BACKENDS: Final = {"onnx": "onnxruntime", "savedmodel": "tensorflow", "torchscript": "pytorch"}
_MICROSECONDS: Final = 1_000_000


class IndexEntry(NamedTuple):
    """A model version in the repository index."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str = ""


class _IndexRequest(msgspec.Struct):
    ready: bool | None = None


def encode_document(document: Document | list[Document]) -> bytes:
    """Return a document as JSON."""
    return orjson.dumps(document)


def server_metadata(*, has_model_repository: bool = False) -> Document:
    """Return the response of `GET /v2`.

    Args:
        has_model_repository: Whether the port that answers has the model repository.
    """
    extensions = [*EXTENSIONS, *(["model_repository"] if has_model_repository else [])]
    return {"name": SERVER_NAME, "version": __version__, "extensions": extensions}


def model_metadata(
    name: str, versions: Sequence[str], signature: ModelSignature, *, runtime: str
) -> Document:
    """Return the response of `GET /v2/models/{name}`."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform(runtime),
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
    }


def model_config(
    name: str,
    version: str,
    signature: ModelSignature,
    *,
    runtime: str,
    batching: BatchingSpec,
    formats: Mapping[str, str] | None = None,
) -> Document:
    """Return the response of `GET /v2/models/{name}/config`: the applicable part of ModelConfig.

    `dims` leave out the batch axis; a `max_batch_size` of 0 means that there is none.

    Args:
        formats: Triton's name of the axis order of images, by input.
    """
    formats = formats or {}
    config: Document = {
        "name": name,
        "platform": platform(runtime),
        "backend": _BACKENDS.get(runtime, runtime),
        "runtime": "",
        "version_policy": {"specific": {"versions": [int(version)] if version.isdigit() else []}},
        "max_batch_size": batching.max_batch_size if signature.batched else 0,
        "input": [
            _config_tensor(spec, batched=signature.batched)
            | {
                "format": formats.get(spec.name, "FORMAT_NONE"),
                "allow_ragged_batch": False,
                "optional": False,
            }
            for spec in signature.inputs
        ],
        "output": [
            _config_tensor(spec, batched=signature.batched) | {"label_filename": ""}
            for spec in signature.outputs
        ],
        "instance_group": [{"name": f"{name}_0", "kind": "KIND_CPU", "count": 1, "gpus": []}],
        "default_model_filename": "",
        "parameters": {},
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }
    if signature.batched:
        config["dynamic_batching"] = {
            "preferred_batch_size": [batching.max_batch_size],
            "max_queue_delay_microseconds": round(batching.max_queue_delay_s * _MICROSECONDS),
            "preserve_ordering": False,
            "default_queue_policy": _queue_policy(batching),
        }
    return config


def model_statistics(models: Iterable[ModelStatistics]) -> Document:
    """Return the response of `GET /v2/models/{name}/stats` and `GET /v2/models/stats`."""
    return {"model_stats": [_model_statistics(model) for model in models]}


def repository_index(entries: Iterable[IndexEntry], *, ready: bool = False) -> list[Document]:
    """Return the response of `POST /v2/repository/index`; `ready` leaves out unready models."""
    return [entry._asdict() for entry in entries if entry.state == "READY" or not ready]


def decode_index_request(body: Body) -> bool:
    """Whether a `POST /v2/repository/index` requests ready models only; a body is optional.

    Raises:
        InvalidArgumentError: The body is something else.
    """
    if not bytes(body).strip():
        return False
    try:
        return msgspec.json.decode(body, type=_IndexRequest).ready or False
    except UNREADABLE as error:
        raise unreadable(error) from None


def platform(runtime: str) -> str:
    """Return Triton's name of the runtime's platform."""
    return _PLATFORMS.get(runtime, runtime)


def _tensor_metadata(spec: TensorSpec) -> Document:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": list(spec.shape)}


def _config_tensor(spec: TensorSpec, *, batched: bool) -> Document:
    is_bytes = spec.datatype == Datatype.BYTES
    return {
        "name": spec.name,
        "data_type": "TYPE_STRING" if is_bytes else f"TYPE_{spec.datatype.value}",
        "dims": list(spec.shape[1:] if batched else spec.shape),
        "is_shape_tensor": False,
    }


def _queue_policy(batching: BatchingSpec) -> Document:
    timeout_s = batching.default_timeout_s or 0.0
    return {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": round(timeout_s * _MICROSECONDS),
        "allow_timeout_override": True,
        "max_queue_size": batching.max_queue_size,
    }


def _model_statistics(model: ModelStatistics) -> Document:
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": model.last_inference_ms,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": {
            "success": _duration(model.success),
            "fail": _duration(model.fail),
            "queue": _duration(model.queue),
            "compute_input": _duration(model.compute_input),
            "compute_infer": _duration(model.compute_infer),
            "compute_output": _duration(model.compute_output),
            "cache_hit": _duration(_NEVER),
            "cache_miss": _duration(_NEVER),
        },
        "response_stats": {},
        "batch_stats": [_batch(size, model.batches[size]) for size in sorted(model.batches)],
        "memory_usage": [],
    }


_NEVER: Final = Duration()


def _batch(size: int, batch: BatchStatistics) -> Document:
    return {
        "batch_size": size,
        "compute_input": _duration(batch.compute_input),
        "compute_infer": _duration(batch.compute_infer),
        "compute_output": _duration(batch.compute_output),
    }


def _duration(duration: Duration) -> Document:
    return {"count": duration.count, "ns": duration.ns}
