"""Streams are pinned as endpoints are; what workers are told; what orders leave alone."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.auth.references import AuthorizationFacts, authorize
from headrace.control.auth.roles import SYSTEM, Caller, Grant, Role
from headrace.control.desired.resolve import Resolver
from headrace.control.desired.resolve_streams import through_gateway
from headrace.control.model.desired import DesiredState, DesiredStream
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.state import home_url, references_in
from headrace.core import (
    FailedPreconditionError,
    PermissionDeniedError,
    ReplicaSettings,
)
from headrace.core.spec.parse import SpecError, parse_spec
from headrace.core.spec.stream_parts import FailurePolicy, Function, StreamWindowSpec
from headrace.features import applied_definitions, apply_definitions
from headrace.features.wire import decode_view
from headrace.registry import Registry
from headrace.streaming.broker import Delivery
from headrace.streaming.settings import check_settings
from tests.unit.control.api_client import client_of
from tests.unit.control.conftest import inspect

FEATURES = """
version: 1
entities:
  - {name: card, join_key: card, datatype: INT64}
feature_views:
  - name: spending
    entities: [card]
    source: {path: none.parquet}
    features:
      - {name: last, datatype: FP64}
feature_services:
  - name: fraud
    features: [spending]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    return path


def check(role: Role, before: dict[str, Any], after: dict[str, Any]) -> None:
    caller = Caller(name="ann", kind="user", grants=(Grant(role),))
    states = (DesiredState(spec=before), DesiredState(spec=after))
    authorize(caller, *states, AuthorizationFacts())


def stream(**more: object) -> dict[str, Any]:
    return {
        "name": "pay",
        "source": {"broker": "log:demo", "topics": ["in"]},
        "sink": {"topic": "out"},
        **more,
    }


def resolve(registry: Registry, *streams: dict[str, Any]) -> tuple[DesiredStream, ...]:
    endpoints = [{"name": "m", "model": "/m.onnx"}]
    spec = parse_spec(
        {
            "endpoints": endpoints,
            "streams": list(streams),
            "online_stores": [
                {"name": "unknown", "url": "carrier://x"},
                {"name": "unset", "url": "${NOT_SET}"},
            ],
        }
    )
    resolver = Resolver(registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096)
    return resolver.resolve_streams()


def mistakes(registry: Registry, *streams: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as error:
        resolve(registry, *streams)
    return [(one.place, one.message) for one in error.value.mistakes]


def pushing(push: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stream(push=push).items() if key != "sink"}


def apply_features(folder: Path, registry: Registry) -> None:
    (folder / "features.yaml").write_text(FEATURES)
    apply_definitions(folder / "features.yaml", registry.home)


def test_a_model_is_pinned_and_the_broker_told_as_it_was_written(
    registry: Registry, model: Path
) -> None:
    [found] = resolve(
        registry,
        stream(
            model=str(model),
            source={"broker": "kafka://me:${PW}@host", "topics": ["in"]},
            delivery="exactly_once",
            max_batch_size=64,
            workers={"max": 3},
        ),
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
    assert "pay:1" in references_in(home_url(plane.home.root))
    with pytest.raises(FailedPreconditionError, match="stream 'via' uses endpoint 'm'"):
        await plane.desired_state.remove_endpoint("m", caller=SYSTEM)


@pytest.mark.anyio
async def test_who_only_looks_on_pauses_nothing(plane: ControlPlane, model: Path) -> None:
    await plane.desired_state.apply({"streams": [stream(model=str(model))]}, caller=SYSTEM)
    async with client_of(plane, "viewer") as api:
        seen = await api.get("/streams/pay")
        paused = await api.post("/streams/pay/pause")

    assert (seen.status_code, paused.status_code) == (200, 403)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": {"broker": "kafka://evil/${PW}"}},
        {"push": {"view": "v", "online_store": "redis://:${PW}@evil"}},
        {"api_key_file": "/home/token"},
        {"source": {"broker": "kafka://evil?properties_file=/home/token"}},
        {"source": {"broker": "kafka://evil?ssl.key.location=/home/key.pem"}},
        {"format": {"kind": "avro", "options": {"registry": "x", "password_file": "/home/token"}}},
        {"sink": {"format": {"kind": "avro", "options": {"token_file": "/home/token"}}}},
    ],
)
def test_only_an_admin_says_where_secrets_and_contents_of_files_are_sent(
    changes: dict[str, Any],
) -> None:
    one = stream(model="/m", push={"view": "v", "online_store": "redis://:${PW}@here"})
    before, after = {"streams": [one]}, {"streams": [{**one, **changes}]}

    check(Role.OPERATOR, before, before)
    check(Role.ADMIN, before, after)
    with pytest.raises(PermissionDeniedError, match="only an admin"):
        check(Role.OPERATOR, before, after)


def test_whoever_is_no_admin_changes_the_rest_of_a_stream() -> None:
    format_ = {"kind": "avro", "options": {"registry": "https://r", "subject": "s"}}
    before = {"streams": [stream(model="/m")]}
    after = {"streams": [{**stream(model="/m"), "format": format_, "max_batch_size": 7}]}

    check(Role.OPERATOR, before, after)


