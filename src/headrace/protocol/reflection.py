"""gRPC server reflection: which services exist, and their descriptors.

Clients such as grpcurl use it instead of `.proto` files. v1 and v1alpha have the same messages.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from headrace.core import InvalidArgumentError
from headrace.protocol.grpc_wire import DESCRIPTOR_SET_PATH, REFLECTION_DESCRIPTOR_SET_PATH
from headrace.protocol.protos import HEALTH_SERVICE, INFERENCE_SERVICE, load_pool, message_of

REFLECTION_RPC: Final = "ServerReflectionInfo"
REFLECTION_SERVICES: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
REFLECTION_PATHS: Final = frozenset(
    f"/{service}/{REFLECTION_RPC}" for service in REFLECTION_SERVICES
)
_PACKAGE: Final = "grpc.reflection.v1"
_LISTED: Final = (REFLECTION_SERVICES[0], HEALTH_SERVICE, INFERENCE_SERVICE)
_NOT_FOUND: Final = 5
_INVALID_ARGUMENT: Final = 3


@cache
def _pools() -> tuple[descriptor_pool.DescriptorPool, ...]:
    return load_pool(DESCRIPTOR_SET_PATH), load_pool(REFLECTION_DESCRIPTOR_SET_PATH)


@cache
def _messages() -> tuple[Any, Any]:
    """Return the classes of requests and responses."""
    _, pool = _pools()
    names = ("ServerReflectionRequest", "ServerReflectionResponse")
    request, response = (message_of(pool, f"{_PACKAGE}.{name}") for name in names)
    return request, response


def answer_reflection(data: bytes) -> bytes:
    """Return the response to one request of a reflection stream.

    An unknown name is an error inside the response; the stream continues.

    Raises:
        InvalidArgumentError: The bytes are not a reflection request.
    """
    request_class, response_class = _messages()
    try:
        request = request_class.FromString(data)
    except DecodeError as error:
        raise InvalidArgumentError(f"not a reflection request: {error}") from None
    response = response_class(valid_host=request.host, original_request=request)
    match request.WhichOneof("message_request"):
        case "list_services":
            for name in _LISTED:
                response.list_services_response.service.add(name=name)
        case "file_by_filename":
            _add_files(response, "FindFileByName", request.file_by_filename)
        case "file_containing_symbol":
            _add_files(response, "FindFileContainingSymbol", request.file_containing_symbol)
        case "file_containing_extension":
            _refuse(response, _NOT_FOUND, "no message has extensions")
        case "all_extension_numbers_of_type":
            _refuse(response, _NOT_FOUND, "no message has extensions")
        case _:
            _refuse(response, _INVALID_ARGUMENT, "the request names nothing to describe")
    encoded: bytes = response.SerializeToString()
    return encoded


def _add_files(response: Any, find: str, name: str) -> None:  # noqa: ANN401  # a generated class
    """Add the file that a pool's method `find` returns for `name`, and the files it imports."""
    for pool in _pools():
        try:
            file = getattr(pool, find)(name)
        except KeyError:
            continue
        files = {item.name: item for item in _with_imports(file)}
        descriptors = response.file_descriptor_response.file_descriptor_proto
        descriptors.extend(item.serialized_pb for item in files.values())
        return
    _refuse(response, _NOT_FOUND, f"'{name[:200]}' is not part of this server's services")


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    yield file
    for dependency in file.dependencies:
        yield from _with_imports(dependency)


def _refuse(response: Any, code: int, text: str) -> None:  # noqa: ANN401  # as above
    response.error_response.error_code = code
    response.error_response.error_message = text
