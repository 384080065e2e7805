"""`features.yaml` is read whole; of a wrong one every mistake is told, with its place."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError, NotFoundError
from headrace.core.spec.mistakes import SpecError
from headrace.features import (
    Definitions,
    MaterializeSchedule,
    MissingValuePolicy,
    parse_definitions,
    read_definitions,
)
from headrace.features.spec_models import DefinitionsSpec

BASE = Path("/project")
FULL = """
version: 1
entities:
  - {name: customer, join_key: customer_id, datatype: INT64}
  - name: shop
feature_views:
  - name: customer_stats
    entities: [customer]
    ttl_s: 86400
    on_stale: reject
    source:
      path: data/customers.parquet
      timestamp_field: at
      created_timestamp_column: created
    features:
      - {name: age, datatype: INT64, default: -1}
      - {name: spend, datatype: FP32, default: 0}
  - name: pair
    entities: [customer, shop]
    source: {path: /abs/pairs}
    features:
      - {name: visits, datatype: FP64}
      - {name: note, datatype: BYTES, default: none}
feature_services:
  - name: fraud
    features: ["pair:visits", customer_stats]
  - name: full
    features: [customer_stats, pair]
    full_feature_names: true
"""


def mistakes(source: str | dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_definitions(source, base_dir=BASE)
    return {mistake.place: mistake.message for mistake in caught.value.mistakes}


def document(**changes: object) -> dict[str, Any]:
    return {
        "entities": [{"name": "customer"}, {"name": "shop"}],
        "feature_views": [
            {
                "name": "stats",
                "entities": ["customer"],
                "source": {"path": "a.parquet"},
                "features": [{"name": "age", "datatype": "INT64"}],
            }
        ],
        **changes,
    }


def with_view(**changes: object) -> dict[str, Any]:
    made = document()
    made["feature_views"][0] |= changes
    return made


def read(text: str = FULL) -> Definitions:
    return parse_definitions(text, base_dir=BASE)


def test_all_that_is_said_is_read() -> None:
    view = read().view("customer_stats")

    assert view.join_keys == ("customer_id",)
    assert view.entities[0].datatype is Datatype.INT64
    assert view.source.path == BASE / "data/customers.parquet"
    assert (view.source.timestamp_field, view.source.created_field) == ("at", "created")
    assert (view.ttl_s, view.on_missing, view.on_stale) == (
        86400,
        MissingValuePolicy.DEFAULTS,
        MissingValuePolicy.REJECT,
    )
    assert [feature.filling for feature in view.features] == [-1, 0.0]


def test_what_is_left_out_has_its_default() -> None:
    view = read().view("pair")

    assert view.join_keys == ("customer_id", "shop")
    assert view.source.path == Path("/abs/pairs")
    assert (view.source.timestamp_field, view.ttl_s) == ("event_timestamp", None)
    assert view.features[1].filling == b"none"


def test_columns_stand_in_the_order_of_the_service() -> None:
    found = read()

    assert [c.name for c in found.service("fraud").columns] == ["visits", "age", "spend"]
    assert [c.name for c in found.service("full").columns] == [
        "customer_stats__age",
        "customer_stats__spend",
        "pair__visits",
        "pair__note",
    ]
    assert [view.name for view in found.service("fraud").views] == ["pair", "customer_stats"]
    assert [e.name for e in found.service("fraud").entities] == ["customer", "shop"]


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(
        NotFoundError, match="feature view 'x' is not defined; defined: customer_stats, pair"
    ):
        read().view("x")
    with pytest.raises(
        NotFoundError, match="feature service 'x' is not defined; defined: fraud, full"
    ):
        read().service("x")


@pytest.mark.e2e
def test_the_schema_hash_is_the_same_in_another_process() -> None:
    program = (
        "import sys; from pathlib import Path; from headrace.features import parse_definitions\n"
        "found = parse_definitions(sys.stdin.read(), base_dir=Path('/elsewhere'))\n"
        "print(found.service('fraud').schema_hash, found.view('pair').schema_hash.hex())"
    )
    told = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", program],
        input=FULL,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    ).stdout.split()

    found = read()
    assert told == [found.service("fraud").schema_hash, found.view("pair").schema_hash.hex()]


def test_the_schema_hash_tells_types_and_order_but_not_settings() -> None:
    before = read().view("customer_stats").schema_hash

    def after(old: str, new: str) -> bytes:
        return read(FULL.replace(old, new)).view("customer_stats").schema_hash

    assert after("ttl_s: 86400", "ttl_s: 5") == before
    assert after("default: -1", "default: 7") == before
    assert after("name: age, datatype: INT64", "name: age, datatype: FP64") != before
    assert after("join_key: customer_id, datatype: INT64", "join_key: customer_id") != before
    order = FULL.replace('["pair:visits", customer_stats]', '[customer_stats, "pair:visits"]')
    assert read(order).service("fraud").schema_hash != read().service("fraud").schema_hash


def test_all_mistakes_are_told_at_once() -> None:
    text = FULL.replace("ttl_s: 86400", "ttl: 86400").replace("default: -1", "default: 1.5")
    text = text.replace('"pair:visits"', '"pair:visit"').replace(
        "[customer, shop]", "[customer, x]"
    )

    found = mistakes(text)

    assert "did you mean 'ttl_s'?" in found["feature_views[0].ttl"]
    assert "does not fit INT64" in found["feature_views[0].features[0].default"]
    assert (
        "entity 'x' is not defined; defined: customer, shop"
        in found["feature_views[1].entities[1]"]
    )
    assert "no feature 'visit'; it has: visits, note" in found["feature_services[0].features[0]"]


def test_a_mistake_says_its_line() -> None:
    with pytest.raises(SpecError, match=r"feature_views\[0\]\.ttl_s \(line 9\)"):
        read(FULL.replace("ttl_s: 86400", "ttl_s: -1"))


@pytest.mark.parametrize(
    ("datatype", "default", "fits"),
    [
        ("FP32", 1, True),
        ("FP32", 1e300, False),
        ("FP64", 1e300, True),
        ("FP64", float("nan"), False),
        ("FP64", True, False),
        ("FP64", 10**400, False),
        ("INT64", 1 << 63, False),
        ("INT64", True, False),
        ("BOOL", True, True),
        ("BOOL", 1, False),
        ("BYTES", "text", True),
        ("BYTES", 5, False),
    ],
)
def test_a_default_has_to_fit(datatype: str, default: object, fits: bool) -> None:  # noqa: FBT001  # a case
    feature = {"name": "f", "datatype": datatype, "default": default}
    source = with_view(features=[feature])

    if fits:
        parse_definitions(source, base_dir=BASE)
    else:
        assert "does not fit" in mistakes(source)["feature_views[0].features[0].default"]


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        (
            {"source": {"path": "x", "field_mapping": {"a": "b", "c": "b"}}},
            "source.field_mapping.c",
            "the name of column 'a'",
        ),
        ({"source": {"path": "s3://bucket/x"}}, "source.path", "only local files"),
        ({"source": {"path": "a\0b"}}, "source.path", "is not a path"),
        ({"entities": ["customer", "customer"]}, "entities[1]", "has the join key 'customer'"),
        ({"entities": []}, "entities", "at least 1"),
        ({"ttl_s": float("inf")}, "ttl_s", "less than or equal"),
        ({"ttl_s": float("nan")}, "ttl_s", ""),
        ({"ttl_s": "1h"}, "ttl_s", "write 3600 instead of '1h'"),
        ({"name": "no spaces"}, "name", "does not match"),
        ({"features": [{"name": "customer", "datatype": "BOOL"}]}, "features[0].name", "already"),
        ({"features": [{"name": "a:b", "datatype": "BOOL"}]}, "features[0].name", "not match"),
        ({"features": [{"name": "a", "datatype": "string"}]}, "features[0].datatype", "BYTES"),
        ({"features": [{"name": "a", "datatype": "BOOL"}] * 2}, "features[1].name", "already"),
        ({"on_stale": "ignore"}, "on_stale", "defaults"),
    ],
)
def test_a_wrong_view_is_told(changes: dict[str, object], place: str, words: str) -> None:
    assert words in mistakes(with_view(**changes))[f"feature_views[0].{place}"]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["stats", "stats:age"], "name each feature once"),
        (["nobody"], "feature view 'nobody' is not defined; defined: stats"),
        (["stats:nothing"], "has no feature 'nothing'; it has: age"),
    ],
)
def test_a_wrong_service_is_told(items: list[str], words: str) -> None:
    source = document(feature_services=[{"name": "s", "features": items}])

    found = mistakes(source)

    assert words in found[f"feature_services[0].features[{len(items) - 1}]"]


def test_a_feature_called_like_a_later_join_key_is_told() -> None:
    source = document(feature_services=[{"name": "s", "features": ["stats", "other"]}])
    source["feature_views"][0]["features"][0]["name"] = "shop"
    other = {**source["feature_views"][0], "name": "other", "entities": ["shop"]}
    other["features"] = [{"name": "x", "datatype": "BOOL"}]
    source["feature_views"].append(other)

    assert "already a join key" in mistakes(source)["feature_services[0].features[0]"]


def test_names_are_given_once() -> None:
    source = document(entities=[{"name": "customer"}, {"name": "customer"}])

    assert "already the name of entities[0]" in mistakes(source)["entities[1].name"]


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "a: [", "{version: 2}", "\tx: 1", "entities: !x 1"]
)
def test_what_is_no_definition_is_told(text: str) -> None:
    assert mistakes(text)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "entities",
                    "feature_views",
                    "feature_services",
                    "features",
                    "name",
                    "source",
                    "path",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from(["entities", "feature_views", "feature_services"]), _ANYTHING)
)
def test_no_document_makes_it_fail(source: dict[str, Any]) -> None:
    try:
        parse_definitions(source, base_dir=BASE)
    except SpecError as error:
        assert error.mistakes  # noqa: PT017  # either outcome is right


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="No such file"):
        read_definitions(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgumentError, match="not UTF-8 text"):
        read_definitions(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * (2 << 20))
    with pytest.raises(SpecError, match="longer than"):
        read_definitions(tmp_path / "huge")


def test_sources_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text(FULL)

    found = read_definitions(tmp_path / "features.yaml")

    assert found.view("customer_stats").source.path == tmp_path / "data/customers.parquet"


@pytest.mark.parametrize(
    ("given", "schedule"),
    [
        ({"every_s": 300}, MaterializeSchedule(every_s=300.0)),
        (
            {"cron": "0 8 * * 1-5", "timezone": "Europe/Berlin", "timeout_s": 60},
            MaterializeSchedule(cron="0 8 * * 1-5", timezone="Europe/Berlin", timeout_s=60.0),
        ),
    ],
)
def test_a_view_has_a_schedule(given: dict[str, Any], schedule: MaterializeSchedule) -> None:
    views = [document()["feature_views"][0] | {"materialize": given}]

    found = parse_definitions(document(feature_views=views), base_dir=BASE)

    (view,) = found.views.values()
    assert view.schedule == schedule


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "exactly one of `every_s` and `cron`"),
        ({"every_s": 60, "cron": "* * * * *"}, "exactly one"),
        ({"every_s": 0.5}, "1"),
        ({"cron": "* * * *"}, "needs five fields"),
        ({"cron": "61 * * * *"}, "is not a valid cron expression"),
        ({"cron": "* * 30 2 *"}, "is not a valid cron expression: Bad day-of-month"),
        (
            {"cron": "* * * * *", "timezone": "Mars/Olympus"},
            "the time zone 'Mars/Olympus' does not exist",
        ),
        ({"every_s": 60, "max_memory_bytes": 1}, "268435456"),
    ],
)
def test_a_schedule_that_cannot_be_is_told(given: dict[str, Any], told: str) -> None:
    views = [document()["feature_views"][0] | {"materialize": given}]

    found = mistakes(document(feature_views=views))

    assert any(told in message for message in found.values()), found


def test_every_setting_is_documented() -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "features.md"
    text = page.read_text()
    schema = DefinitionsSpec.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    names = {name for model in models for name in model["properties"]}

    assert [name for name in sorted(names) if name not in text] == []