@pytest.mark.parametrize(
    ("more", "batch", "threads"),
    [
        ({"openai": {}}, 1, 8),
        ({"openai": {"path": "/v1/completions"}, "model_threads": 3}, 1, 3),
        ({"openai": {"path": "/v1/embeddings"}}, 256, None),
        ({"openai": {"path": "/v1/embeddings"}, "max_batch_size": 4096}, 2048, None),
        ({"openai": {"path": "/v1/embeddings"}, "format": {"kind": "openai"}}, 1, 8),
    ],
)
def test_each_completion_is_a_request_and_texts_to_embed_share_one(
    registry: Registry, more: dict[str, Any], batch: int, threads: int | None
) -> None:
    (asking,) = resolve(registry, stream(endpoint="m", **more))

    settings = asking.settings
    assert (settings.max_batch_size, settings.model_threads) == (batch, threads)
    assert settings.endpoint is not None
    assert settings.endpoint.openai is not None
    assert settings.endpoint.openai.path == more["openai"].get("path", "/v1/chat/completions")


def test_an_endpoint_is_reached_through_the_gateway(registry: Registry, model: Path) -> None:
    asking, own = resolve(
        registry,
        stream(endpoint="m", api_key_file="/key"),
        stream(name="b", sink={"topic": "out-b"}, model=str(model)),
    )
    told = through_gateway(asking.settings, url="http://gateway", ca_file="/ca").endpoint

    assert told is not None
    assert (told.url, told.ca_file, told.api_key_file) == ("http://gateway", "/ca", "/key")
    assert asking.model == "endpoint m"
    assert through_gateway(own.settings, url="http://gateway", ca_file="/ca") == own.settings


def test_windows_are_told_as_they_were_written(registry: Registry, model: Path) -> None:
    window = {"name": "spend", "size_s": 60, "function": "sum", "field": "amount", "key": "card"}
    [found] = resolve(
        registry, stream(model=str(model), windows={"windows": [window], "lateness_s": 5})
    )
    told = found.settings.windows

    assert told is not None
    assert told.windows == [
        StreamWindowSpec(name="spend", size_s=60, function=Function.SUM, field="amount", key="card")
    ]
    assert (told.lateness_s, told.state) == (5.0, "")


def test_a_view_is_pinned_as_it_is_in_force(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADRACE_ONLINE_STORE", raising=False)
    apply_features(tmp_path, registry)
    push = {"view": "spending", "fields": {"last": "amount"}, "timeout_s": 2.0}
    [found] = resolve(registry, pushing(push))
    told = found.settings.features

    assert told is not None
    assert decode_view(told.definition) == applied_definitions(registry.home).view("spending")
    assert told.online_store == f"sqlite:///{registry.home}/features/online/online.db"
    assert (told.fields, told.timeout_s) == ({"last": "amount"}, 2.0)
    assert (found.model, found.way) == ("view spending", "in to view spending")


def test_a_store_of_the_environment_is_named_and_not_copied(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_ONLINE_STORE", f"sqlite:///{tmp_path}/x.db")
    apply_features(tmp_path, registry)
    [found] = resolve(registry, pushing({"view": "spending"}))

    assert found.settings.features is not None
    assert found.settings.features.online_store == "${HEADRACE_ONLINE_STORE}"


@pytest.mark.parametrize(
    ("push", "place", "said"),
    [
        ({"view": "nobody"}, "view", "nobody"),
        ({"view": "spending", "fields": {"lost": "x"}}, "fields", "it has: card, last"),
        (
            {"view": "spending", "online_store": "unknown"},
            "online_store",
            "is not a known kind of online store",
        ),
        ({"view": "spending", "online_store": "unset"}, "online_store", "NOT_SET"),
    ],
)
def test_a_push_that_cannot_be_is_told_before_anything_runs(
    registry: Registry, tmp_path: Path, push: dict[str, Any], place: str, said: str
) -> None:
    apply_features(tmp_path, registry)
    [(where, why)] = mistakes(registry, pushing(push))

    assert where == f"streams[0].push.{place}"
    assert said in why


def test_without_any_features_a_push_says_how_to_define_them(registry: Registry) -> None:
    [(where, why)] = mistakes(registry, pushing({"view": "spending"}))

    assert where == "streams[0].push.view"
    assert "headrace features apply" in why


@pytest.mark.anyio
async def test_a_stored_spec_of_0_1_with_a_canary_and_a_shadow_is_still_changed(
    plane: ControlPlane, model: Path
) -> None:
    await plane.desired_state.apply(
        {
            "endpoints": [{"name": "m", "model": str(model)}],
            "streams": [stream(model=str(model))],
        },
        caller=SYSTEM,
    )
    before = dict(plane.target_state.desired.spec)
    before["streams"] = [
        {
            **before["streams"][0],
            "canary": {"model": str(model), "percent": 5},
            "shadow": {"endpoint": "m"},
        }
    ]
    with pytest.raises(SpecError, match=r"streams\[0\].canary.*whose rollout a stream follows"):
        parse_spec(before)

    spec = parse_spec(before, in_force=before)

    assert spec.streams[0].model == before["streams"][0]["model"]
    assert "canary" not in spec.document()["streams"][0]


def test_what_older_state_says_of_a_stream_is_read(registry: Registry, model: Path) -> None:
    [found] = resolve(registry, stream(model=str(model)))
    text = msgspec.to_builtins(found)
    del text["settings"]["windows"]
    text |= {"others": ["pay:2"]}
    text["settings"] |= {"canary": {"model": None, "percent": 5}, "shadow": None}

    assert msgspec.convert(text, DesiredStream) == found
