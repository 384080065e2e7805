"""Formats over real HTTP: the registry stops and starts, has TLS, and wants to know who asks.

The registry is a stand-in for Confluent's; set SCHEMA_REGISTRY_URL to try the same with a real one.
"""

import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from headrace.core import Datatype, UnavailableError
from headrace.core.spec.stream_parts import FormatKind
from headrace.streaming.formats.options import SchemaOptions
from headrace.streaming.formats.registry import Schema, SchemaReference, SchemaRegistry, head
from tests.certificates import Authority
from tests.schema_registries import Registry, served
from tests.unit.streaming.formats.rows import (
    avro_bytes,
    avro_record,
    opened,
    reads,
    record,
    spec,
    writes,
)

FIELDS = (spec("p", Datatype.FP32, 2), spec("label", Datatype.BYTES))
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


@pytest.mark.parametrize("kind", [FormatKind.AVRO, FormatKind.PROTOBUF])
def test_answers_of_one_stream_are_records_of_the_next(url: str, kind: FormatKind) -> None:
    subject = f"{uuid4()}-value"
    first = opened(kind, writes(*FIELDS), url, subject=subject, register=True)
    second = opened(kind, writes(*FIELDS), url, subject=subject)

    values = first.encode(COLUMNS, 2)
    unknown = values[0][:1] + b"\x7f\xff\xff\xff" + values[0][5:]
    found = opened(kind, reads(*FIELDS), url).decode(list(map(record, [*values, unknown])))

    assert second.encode(COLUMNS, 2) == values
    assert found.columns == {"p": [[0.25, 0.75], [1.0, 0.0]], "label": ["no", "ö"]}
    assert list(found.errors) == [2]
    assert "has no /schemas/ids/2147483647" in str(found.errors[2])


def test_schemas_use_others_of_the_registry(url: str) -> None:
    asking = SchemaRegistry(SchemaOptions(registry=url))
    user, subject = f"u{uuid4().hex}", f"{uuid4()}-value"
    asking.register(user, Schema(text=json.dumps(avro_record(("age", "int"), name=user))))
    outer = json.dumps(avro_record(("a", user), ("b", ["null", user])))
    more = (SchemaReference(user, user, 1),)
    number = asking.register(subject, Schema(text=outer, references=more))
    read = opened(FormatKind.AVRO, reads(spec("a.age", Datatype.INT32), passed=["b.age"]), url)

    found = read.decode([record(head(number) + b"\x50\x02\x06")])

    assert (found.columns, found.errors) == ({"a.age": [40], "b.age": [3]}, {})


def test_records_wait_while_the_registry_is_stopped() -> None:
    registry = Registry()
    schema = avro_record(("x", "float"))
    value = record(avro_bytes(schema, {"x": 0.5}, head(registry.add("in-value", schema))))
    with served(registry) as url:
        read = opened(FormatKind.AVRO, reads(spec("x")), url)
        late = opened(FormatKind.AVRO, reads(spec("x")), url)
        before = read.decode([value])

    with pytest.raises(UnavailableError, match="does not answer"):
        late.decode([value])
    known = read.decode([value])

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
        registry.authorization = "Bearer pw"
        assert ask(ca_file=str(authority.ca), token="${REGISTRY_PASSWORD}") == 1  # noqa: S106  # a name
        with pytest.raises(UnavailableError, match=r"refuses who asks \(401\)"):
            ask(ca_file=str(authority.ca))
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(ca_file=str(other.ca), **user)
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(**user)
