import importlib.util
from pathlib import Path

import pytest
from google.protobuf import descriptor, descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.protocol import DESCRIPTOR_SET_PATH, protos
from headrace.protocol.protos import HEALTH_SERVICE, message_class, methods


def all_messages() -> list[str]:
    found = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR_SET_PATH.read_bytes())
    (file,) = (file for file in found.file if file.package == "inference")
    return [f"inference.{message.name}" for message in file.message_type]


def theirs(name: str) -> descriptor.Descriptor:
    for module in (service_pb2, model_config_pb2):
        found = module.DESCRIPTOR.message_types_by_name.get(name.removeprefix("inference."))
        if found is not None:
            return found
    raise KeyError(name)


def assert_same(ours: descriptor.Descriptor, other: descriptor.Descriptor) -> None:
    """Every field of ours is theirs: number, type, repetition, meaning of the value."""
    for field in ours.fields:
        twin = other.fields_by_number[field.number]
        assert (field.name, field.type, field.is_repeated) == (
            twin.name,
            twin.type,
            twin.is_repeated,
        )
        assert (field.containing_oneof is None) == (twin.containing_oneof is None)
        if field.enum_type is not None:
            values = {value.name: value.number for value in field.enum_type.values}
            assert values == {value.name: value.number for value in twin.enum_type.values}
        if field.message_type is not None:
            assert field.message_type.full_name == twin.message_type.full_name
    for nested in ours.nested_types:
        assert_same(nested, other.nested_types_by_name[nested.name])


@pytest.mark.parametrize("name", all_messages())
def test_messages_are_those_that_triton_s_client_has(name: str) -> None:
    ours, other = message_class(name).DESCRIPTOR, theirs(name)

    assert_same(ours, other)
    if not name.startswith("inference.Model") or name.endswith(("Request", "Response")):
        assert {field.number for field in ours.fields} == set(other.fields_by_number)


def test_the_service_has_the_rpcs_that_triton_s_client_calls() -> None:
    other = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    ours = methods(protos.INFERENCE_SERVICE)

    assert {
        name: (request.DESCRIPTOR.full_name, response.DESCRIPTOR.full_name)
        for name, (request, response) in ours.items()
    } == {
        method.name: (method.input_type.full_name, method.output_type.full_name)
        for method in other.methods
    }
    assert len(ours) == 20


def test_two_classes_of_one_name_live_in_one_process() -> None:
    ours = message_class("inference.ModelReadyRequest")(name="m", version="1")

    other = service_pb2.ModelReadyRequest.FromString(ours.SerializeToString())

    assert type(ours) is not type(other)
    assert (other.name, other.version) == ("m", "1")
    assert other.SerializeToString() == ours.SerializeToString()


def test_health_is_known() -> None:
    request, response = methods(HEALTH_SERVICE)["Check"]

    assert request.DESCRIPTOR.full_name == "grpc.health.v1.HealthCheckRequest"
    assert response.DESCRIPTOR.fields_by_name["status"].number == 1


def test_an_unknown_message_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        message_class("inference.Nothing")


def test_the_descriptor_set_is_what_the_proto_files_say(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles the .proto files")
    script = Path(__file__).parents[3] / "scripts" / "generate.py"
    found = importlib.util.spec_from_file_location("generate", script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)

    for name, sources in module.SOURCES.items():
        assert module.compile_to(tmp_path / name, sources) == 0

        compiled = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / name).read_bytes())
        there = DESCRIPTOR_SET_PATH.with_name(name).read_bytes()
        shipped = descriptor_pb2.FileDescriptorSet.FromString(there)
        assert compiled == shipped, "make generate"
