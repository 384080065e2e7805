"""What a server says about itself and its models, in the protocol's words."""

from typing import Any

import msgspec

from headrace.core import VARIABLE, Datatype, ModelSignature, TensorSpec

Document = dict[str, Any]
"""A JSON object whose keys are the protocol's."""


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers, and which protocol extensions it knows."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output; -1 in `shape` takes any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes and gives; `versions` are those that can be asked for by number."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


def signature_from(metadata: ModelMetadata, config: Document | None) -> ModelSignature:
    """The signature that a server's two answers about a model amount to.

    Metadata does not say whether axis 0 is a batch; the configuration's `max_batch_size` does. Of a
    server without configurations, a variable axis 0 everywhere is taken for one.
    """
    tensors = (*metadata.inputs, *metadata.outputs)
    if config is None:
        batched = all(tensor.shape[:1] == (VARIABLE,) for tensor in tensors)
    else:
        batched = int(config.get("max_batch_size", 0)) > 0
    return ModelSignature(
        inputs=tuple(map(_spec, metadata.inputs)),
        outputs=tuple(map(_spec, metadata.outputs)),
        batched=batched,
    )


def _spec(tensor: TensorMetadata) -> TensorSpec:
    return TensorSpec(name=tensor.name, datatype=Datatype(tensor.datatype), shape=tensor.shape)
