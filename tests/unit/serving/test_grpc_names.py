"""Names are read from any message that protobuf writes, and from nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.protocol.protos import message_class
from headrace.serving.grpc.bridge import named_model

NAMES = st.text(max_size=300)


@given(NAMES, NAMES, st.binary(max_size=300))
def test_the_names_are_those_that_protobuf_reads(name: str, version: str, raw: bytes) -> None:
    message = message_class("inference.ModelInferRequest")(model_name=name, model_version=version)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.parameters["p"].int64_param = -1
    message.raw_input_contents.append(raw)

    assert named_model(memoryview(message.SerializeToString())) == (name, version)


def test_other_fields_may_come_first_and_the_last_name_counts() -> None:
    fixed = b"\x19" + bytes(8) + b"\x1d" + bytes(4) + b"\x20\x96\x01"

    assert named_model(fixed + b"\x0a\x01a" + b"\x12\x011" + b"\x0a\x01b") == ("b", "1")


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\x0b",
        b"\x0a\x01\xff",
        b"\x19\x00",
        b"\x08" + b"\xff" * 10,
        b"\x08\xff",
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="not a valid message"):
        named_model(message)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    try:
        name, version = named_model(message)
    except InvalidArgumentError:
        return
    assert isinstance(name, str)
    assert isinstance(version, str)
