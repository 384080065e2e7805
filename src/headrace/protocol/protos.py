"""The protocol's protobuf messages, from the descriptor set that ships in this package.

They live in a pool of their own: Triton's client registers the same full names in protobuf's
default pool, and both have to live in one process.
"""

from functools import cache
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from headrace.protocol.descriptor_set import DESCRIPTOR_SET_PATH

INFERENCE_SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"


def load_pool(path: Path) -> descriptor_pool.DescriptorPool:
    """A pool of its own with the descriptor set that lies at `path`."""
    pool = descriptor_pool.DescriptorPool()
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    for file in descriptors.file:
        pool.Add(file)
    return pool


def message_of(pool: descriptor_pool.DescriptorPool, full_name: str) -> Any:  # noqa: ANN401  # protobuf makes the class at run time
    """The class of a message in `pool`; KeyError if unknown."""
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    return load_pool(DESCRIPTOR_SET_PATH)


def message_class(full_name: str) -> Any:  # noqa: ANN401  # protobuf makes the class at run time
    """The class of a message, for instance `inference.ModelInferRequest`; KeyError if unknown."""
    return message_of(_pool(), full_name)


def methods(service: str) -> dict[str, tuple[type[Message], type[Message]]]:
    """Request and response class of each rpc of a service, by the rpc's name."""
    descriptor = _pool().FindServiceByName(service)
    return {
        method.name: (
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in descriptor.methods
    }
