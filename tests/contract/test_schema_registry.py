"""Formats over real HTTP: the registry stops and starts, has TLS, and wants to know who asks.

The registry is a stand-in for Confluent's; set SCHEMA_REGISTRY_URL to try the same with a real one.
"""

import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from headrace.core import Datatype, UnavailableError
from headrace.core.spec.stream_parts import FormatKind, StreamFormatSpec
from headrace.streaming.formats import FieldLayout, FieldSpec, avro, protobuf
from headrace.streaming.formats.options import SchemaOptions
from headrace.streaming.formats.registry import Schema, SchemaReference, SchemaRegistry
from headrace.streaming.records import Record, TopicPartition
from tests.certificates import Authority
from tests.schema_registries import Registry, served
from tests.unit.streaming.formats.rows import open_format

FIELDS = (
    FieldSpec(name="p", datatype=Datatype.FP32, shape=(2,)),
    FieldSpec(name="label", datatype=Datatype.BYTES),
)
COLUMNS = {
    "p": np.array([[0.25, 0.75], [1, 0]], "<f4"),
    "label": np.array([b"no", "ö".encode()], object),
}


@pytest.fixture(name="url", params=["stand-in", "real"])
def _url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "real":
        real = os.environ.get("SCHEMA_REGISTRY_URL")
        if not real:
            pytest.skip("SCHEMA_REGISTRY_URL names no registry")
        yield real
        return
    with served(Registry()) as url:
        yield url


def make(kind: FormatKind, layout: FieldLayout, **options: object) -> Any:  # noqa: ANN401  # a reader or a writer
    module = avro if kind is FormatKind.AVRO else protobuf
    return open_format(module, StreamFormatSpec(kind=kind, options=options), layout)


def records(values: list[bytes]) -> list[Record]:
    return [
        Record(topic_partition=TopicPartition("in", 0), offset=at, key=None, value=value)
        for at, value in enumerate(values)
    ]


@pytest.mark.parametrize("kind", [FormatKind.AVRO, FormatKind.PROTOBUF])
def test_answers_of_one_stream_are_records_of_the_next(url: str, kind: FormatKind) -> None:
    subject = f"{uuid4()}-value"
    outputs = FieldLayout(inputs=(), outputs=FIELDS)
    first = make(kind, outputs, registry=url, subject=subject, register=True)
    second = make(kind, outputs, registry=url, subject=subject)
    read = make(kind, FieldLayout(inputs=FIELDS, outputs=()), registry=url)

    values = first.encode(COLUMNS, 2)
    found = read.decode(records([*values, values[0][:1] + b"\x7f\xff\xff\xff" + values[0][5:]]))

    assert second.encode(COLUMNS, 2) == values
    assert found.columns == {"p": [[0.25, 0.75], [1.0, 0.0]], "label": ["no", "ö"]}
    assert list(found.errors) == [2]
    assert "has no /schemas/ids/2147483647" in str(found.errors[2])


def test_schemas_use_others_of_the_registry(url: str) -> None:
    asking = SchemaRegistry(SchemaOptions(registry=url))
    user, subject = f"u{uuid4().hex}", f"{uuid4()}-value"
    inner = {"type": "record", "name": user, "fields": [{"name": "age", "type": "int"}]}
    asking.register(user, Schema(text=json.dumps(inner)))
    outer = {"type": "record", "name": "R", "fields": [{"name": "user", "type": user}]}
    more = (SchemaReference(user, user, 1),)
    number = asking.register(subject, Schema(text=json.dumps(outer), references=more))
    age = FieldSpec(name="user.age", datatype=Datatype.INT32)
    read = make(FormatKind.AVRO, FieldLayout(inputs=(age,), outputs=()), registry=url)

    found = read.decode(records([b"\0" + number.to_bytes(4, "big") + b"\x50"]))

    assert (found.columns, found.errors) == ({"user.age": [40]}, {})


def test_records_wait_while_the_registry_is_stopped() -> None:
    registry = Registry()
    number = registry.add("in-value", {"type": "record", "name": "R", "fields": [
        {"name": "x", "type": "float"}]})  # fmt: skip
    value = b"\0" + number.to_bytes(4, "big") + b"\0\0\0\x3f"
    layout = FieldLayout(inputs=(FieldSpec(name="x", datatype=Datatype.FP32),), outputs=())
    with served(registry) as url:
        read = make(FormatKind.AVRO, layout, registry=url)
        late = make(FormatKind.AVRO, layout, registry=url)
        before = read.decode(records([value]))

    with pytest.raises(UnavailableError, match="does not answer"):
        late.decode(records([value]))
    known = read.decode(records([value]))

    assert before.columns == known.columns == {"x": [0.5]}


def test_registry_proves_itself_and_so_do_we(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    certificate = authority.server("registry")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate.both)
    monkeypatch.setenv("REGISTRY_PASSWORD", "pw")
    registry = Registry(authorization="Basic bWU6cHc=")
    user = {"user": "me", "password": "${REGISTRY_PASSWORD}"}

    with served(registry, tls) as url:

        def ask(**options: str) -> int:
            made = msgspec.convert({"registry": url, **options}, SchemaOptions)
            asking = SchemaRegistry(made, pause=lambda _: None)
            return asking.register("s", Schema(text='"string"'))

        assert ask(ca_file=str(authority.ca), **user) == 1
        with pytest.raises(UnavailableError, match=r"refuses who asks \(401\)"):
            ask(ca_file=str(authority.ca))
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(ca_file=str(other.ca), **user)
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(**user)
