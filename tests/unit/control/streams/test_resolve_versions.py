"""Other versions, windows and views of a stream are pinned, checked, and told to its workers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.access.roles import SYSTEM, Role
from headrace.control.desired import DesiredStream
from headrace.control.plane import ControlPlane
from headrace.control.resolve import Resolver
from headrace.control.state import home_url
from headrace.control.state.references import references_in
from headrace.control.streams.asked import endpoints_of, models_of, through_gateway
from headrace.core import FailedPreconditionError, PermissionDeniedError
from headrace.core.spec import SpecError, parse_spec
from headrace.features import applied_definitions, apply_definitions, decode_view
from headrace.registry import Registry
from headrace.streaming.windows.settings import Function, WindowSettings
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


def test_every_version_is_pinned_with_settings_of_its_own(
    registry: Registry, models: list[str]
) -> None:
    old, new, next_ = models
    [found] = resolve(
        registry,
        stream(
            model=old,
            canary={"model": new, "percent": 20, "key": "card"},
            shadow={"model": next_, "sink": "beside", "tolerance": 0.5},
        ),
    )
    told = found.settings

    assert [model.model_version for model in models_of(told)] == ["1", "2", "3"]
    assert found.models == {"pay:1", "pay:2", "pay:3"}
    assert told.canary is not None
    assert told.shadow is not None
    assert (told.canary.percent, told.canary.key, told.canary.salt) == (20, "card", "pay")
    assert (told.shadow.sink, told.shadow.tolerance) == ("beside", 0.5)
    assert found.way == "in to out by pay:1, 20 % of keys by its canary"


def test_a_salt_that_is_given_is_kept(registry: Registry, models: list[str]) -> None:
    canary = {"model": models[1], "percent": 20, "salt": "shared"}
    [found] = resolve(registry, stream(model=models[0], canary=canary))

    assert found.settings.canary is not None
    assert found.settings.canary.salt == "shared"


def test_models_that_cannot_be_pinned_are_told_where_they_stand(
    registry: Registry, tmp_path: Path, models: list[str]
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    (tmp_path / "code.py").write_bytes(b"x")
    found = mistakes(
        registry,
        stream(
            model=models[0],
            canary={"model": str(tmp_path / "bad.onnx"), "percent": 5},
            shadow={"model": "nobody:3"},
        ),
        stream(name="b", model=models[0], shadow={"model": str(tmp_path / "code.py")}),
    )

    assert [place for place, _ in found] == [
        "streams[0].canary.model",
        "streams[0].shadow.model",
        "streams[1].shadow.model",
    ]
    assert "allow_code" in found[2][1]


def test_a_shadow_with_code_makes_it_a_stream_with_code(
    registry: Registry, tmp_path: Path, models: list[str]
) -> None:
    (tmp_path / "code.py").write_bytes(b"x")
    shadow = {"model": str(tmp_path / "code.py")}
    [found] = resolve(registry, stream(model=models[0], shadow=shadow, allow_code=True))

    assert found.runs_code


def test_a_canary_that_is_the_version_that_answers_is_a_mistake(
    registry: Registry, models: list[str]
) -> None:
    registry.push("fraud", Path(models[0]))
    registry.push("other", Path(models[1]))
    same = stream(model="fraud:1", canary={"model": "fraud", "percent": 5})
    alike = stream(name="b", model="fraud:1", canary={"model": "other:1", "percent": 5})
    (first, said), (second, why) = mistakes(registry, same, alike)

    assert (first, second) == ("streams[0].canary.model", "streams[1].canary.model")
    assert "is fraud:1, which answers for the other keys too" in said
    assert "of the same version number" in why


def test_endpoints_are_reached_through_the_gateway_whatever_they_are_to_the_stream(
    registry: Registry, models: list[str]
) -> None:
    [found] = resolve(
        registry,
        stream(
            model=models[0],
            canary={"endpoint": "m", "percent": 5},
            shadow={"endpoint": "m"},
            api_key_file="/key",
        ),
    )
    told = through_gateway(found.settings, url="http://gateway", ca_file="/ca")

    assert [one.url for one in endpoints_of(told)] == ["http://gateway"] * 2
    assert {(one.ca_file, one.api_key_file) for one in endpoints_of(told)} == {("/ca", "/key")}
    assert found.others == ("endpoint m", "endpoint m")
    assert through_gateway(told, url="", ca_file="").model == told.model


def test_windows_are_told_as_they_were_written(registry: Registry, models: list[str]) -> None:
    window = {"name": "spend", "size_s": 60, "function": "sum", "field": "amount", "key": "card"}
    [found] = resolve(
        registry, stream(model=models[0], windows={"windows": [window], "lateness_s": 5})
    )
    told = found.settings.windows

    assert told is not None
    assert told.windows == [
        WindowSettings(name="spend", size_s=60, function=Function.SUM, field="amount", key="card")
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
        ({"view": "spending", "online_store": "unknown"}, "online_store", "names no online"),
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
async def test_what_a_canary_or_a_shadow_asks_stays_in_use(
    plane: ControlPlane, models: list[str]
) -> None:
    await plane.orders.apply(
        {
            "endpoints": [{"name": "m", "model": models[0]}, {"name": "n", "model": models[0]}],
            "streams": [
                stream(endpoint="n", shadow={"endpoint": "m"}),
                stream(
                    name="b",
                    sink={"topic": "out-b"},
                    model=models[1],
                    canary={"model": models[2], "percent": 0},
                ),
            ],
        },
        caller=SYSTEM,
    )

    assert {"b:1", "b:2"} <= plane.in_use()
    assert {"b:1", "b:2"} <= references_in(home_url(plane.home.root))
    assert plane.store.store.load().streams == plane.desired.streams
    with pytest.raises(FailedPreconditionError, match="stream 'pay' asks endpoint 'm'"):
        await plane.orders.remove_endpoint("m", caller=SYSTEM)


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
    del text["others"], text["settings"]["canary"], text["settings"]["windows"]

    assert msgspec.convert(text, DesiredStream) == found


@pytest.mark.parametrize("beside", ["canary", "shadow"])
def test_models_of_two_frameworks_do_not_share_a_worker(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    for name in ("torch", "tensorflow"):
        (tmp_path / f"{name}.py").touch()
        (tmp_path / f"{name}.bin").write_bytes(name.encode())
    monkeypatch.syspath_prepend(tmp_path)
    old = registry.push("pay", tmp_path / "torch.bin", runtime="torchscript")
    new = registry.push("pay", tmp_path / "tensorflow.bin", runtime="savedmodel")
    more: dict[str, object] = {"percent": 5} if beside == "canary" else {"sink": "beside"}

    [(field, message)] = mistakes(
        registry, stream(model=old.reference, **{beside: {"model": new.reference, **more}})
    )

    assert field == f"streams[0].{beside}.model"
    assert message.startswith("pay:2 needs TensorFlow, which does not share a worker's process")
    assert "serve it by an endpoint" in message
