"""The registry's client: what it remembers, what it tries again, whom it blames."""

import json

import pytest

from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.streaming.formats.registry import Reference, Schema
from tests.schema_registries import Registry, Reply
from tests.unit.streaming.formats.rows import client

SCHEMA = {"type": "record", "name": "R", "fields": []}


class Failing:
    """Answers so a few times, and then lets the registry answer."""

    def __init__(self, status: int, body: bytes = b"", times: int = 1 << 30) -> None:
        self.left = times
        self.reply = (status, body)

    def __call__(self) -> Reply | None:
        self.left -= 1
        return self.reply if self.left >= 0 else None


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
    registry.instead = Failing(503, times=2)

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
    registry = Registry(instead=Failing(status, body))

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
    assert asking.newest("out value/1").id == first
    with pytest.raises(NotFoundError):
        asking.find("out value/1", Schema(text='"string"'))


def test_references_are_followed_and_a_circle_ends() -> None:
    registry = Registry()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        registry.add(
            name, f'"{name}"', references=[{"name": other, "subject": other, "version": 1}]
        )
    asking = client(registry)

    found = asking.referenced(asking.by_id(1))

    assert sorted(found) == ["a", "b", "c"]


@pytest.mark.slow
def test_schema_of_endless_references_is_refused() -> None:
    registry = Registry()
    for at in range(300):
        more = [{"name": str(at + 1), "subject": str(at + 1), "version": 1}]
        registry.add(str(at), f'"{at}"', references=more)
    asking = client(registry)

    with pytest.raises(InvalidArgumentError, match="more than 256"):
        asking.referenced(asking.by_id(1))


def test_reference_to_nothing_is_not_found() -> None:
    schema = Schema(text="{}", references=(Reference("x", "gone", 1),))

    with pytest.raises(NotFoundError, match="gone"):
        client(Registry()).referenced(schema)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"user": "me", "password": "${REGISTRY_PASSWORD}"}, "Basic bWU6cHc="),
        ({"token": "${REGISTRY_PASSWORD}"}, "Bearer pw"),
    ],
)
def test_who_asks_is_proved(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], sent: str
) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "pw")
    registry = Registry()
    registry.add("in-value", SCHEMA)
    registry.authorization = sent

    assert client(registry, options=options).by_id(1).references == ()


@pytest.mark.parametrize("url", ["http://host:99999999", "${REGISTRY_URL}"])
def test_url_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REGISTRY_URL", "me:secret@host")

    with pytest.raises(InvalidArgumentError, match="no URL") as caught:
        client(Registry(), options={"registry": url})

    assert "secret" not in str(caught.value)
