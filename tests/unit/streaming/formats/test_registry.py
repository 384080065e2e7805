"""Schema registries, and the wire format that names their schemas."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.streaming.formats.registry import (
    HEAD_BYTES,
    Schema,
    head,
    message_head,
    message_path,
    schema_id,
)
from tests.schema_registries import Registry
from tests.unit.streaming.formats.rows import client

SCHEMA = {"type": "record", "name": "R", "fields": []}


def test_schema_is_asked_for_once() -> None:
    registry = Registry()
    number = registry.add("in-value", SCHEMA)
    asking = client(registry)

    found = [asking.by_id(number) for _ in range(3)]

    assert [json.loads(one.text) for one in found] == [SCHEMA] * 3
    assert registry.asked == [f"GET /schemas/ids/{number}"]


def test_unknown_id_is_not_asked_for_again_at_once() -> None:
    registry = Registry()
    now = [0.0]
    asking = client(registry, monotonic=lambda: now[0])

    for _ in range(3):
        with pytest.raises(NotFoundError, match="/schemas/ids/7"):
            asking.by_id(7)
    asked = len(registry.asked)
    now[0] = 11.0
    registry.schemas = [{"schema": json.dumps(SCHEMA)}] * 7

    assert asked == 1
    assert asking.by_id(7).schema_type == "AVRO"


def test_failure_that_passes_is_not_seen() -> None:
    pauses: list[float] = []
    registry = Registry()
    number = registry.add("in-value", SCHEMA)
    failures = iter([(503, b"")] * 2)
    registry.instead = lambda: next(failures, None)

    found = client(registry, pause=pauses.append).by_id(number)

    assert json.loads(found.text) == SCHEMA
    assert pauses == [0.05, 0.1]


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (500, b'{"error_code": 50001, "message": "store is away"}', "store is away"),
        (429, b"", "answers 429"),
        (401, b'{"error_code": 401, "message": "no"}', "refuses who asks"),
        (403, b"", "refuses who asks"),
        (404, b"<html>", "is that URL a schema registry's"),
        (301, b"", "answers 301"),
        (200, b"<html>", "something else than its API says"),
        (200, b'{"id": 1}', "something else than its API says"),
        (200, b"[" * 100_000, "something else than its API says"),
        (200, b" " * ((16 << 20) + 1), "more than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_registry_that_cannot_tell_is_away(status: int, body: bytes, why: str) -> None:
    registry = Registry(instead=lambda: (status, body))

    with pytest.raises(UnavailableError, match=why) as caught:
        client(registry).by_id(1)

    assert caught.value.retry_after_s is not None


def test_what_is_refused_is_not_tried_again() -> None:
    registry = Registry(refuses=lambda _: True)

    with pytest.raises(FailedPreconditionError, match="incompatible"):
        client(registry).register("out-value", Schema(text="{}"))

    assert len(registry.asked) == 1


def test_registering_twice_gives_the_same_id() -> None:
    registry = Registry()
    asking = client(registry)

    first = asking.register("out value/1", Schema(text=json.dumps(SCHEMA)))

    assert asking.register("out value/1", Schema(text=json.dumps(SCHEMA))) == first
    assert asking.find("out value/1", Schema(text=json.dumps(SCHEMA))) == first
    assert asking.newest("out value/1") == first
    with pytest.raises(NotFoundError):
        asking.find("out value/1", Schema(text='"string"'))


@pytest.mark.slow
def test_schema_of_endless_references_is_refused() -> None:
    registry = Registry()
    for at in range(300):
        more = [{"name": str(at + 1), "subject": str(at + 1), "version": 1}]
        registry.add(str(at), f'"{at}"', references=more)
    asking = client(registry)

    with pytest.raises(InvalidArgumentError, match="more than 256"):
        asking.referenced(asking.by_id(1))


@pytest.mark.parametrize("url", ["http://host:99999999", "${REGISTRY_URL}"])
def test_url_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REGISTRY_URL", "me:secret@host")

    with pytest.raises(InvalidArgumentError, match="no URL") as caught:
        client(Registry(), options={"registry": url})

    assert "secret" not in str(caught.value)


IDS = st.integers(0, (1 << 31) - 1)


@given(number=IDS, path=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=8), rest=st.binary())
def test_message_path_comes_back(number: int, path: list[int], rest: bytes) -> None:
    value = message_head(number, tuple(path)) + rest

    found, at = message_path(value)

    assert (schema_id(value), found, value[at:]) == (number, tuple(path), rest)


@pytest.mark.parametrize(
    ("number", "path", "value"), [(3, (2,), "00000000030204"), (7, (0,), "000000000700")]
)
def test_bytes_are_those_that_confluents_own_serializers_wrote(
    number: int, path: tuple[int, ...], value: str
) -> None:
    assert message_path(bytes.fromhex(value)) == (path, len(value) // 2)
    assert message_head(number, path) == bytes.fromhex(value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "has 0 bytes: too short"),
        (b"\0\0\0\0", "has 4 bytes: too short"),
        (b'{"a": 1}', "begins with the byte 123"),
        (b"\x01" + bytes(16), "GUID"),
        (b"\0\xff\xff\xff\xff", "names the schema -1"),
    ],
)
def test_what_begins_otherwise_is_refused(value: bytes, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        schema_id(value)


@pytest.mark.parametrize("path", [b"", b"\xff" * 9, b"\x01", b"\xfe\xff\x07", b"\x04\x00", b"\x80"])
def test_broken_message_path_is_refused(path: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="message indexes"):
        message_path(head(1)[:HEAD_BYTES] + path)
