"""gRPC server reflection."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from headrace.core import InvalidArgumentError
from headrace.protocol.grpc_wire import REFLECTION_DESCRIPTOR_SET_PATH
from headrace.protocol.protos import load_pool, message_of
from headrace.protocol.reflection import answer_reflection

POOL = load_pool(REFLECTION_DESCRIPTOR_SET_PATH)
PACKAGE = "grpc.reflection.v1"
REQUEST = message_of(POOL, f"{PACKAGE}.ServerReflectionRequest")
RESPONSE = message_of(POOL, f"{PACKAGE}.ServerReflectionResponse")


def ask(**fields: object) -> Any:  # noqa: ANN401  # a generated class
    request = REQUEST(host="h", **fields)
    response = RESPONSE.FromString(answer_reflection(request.SerializeToString()))
    assert response.original_request == request
    return response


def test_every_listed_service_can_be_described_with_its_messages() -> None:
    names = [item.name for item in ask(list_services="*").list_services_response.service]

    assert names == [
        "grpc.reflection.v1.ServerReflection",
        "grpc.health.v1.Health",
        "inference.GRPCInferenceService",
    ]
    for name in names:
        files = ask(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
        pool = descriptor_pool.DescriptorPool()
        for file in files:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
        assert pool.FindServiceByName(name).methods


def test_a_file_is_found_by_its_name() -> None:
    answer = ask(file_by_filename="health.proto").file_descriptor_response

    (file,) = map(descriptor_pb2.FileDescriptorProto.FromString, answer.file_descriptor_proto)
    assert file.package == "grpc.health.v1"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"file_containing_symbol": "no.Such"}, 5),
        ({"file_by_filename": "no.proto"}, 5),
        ({"all_extension_numbers_of_type": "inference.ModelInferRequest"}, 5),
        ({"file_containing_extension": {"containing_type": "a.B", "extension_number": 1}}, 5),
        ({}, 3),
    ],
)
def test_unknown_names_are_errors_in_the_response(fields: dict[str, object], code: int) -> None:
    assert ask(**fields).error_response.error_code == code


def test_bytes_that_are_no_request_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="not a reflection request"):
        answer_reflection(b"\xff\xff")
