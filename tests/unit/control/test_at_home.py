from pathlib import Path

import msgspec
import pytest

from headrace.control.desired.documents import relocate
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.core import EndpointName, FeatureLookup, ReplicaSettings

HEX = "ab" * 32


def state(path: str, spec: dict[str, object] | None = None) -> DesiredState:
    name = EndpointName("m")
    settings = ReplicaSettings(model_name="m", model_version="1", path=path)
    revision = make_revision(endpoint=name, model="m:1", settings=settings)
    arm = DesiredArm(revision=revision, weight=100, replicas=1)
    endpoint = DesiredEndpoint(name=name, timeout_s=None, arms=(arm,))
    return DesiredState(generation=3, spec=spec or {}, endpoints=(endpoint,))


def path_of(found: DesiredState) -> str:
    return found.endpoints[0].arms[0].revision.settings.path


def test_the_path_becomes_this_homes_and_the_revision_stays() -> None:
    stored = state(f"/var/one/artifacts/sha256/{HEX}/m.onnx")

    found, digests = relocate(stored, Path("/srv/two"))

    assert path_of(found) == f"/srv/two/artifacts/sha256/{HEX}/m.onnx"
    assert found.revisions().keys() == stored.revisions().keys()
    assert digests == {f"sha256:{HEX}"}


@pytest.mark.parametrize("root", ["/srv/two", '/srv/a "b" \\1', "/srv/ü"])
def test_any_home_will_do(root: str) -> None:
    found, _ = relocate(state(f"/one/artifacts/sha256/{HEX}/m.onnx"), Path(root))

    assert path_of(found) == f"{root}/artifacts/sha256/{HEX}/m.onnx"


def test_the_same_home_gives_the_same_state() -> None:
    stored = state(f"/one/artifacts/sha256/{HEX}/m.onnx")

    found, digests = relocate(stored, Path("/one"))

    assert found is stored
    assert digests == {f"sha256:{HEX}"}


def test_files_that_are_served_where_they_lie_stay_there() -> None:
    stored = state("/models/m.onnx")

    assert relocate(stored, Path("/two")) == (stored, set())


def with_store(url: str, home: str = "/one") -> DesiredState:
    stored = state(f"{home}/artifacts/sha256/{HEX}/m.onnx")
    endpoint = stored.endpoints[0]
    revision = endpoint.arms[0].revision
    settings = msgspec.structs.replace(
        revision.settings, features=FeatureLookup(service="", online_store=url)
    )
    arm = msgspec.structs.replace(
        endpoint.arms[0], revision=msgspec.structs.replace(revision, settings=settings)
    )
    endpoint = msgspec.structs.replace(endpoint, arms=(arm,))
    return msgspec.structs.replace(stored, endpoints=(endpoint,))


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("sqlite:////one/features/online.db", "sqlite:////srv/two/features/online.db"),
        ("sqlite:////one2/online.db", "sqlite:////one2/online.db"),
        ("sqlite:////data/online.db", "sqlite:////data/online.db"),
        ("redis://one/0", "redis://one/0"),
        ("${HEADRACE_ONLINE_STORE}", "${HEADRACE_ONLINE_STORE}"),
    ],
)
def test_an_online_store_in_the_home_comes_with_it(url: str, there: str) -> None:
    found, _ = relocate(with_store(url), Path("/srv/two"))

    features = found.endpoints[0].arms[0].revision.settings.features
    assert isinstance(features, FeatureLookup)
    assert features.online_store == there


def test_a_home_at_the_root_takes_no_stores_of_others_along() -> None:
    found, _ = relocate(with_store("sqlite:////data/online.db", home=""), Path("/srv/two"))

    features = found.endpoints[0].arms[0].revision.settings.features
    assert isinstance(features, FeatureLookup)
    assert features.online_store == "sqlite:////data/online.db"
    assert path_of(found) == f"/srv/two/artifacts/sha256/{HEX}/m.onnx"


@pytest.mark.parametrize("home", ['/srv/a "b" \\1', "/srv/ü", f"/x/artifacts/sha256/{HEX}/home"])
def test_a_home_with_odd_characters_is_left_as_any_other(home: str) -> None:
    found, _ = relocate(state(f"{home}/artifacts/sha256/{HEX}/m.onnx"), Path("/two"))

    assert path_of(found) == f"/two/artifacts/sha256/{HEX}/m.onnx"
