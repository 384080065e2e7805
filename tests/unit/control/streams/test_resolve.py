"""Streams are pinned as endpoints are; what workers are told; what orders leave alone."""

from pathlib import Path
from typing import Any

import pytest

from headrace.control.auth.references import AuthorizationFacts, authorize
from headrace.control.auth.roles import SYSTEM, Caller, Grant, Role
from headrace.control.desired.resolve import Resolver
from headrace.control.model.desired import DesiredState, DesiredStream
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import (
    FailedPreconditionError,
    PermissionDeniedError,
    ReplicaSettings,
)
from headrace.core.spec.parse import SpecError, parse_spec
from headrace.core.spec.stream_parts import FailurePolicy
from headrace.registry import Registry
from headrace.streaming.broker import Delivery
from headrace.streaming.settings import check_settings
from tests.unit.control.api_client import client_of
from tests.unit.control.conftest import inspect


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    return path


def stream(**more: object) -> dict[str, Any]:
    return {
        "name": "pay",
        "source": {"broker": "kafka://me:${PW}@host", "topics": ["in"]},
        "sink": {"topic": "out"},
        **more,
    }


def check(role: Role, before: dict[str, Any], after: dict[str, Any]) -> None:
    caller = Caller(name="ann", kind="user", grants=(Grant(role),))
    states = (DesiredState(spec=before), DesiredState(spec=after))
    authorize(caller, *states, AuthorizationFacts())


def resolve(registry: Registry, *streams: dict[str, Any]) -> tuple[DesiredStream, ...]:
    spec = parse_spec({"streams": list(streams)})
    resolver = Resolver(registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096)
    return resolver.resolve_streams()


def test_a_model_is_pinned_and_the_broker_told_as_it_was_written(
    registry: Registry, model: Path
) -> None:
    [found] = resolve(
        registry,
        stream(model=str(model), delivery="exactly_once", max_batch_size=64, workers={"max": 3}),
    )
    settings = found.settings

    assert isinstance(settings.model, ReplicaSettings)
    assert (found.model, settings.model.batching.max_batch_size) == ("pay:1", 64)
    assert (settings.broker, settings.group) == ("kafka://me:${PW}@host", "pay")
    assert (settings.delivery, settings.dead_letters) == (
        Delivery.EXACTLY_ONCE,
        "pay-dead-letters",
    )
    assert (found.min_workers, found.max_workers) == (1, 3)
    check_settings(settings)


def test_a_policy_without_letters_has_no_topic_for_them(registry: Registry, model: Path) -> None:
    [found] = resolve(registry, stream(model=str(model), errors={"policy": "skip"}))

    assert (found.settings.errors.policy, found.settings.dead_letters) == (FailurePolicy.SKIP, "")


def test_every_model_that_cannot_be_pinned_is_told_with_its_place(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    (tmp_path / "code.py").write_bytes(b"x")
    with pytest.raises(SpecError) as error:
        resolve(
            registry,
            stream(model=str(tmp_path / "bad.onnx")),
            stream(name="other", model="nobody:3"),
            stream(name="code", model=str(tmp_path / "code.py")),
        )

    places = [mistake.place for mistake in error.value.mistakes]
    assert places == ["streams[0].model", "streams[1].model", "streams[2].model"]


def test_a_model_with_code_runs_where_the_stream_allows_it(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "code.py").write_bytes(b"x")
    [found] = resolve(registry, stream(model=str(tmp_path / "code.py"), allow_code=True))

    assert found.runs_code


@pytest.mark.anyio
async def test_streams_are_applied_listed_paused_and_kept(plane: ControlPlane, model: Path) -> None:
    document = {
        "endpoints": [{"name": "m", "model": str(model)}],
        "streams": [stream(model=str(model)), stream(name="via", endpoint="m")],
    }
    applied = await plane.desired_state.apply(document, caller=SYSTEM)
    async with client_of(plane) as api:
        listed = (await api.get("/streams")).json()["streams"]
        paused = (await api.post("/streams/pay/pause")).json()
        missing = await api.post("/streams/nobody/pause")

    assert "stream 'pay' added: in to out by pay:1" in applied.changes
    assert [(one["name"], one["model"]) for one in listed] == [
        ("pay", "pay:1"),
        ("via", "endpoint m"),
    ]
    assert paused["name"] == "pay"
    assert (missing.status_code, missing.json()["code"]) == (404, "NOT_FOUND")
    assert plane.store.load.blocking().streams == plane.target_state.desired.streams
    assert "pay:1" in plane.desired_state.in_use()
    with pytest.raises(FailedPreconditionError, match="stream 'via' uses endpoint 'm'"):
        await plane.desired_state.remove_endpoint("m", caller=SYSTEM)


@pytest.mark.anyio
async def test_who_only_looks_on_pauses_nothing(plane: ControlPlane, model: Path) -> None:
    await plane.desired_state.apply({"streams": [stream(model=str(model))]}, caller=SYSTEM)
    async with client_of(plane, "viewer") as api:
        seen = await api.get("/streams/pay")
        paused = await api.post("/streams/pay/pause")

    assert (seen.status_code, paused.status_code) == (200, 403)


def test_only_an_admin_says_where_secrets_are_sent() -> None:
    before = {"streams": [stream(model="/m")]}
    after = {"streams": [{**stream(model="/m"), "source": {"broker": "kafka://evil/${PW}"}}]}

    check(Role.OPERATOR, before, before)
    check(Role.ADMIN, before, after)
    with pytest.raises(PermissionDeniedError, match="only an admin"):
        check(Role.OPERATOR, before, after)


@pytest.mark.parametrize(
    "changes",
    [
        {"api_key_file": "/home/token"},
        {"source": {"broker": "kafka://evil?properties_file=/home/token"}},
        {"source": {"broker": "kafka://evil?ssl.key.location=/home/key.pem"}},
        {"format": {"kind": "avro", "options": {"registry": "x", "password_file": "/home/token"}}},
        {"sink": {"format": {"kind": "avro", "options": {"token_file": "/home/token"}}}},
    ],
)
def test_only_an_admin_names_files_whose_content_is_sent(changes: dict[str, Any]) -> None:
    before = {"streams": [stream(model="/m")]}
    after = {"streams": [{**stream(model="/m"), **changes}]}

    check(Role.ADMIN, before, after)
    with pytest.raises(PermissionDeniedError, match="only an admin"):
        check(Role.OPERATOR, before, after)


def test_whoever_is_no_admin_changes_the_rest_of_a_stream() -> None:
    format_ = {"kind": "avro", "options": {"registry": "https://r", "subject": "s"}}
    before = {"streams": [stream(model="/m")]}
    after = {"streams": [{**stream(model="/m"), "format": format_, "max_batch_size": 7}]}

    check(Role.OPERATOR, before, after)
