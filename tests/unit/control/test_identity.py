"""Ids are equal wherever a home is, and differ for whatever a replica does otherwise."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.model.desired import Revision, make_revision, with_id
from headrace.core import (
    BatchingSpec,
    EndpointName,
    FeatureLookup,
    NullPolicy,
    ReplicaSettings,
    SignedSettings,
)
from headrace.core.devices import Device
from headrace.features import FeatureService, encode_service, parse_definitions

ONE, OTHER = "1a" * 32, "2b" * 32
_PART = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda part: part not in {".", ".."}
)
HOMES = st.lists(_PART, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


def service(folder: str = "/data", ttl_s: float = 60.0) -> FeatureService:
    document = {
        "entities": [{"name": "customer", "datatype": "INT64"}],
        "feature_views": [
            {
                "name": "stats",
                "entities": ["customer"],
                "ttl_s": ttl_s,
                "source": {"path": "stats.parquet"},
                "features": [{"name": "age", "datatype": "INT64"}],
            }
        ],
        "feature_services": [{"name": "scores", "features": ["stats"]}],
    }
    return parse_definitions(document, base_dir=Path(folder)).service("scores")


def features(home: str = "/h", folder: str = "/data", ttl_s: float = 60.0) -> FeatureLookup:
    return FeatureLookup(
        service=encode_service(service(folder, ttl_s)),
        online_store=f"sqlite:///{home}/features/online/online.db",
    )


def settings(home: str = "/h", digest: str = ONE, **more: Any) -> ReplicaSettings:  # noqa: ANN401  # fields of several types
    return ReplicaSettings(
        model_name="m",
        model_version="1",
        path=f"{home}/artifacts/sha256/{digest}/m.onnx",
        runtime="onnx",
        **more,
    )


def revision(told: ReplicaSettings, **more: Any) -> Revision:  # noqa: ANN401  # as above
    return make_revision(endpoint=EndpointName("m"), model="m:1", settings=told, **more)


@given(st.tuples(HOMES, HOMES), st.tuples(HOMES, HOMES), st.integers(1, 64))
def test_two_homes_give_one_id(homes: tuple[str, str], data: tuple[str, str], size: int) -> None:
    (home, other), (folder, elsewhere) = homes, data
    batching = BatchingSpec(max_batch_size=size)
    one = settings(home, batching=batching, features=features(home, folder))
    two = settings(other, batching=batching, features=features(other, elsewhere))

    assert revision(one).id == revision(two).id
    assert revision(one).settings == one  # a process is told where its own home is


@given(HOMES, HOMES, st.sampled_from(["/repo/m/1/model.onnx", "/m/model.onnx"]))
def test_two_repositories_of_one_content_give_one_id(home: str, other: str, path: str) -> None:
    one, two = (msgspec.structs.replace(settings(), path=f"{at}{path}") for at in (home, other))
    content = f"sha256:{ONE}"

    assert revision(one, content=content).id == revision(two, content=content).id
    assert revision(one, content=content).id != revision(two, content=f"sha256:{OTHER}").id


_OTHERS: dict[str, Revision] = {
    "content": revision(settings(digest=OTHER, features=features())),
    "another name of the file": revision(
        msgspec.structs.replace(
            settings(features=features()), path=f"/h/artifacts/sha256/{ONE}/n.onnx"
        )
    ),
    "version": revision(msgspec.structs.replace(settings(features=features()), model_version="2")),
    "runtime": revision(msgspec.structs.replace(settings(features=features()), runtime="x")),
    "batching": revision(settings(features=features(), batching=BatchingSpec(max_queue_size=7))),
    "labels": revision(settings(features=features(), labels={"y": ["no", "yes"]})),
    "device": revision(settings(features=features(), device=Device.CPU)),
    "nulls": revision(settings(features=features(), nulls=NullPolicy.ERROR)),
    "signature": revision(
        settings(features=features(), signed=SignedSettings(statement="s", key="k", signature="x"))
    ),
    "no features": revision(settings()),
    "other features": revision(settings(features=features(ttl_s=61.0))),
    "a store outside of the home": revision(
        settings(
            features=msgspec.structs.replace(
                features(), online_store="sqlite:////h2/features/online/online.db"
            )
        )
    ),
    "another store in the home": revision(
        settings(features=msgspec.structs.replace(features(), online_store="sqlite:////h/other.db"))
    ),
    "a store on the network": revision(
        settings(features=msgspec.structs.replace(features(), online_store="redis://h:1/0"))
    ),
    "reload": revision(settings(features=features()), reload=1),
    "purpose": revision(settings(features=features()), purpose="baseline of r1"),
    "pool": revision(settings(features=features()), pool="small"),
    "network": revision(settings(features=features()), network=True),
}


@pytest.mark.parametrize("what", _OTHERS)
def test_whatever_a_replica_does_otherwise_gives_another_id(what: str) -> None:
    others = [found.id for name, found in _OTHERS.items() if name != what]

    assert _OTHERS[what].id not in {revision(settings(features=features())).id, *others}


@given(st.text(alphabet="0123456789abcdef", min_size=64, max_size=64), HOMES, HOMES)
def test_no_two_contents_have_one_id(digest: str, home: str, other: str) -> None:
    is_one = digest == ONE

    found = revision(settings(home, digest)).id == revision(settings(other)).id

    assert found == is_one


def test_a_store_beside_the_home_is_not_taken_for_one_in_it() -> None:
    beside = msgspec.structs.replace(features(), online_store="sqlite:////home2/online.db")
    inside = msgspec.structs.replace(features(), online_store="sqlite:////home/2/online.db")

    assert revision(settings("/home", features=beside)).id == (
        revision(settings("/elsewhere", features=beside)).id
    )
    assert revision(settings("/home", features=inside)).id != (
        revision(settings("/elsewhere", features=inside)).id
    )


def test_what_is_no_service_is_told_apart_as_it_stands() -> None:
    one, two = (
        msgspec.structs.replace(features(), service=text) for text in ("not JSON", '{"views": 1}')
    )

    assert revision(settings(features=one)).id != revision(settings(features=two)).id


def test_a_model_that_nobody_can_tell_the_content_of_counts_by_its_path() -> None:
    one, two = (msgspec.structs.replace(settings(), path=path) for path in ("/a/m", "/b/m"))

    assert revision(one).id != revision(two).id


def test_making_a_revision_again_gives_it_the_same_id() -> None:
    made = revision(
        settings(features=features()), reload=3, pool="p", network=True, content=f"sha256:{OTHER}"
    )

    assert with_id(made) == made
    assert with_id(msgspec.structs.replace(made, id="of a former release")) == made
