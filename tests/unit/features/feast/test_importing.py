"""What can be taken of a registry is; what cannot is told, and no service is cut short."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from headrace.features import Definitions, parse_definitions
from headrace.features.feast import repository
from headrace.features.feast.importing import import_definitions
from headrace.features.feast.repository import FeastRepository

FLOAT, INT64, STRING, DOUBLE = 6, 4, 2, 5
FILE, SNOWFLAKE, PUSH = 1, 8, 9
CUSTOMER = {"spec": {"name": "customer", "joinKey": "id", "valueType": INT64, "project": "p"}}
SOURCE = {"type": FILE, "timestampField": "at", "file": {"uri": "stats.parquet"}}


def view(name: str = "stats", **changes: object) -> dict[str, Any]:
    spec = {
        "name": name,
        "project": "p",
        "entities": ["customer"],
        "features": [{"name": "a", "valueType": FLOAT}, {"name": "b", "valueType": INT64}],
        "entityColumns": [{"name": "id", "valueType": INT64}],
        "batchSource": SOURCE,
    }
    return {"spec": spec | changes}


def service(name: str = "all", *views: str, **changes: object) -> dict[str, Any]:
    columns = [{"name": "a", "valueType": FLOAT}]
    projections = [{"view": one, "columns": columns} | changes for one in views or ("stats",)]
    return {"spec": {"name": name, "project": "p", "features": projections}}


def taken(tmp_path: Path, **parts: object) -> tuple[Definitions, Mapping[str, str]]:
    """What is defined, and why the rest is left out."""
    document = {"entities": [CUSTOMER], "featureViews": [view()]} | parts
    made = json_format.ParseDict(document, repository._class("Registry")())
    (tmp_path / "registry.db").write_bytes(made.SerializeToString())
    feast = FeastRepository(
        path=tmp_path, project="p", registry_path=tmp_path / "registry.db", online={}
    )
    found = import_definitions(feast)
    left_out = {f"{one.kind} {one.name}": one.reason for one in found.left_out}
    return parse_definitions(found.document, base_dir=tmp_path), left_out


def test_views_of_another_project_are_of_no_concern(tmp_path: Path) -> None:
    found, left_out = taken(tmp_path, featureViews=[view(), view("other", project="q")])

    assert list(found.views) == ["stats"]
    assert left_out == {}


def test_a_stream_view_is_a_view(tmp_path: Path) -> None:
    stream = view("clicks")
    stream["spec"]["ttl"] = {"seconds": 90, "nanos": 500_000_000}

    found, _ = taken(tmp_path, streamFeatureViews=[stream])

    assert found.view("clicks").ttl_s == 90.5
    assert found.view("stats").ttl_s is None


def test_a_pushed_view_has_the_file_behind_it(tmp_path: Path) -> None:
    pushed = {"type": PUSH, "batchSource": SOURCE}

    found, _ = taken(tmp_path, featureViews=[view(batchSource=pushed)])

    source = found.view("stats").source
    assert (source.path, source.timestamp_field) == (tmp_path / "stats.parquet", "at")
    assert source.is_naive_utc


def test_what_is_no_parquet_of_this_machine_is_served_only(tmp_path: Path) -> None:
    sources: dict[str, dict[str, Any]] = {
        "snow": {"type": SNOWFLAKE, "timestampField": "at"},
        "s3": {"type": FILE, "file": {"uri": "s3://bucket/x.parquet"}},
        "delta": {"type": FILE, "file": {"uri": "/data/x", "format": {"delta": {}}}},
        "near": {"type": FILE, "file": {"uri": "file:///data/x.parquet"}},
    }
    views = [view(name, batchSource=source) for name, source in sources.items()]

    found, left_out = taken(tmp_path, featureViews=views)

    assert {name: one.source.path for name, one in found.views.items()} == {
        "snow": None,
        "s3": None,
        "delta": None,
        "near": Path("/data/x.parquet"),
    }
    assert found.view("snow").source.timestamp_field == "at"
    assert left_out == {}


def test_a_key_has_the_type_by_which_its_views_were_written(tmp_path: Path) -> None:
    undeclared = {"spec": {"name": "customer", "joinKey": "id", "valueType": STRING}}

    found, _ = taken(tmp_path, entities=[undeclared])

    assert found.entities["customer"].datatype.value == "INT64"


def test_views_that_cannot_be_taken_are_told(tmp_path: Path) -> None:
    number = {"spec": {"name": "number", "joinKey": "x", "valueType": DOUBLE, "project": "p"}}
    strange = {"spec": {"name": "a b", "valueType": INT64, "project": "p"}}
    views = [
        view(),
        view("2nd"),
        view("nobody", entities=[]),
        view("dummy", entities=["__dummy"]),
        view("unknown", entities=["shop"]),
        view("strange", entities=["a b"]),
        view("fraction", entities=["number"], entityColumns=[]),
        view("lists", features=[{"name": "v", "valueType": 16}]),
    ]

    found, left_out = taken(tmp_path, featureViews=views, entities=[CUSTOMER, number, strange])

    assert list(found.views) == ["stats"]
    assert left_out == {
        "view 2nd": "its name must begin with a letter and have at most 128 letters, digits, _ "
        "and -",
        "view nobody": "it has no entity",
        "view dummy": "it has no entity",
        "view unknown": "its entity 'shop' is not in the registry, or its name is not valid here",
        "view strange": "its entity 'a b' is not in the registry, or its name is not valid here",
        "view fraction": "its join key 'x' is neither text nor an integer",
        "feature lists:v": "Feast's type 16 is not a single number, boolean or text",
        "view lists": "none of its features is supported",
    }


def test_services_that_cannot_be_taken_whole_are_told(tmp_path: Path) -> None:
    other = service("other", "gone")
    services = [
        service(),
        service("2nd"),
        {"spec": {"name": "empty", "project": "p"}},
        other,
        service("mapped", joinKeyMap=[{"key": "id", "value": "friend"}]),
        service("old", version=2),
        service("more", columns=[{"name": "z", "valueType": FLOAT}]),
    ]

    found, left_out = taken(tmp_path, featureServices=services)

    assert list(found.services) == ["all"]
    assert left_out == {
        "service 2nd": "its name is not valid here",
        "service empty": "it has no features",
        "service other": "its view 'gone' is left out",
        "service mapped": "it maps the join keys of view 'stats'",
        "service old": "it pins a version of view 'stats'",
        "service more": "its feature stats:z is left out",
    }


def test_features_of_one_name_are_told_apart_by_their_views(tmp_path: Path) -> None:
    views = [view(), view("risk"), view("keys", features=[{"name": "id2", "valueType": FLOAT}])]

    found, _ = taken(
        tmp_path, featureViews=views, featureServices=[service("both", "stats", "risk"), service()]
    )

    assert [one.name for one in found.service("both").columns] == ["stats__a", "risk__a"]
    assert [one.name for one in found.service("all").columns] == ["a"]
