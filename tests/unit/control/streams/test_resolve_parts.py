"""Endpoints, windows and views of a stream are resolved, checked, and told to its workers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.auth.roles import SYSTEM, Role
from headrace.control.desired.resolve import Resolver
from headrace.control.desired.resolve_streams import through_gateway
from headrace.control.model.desired import DesiredStream
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.state import home_url, references_in
from headrace.core import FailedPreconditionError, PermissionDeniedError
from headrace.core.spec.parse import SpecError, parse_spec
from headrace.core.spec.stream_parts import Function, StreamWindowSpec
from headrace.features import applied_definitions, apply_definitions
from headrace.features.wire import decode_view
from headrace.registry import Registry
from tests.unit.control.conftest import inspect
from tests.unit.control.streams.test_resolve import check

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
def models(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.onnx" for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return [str(path) for path in paths]


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


def test_an_endpoint_is_reached_through_the_gateway(registry: Registry, models: list[str]) -> None:
    asking, own = resolve(
        registry,
        stream(endpoint="m", api_key_file="/key"),
        stream(name="b", sink={"topic": "out-b"}, model=models[0]),
    )
    told = through_gateway(asking.settings, url="http://gateway", ca_file="/ca").endpoint

    assert told is not None
    assert (told.url, told.ca_file, told.api_key_file) == ("http://gateway", "/ca", "/key")
    assert asking.model == "endpoint m"
    assert through_gateway(own.settings, url="http://gateway", ca_file="/ca") == own.settings


def test_windows_are_told_as_they_were_written(registry: Registry, models: list[str]) -> None:
    window = {"name": "spend", "size_s": 60, "function": "sum", "field": "amount", "key": "card"}
    [found] = resolve(
        registry, stream(model=models[0], windows={"windows": [window], "lateness_s": 5})
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
    (tmp_path / "features.yaml").write_text(FEATURES)
    apply_definitions(tmp_path / "features.yaml", registry.home)
    push = {"view": "spending", "fields": {"last": "amount"}, "timeout_s": 2.0}
    pushing = stream(push=push)
    del pushing["sink"]
    [found] = resolve(registry, pushing)
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
    (tmp_path / "features.yaml").write_text(FEATURES)
    apply_definitions(tmp_path / "features.yaml", registry.home)
    pushing = stream(push={"view": "spending"})
    del pushing["sink"]
    [found] = resolve(registry, pushing)

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
    (tmp_path / "features.yaml").write_text(FEATURES)
    apply_definitions(tmp_path / "features.yaml", registry.home)
    pushing = stream(push=push)
    del pushing["sink"]
    [(where, why)] = mistakes(registry, pushing)

    assert where == f"streams[0].push.{place}"
    assert said in why


def test_without_any_features_a_push_says_how_to_define_them(registry: Registry) -> None:
    pushing = stream(push={"view": "spending"})
    del pushing["sink"]
    [(where, why)] = mistakes(registry, pushing)

    assert where == "streams[0].push.view"
    assert "headrace features apply" in why


@pytest.mark.anyio
async def test_what_a_stream_asks_stays_in_use(plane: ControlPlane, models: list[str]) -> None:
    await plane.desired_state.apply(
        {
            "endpoints": [{"name": "m", "model": models[0]}],
            "streams": [
                stream(endpoint="m"),
                stream(name="b", sink={"topic": "out-b"}, model=models[1]),
            ],
        },
        caller=SYSTEM,
    )

    assert "b:1" in plane.desired_state.in_use()
    assert "b:1" in references_in(home_url(plane.home.root))
    assert plane.store.load.blocking().streams == plane.target_state.desired.streams
    with pytest.raises(FailedPreconditionError, match="stream 'pay' uses endpoint 'm'"):
        await plane.desired_state.remove_endpoint("m", caller=SYSTEM)


@pytest.mark.anyio
async def test_a_stored_spec_of_0_1_with_a_canary_and_a_shadow_is_still_changed(
    plane: ControlPlane, models: list[str]
) -> None:
    await plane.desired_state.apply(
        {
            "endpoints": [{"name": "m", "model": models[0]}],
            "streams": [stream(model=models[1])],
        },
        caller=SYSTEM,
    )
    before = dict(plane.target_state.desired.spec)
    before["streams"] = [
        {
            **before["streams"][0],
            "canary": {"model": models[2], "percent": 5},
            "shadow": {"endpoint": "m"},
        }
    ]
    with pytest.raises(SpecError, match=r"streams\[0\].canary.*whose rollout a stream follows"):
        parse_spec(before)

    spec = parse_spec(before, in_force=before)

    assert spec.streams[0].model == before["streams"][0]["model"]
    assert "canary" not in spec.document()["streams"][0]


def test_only_an_admin_says_to_which_online_store_secrets_are_sent() -> None:
    before = {"streams": [stream(push={"view": "v", "online_store": "redis://:${PW}@here"})]}
    after = {"streams": [stream(push={"view": "v", "online_store": "redis://:${PW}@evil"})]}

    check(Role.OPERATOR, before, before)
    check(Role.ADMIN, before, after)
    with pytest.raises(PermissionDeniedError, match="only an admin"):
        check(Role.OPERATOR, before, after)


def test_what_older_state_says_of_a_stream_is_read(registry: Registry, models: list[str]) -> None:
    [found] = resolve(registry, stream(model=models[0]))
    text = msgspec.to_builtins(found)
    del text["settings"]["windows"]
    text |= {"others": ["pay:2"]}
    text["settings"] |= {"canary": {"model": None, "percent": 5}, "shadow": None}

    assert msgspec.convert(text, DesiredStream) == found
