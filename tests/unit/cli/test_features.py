"""`headrace features`, from a file of definitions to the values that a request gets."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from headrace.features import (
    FeatureReader,
    ServedFeaturesWriter,
    applied_definitions,
    default_online_store,
    open_online_store,
    served_directory,
)
from tests.unit.cli.conftest import Command

pytestmark = pytest.mark.slow  # several commands each, and Parquet files

DEFINITIONS = """
entities:
  - {name: customer, join_key: customer_id, datatype: INT64}
  - name: shop
feature_views:
  - name: stats
    entities: [customer]
    ttl_s: 86400
    source: {path: stats.parquet}
    features:
      - {name: age, datatype: INT64, default: -1}
      - {name: city, datatype: BYTES}
      - {name: spend, datatype: FP32}
  - name: visits
    entities: [customer, shop]
    source: {path: visits.parquet}
    features: [{name: visits, datatype: FP64}]
feature_services:
  - {name: fraud, features: [stats]}
  - {name: wide, features: [visits, "stats:age"]}
"""
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def headrace(headrace: Command, tmp_path: Path) -> Command:
    """The same, beside definitions and their data."""
    (tmp_path / "features.yaml").write_text(DEFINITIONS)
    pl.DataFrame(
        {
            "customer_id": [17, 18],
            "event_timestamp": [NOW - timedelta(hours=1), NOW - timedelta(days=2)],
            "age": [33, 44],
            "city": ["Zürich", None],
            "spend": [0.5, None],
        }
    ).write_parquet(tmp_path / "stats.parquet")
    visits = {"customer_id": [17], "shop": ["a=b"], "event_timestamp": [NOW], "visits": [3.0]}
    pl.DataFrame(visits).write_parquet(tmp_path / "visits.parquet")
    return headrace


def test_definitions_are_applied_and_what_changed_is_told(
    headrace: Command, tmp_path: Path
) -> None:
    first = headrace("features", "apply")
    again = headrace("features", "apply")
    changed = DEFINITIONS.replace("default: -1", "default: 0").replace(
        "spend, datatype: FP32", "spend, datatype: FP64"
    )
    (tmp_path / "features.yaml").write_text(changed.replace("name: wide", "name: other"))
    told = headrace("features", "apply", "--json")

    assert "view stats is created\n" in first.err
    assert "service fraud is created\n" in first.err
    assert again.err == "no changes\n"
    assert json.loads(told.out) == [
        {"kind": "view", "name": "stats", "what": "changed", "has_other_schema": True},
        {"kind": "service", "name": "fraud", "what": "changed", "has_other_schema": True},
        {"kind": "service", "name": "other", "what": "created", "has_other_schema": False},
        {"kind": "service", "name": "wide", "what": "removed", "has_other_schema": False},
    ]


def test_a_view_of_another_schema_asks_to_be_materialized(
    headrace: Command, tmp_path: Path
) -> None:
    headrace("features", "apply")
    headrace("features", "materialize")
    (tmp_path / "features.yaml").write_text(
        DEFINITIONS.replace("spend, datatype: FP32", "spend, datatype: FP64")
    )

    applied = headrace("features", "apply")
    got = json.loads(headrace("features", "get", "fraud", "-k", "customer_id=17", "--json").out)

    assert "view stats is changed; materialize it again\n" in applied.err
    assert got["rows"][0]["statuses"] == {"stats": "MISSING"}
    assert "another schema" in got["rows"][0]["reasons"]["stats"]


def test_a_wrong_file_changes_nothing(headrace: Command, tmp_path: Path) -> None:
    headrace("features", "apply")
    (tmp_path / "features.yaml").write_text(DEFINITIONS.replace("ttl_s", "ttl"))

    applied = headrace("features", "apply")

    assert applied.status == 1
    assert "feature_views[0].ttl (line 8)" in applied.err
    assert "did you mean 'ttl_s'?" in applied.err
    (tmp_path / "features.yaml").write_text(DEFINITIONS)
    assert headrace("features", "apply").err == "no changes\n"


def test_a_request_gets_what_was_materialized(headrace: Command) -> None:
    headrace("features", "apply")

    told = headrace("features", "materialize")
    shown = headrace("features", "get", "fraud", "-k", "customer_id=17", "-k", "customer_id=18")
    got = headrace("features", "get", "fraud", "-k", "customer_id=17", "--json")

    assert "stats: 2 of 2 entities written, the newest of 20" in told.err
    assert [line.split() for line in shown.out.splitlines()] == [
        ["feature", "value", "view", "status"],
        ["age", "33", "stats", "PRESENT"],
        ["city", "Zürich", "stats", "PRESENT"],
        ["spend", "0.5", "stats", "PRESENT"],
        ["age", "-1", "stats", "STALE"],
        ["city", "stats", "STALE"],
        ["spend", "nan", "stats", "STALE"],
    ]
    (row,) = json.loads(got.out)["rows"]
    assert row["features"] == {"age": 33, "city": "Zürich", "spend": 0.5}
    assert row["statuses"] == {"stats": "PRESENT"}


def test_a_value_may_hold_an_equals_sign(headrace: Command) -> None:
    headrace("features", "apply")
    headrace("features", "materialize", "visits")

    got = headrace("features", "get", "wide", "-k", "shop=a=b", "-k", "customer_id=17", "--json")

    (row,) = json.loads(got.out)["rows"]
    assert row["features"] == {"visits": 3.0, "age": -1}
    assert row["statuses"] == {"visits": "PRESENT", "stats": "MISSING"}
    assert row["ages_s"]["stats"] is None


def test_an_incremental_run_tells_from_when(headrace: Command) -> None:
    headrace("features", "apply")
    headrace(
        "features",
        "materialize",
        "stats",
        "--until",
        f"{NOW - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
    )

    told = headrace("features", "materialize", "stats", "--incremental", "--json")

    (report,) = json.loads(told.out)
    assert report["since"].startswith(f"{NOW - timedelta(days=2):%Y-%m-%dT%H:%M:%S}")
    assert (report["entities"], report["written"]) == (2, 2)


def test_a_join_writes_every_row(headrace: Command, tmp_path: Path) -> None:
    headrace("features", "apply")
    rows = pl.DataFrame(
        {"customer_id": [17, 17, 18, 3], "event_timestamp": [NOW] * 4, "label": [0, 1, 1, 0]}
    )
    rows.write_parquet(tmp_path / "labels.parquet")

    told = headrace("features", "join", "fraud", "labels.parquet", "-o", "train.parquet")
    counts = headrace(
        "features",
        "join",
        "fraud",
        "labels.parquet",
        "-o",
        "x.parquet",
        "--fill-defaults",
        "--json",
    )

    assert "4 rows written to train.parquet" in told.err
    assert pl.read_parquet(tmp_path / "train.parquet")["age"].to_list() == [33, 33, None, None]
    assert pl.read_parquet(tmp_path / "x.parquet")["age"].to_list() == [33, 33, -1, -1]
    assert json.loads(counts.out)["views"] == {"stats": {"STALE": 1, "MISSING": 1, "PRESENT": 2}}


def test_serve_check_tells_what_is_not_ready(headrace: Command) -> None:
    headrace("features", "apply")
    before = headrace("features", "serve-check", "wide")
    headrace("features", "materialize")
    after = headrace("features", "serve-check", "wide", "--json")

    assert before.status == 3
    assert before.out.splitlines()[1].split() == ["visits", "MISSING", "-", "-"]
    assert after.status == 0
    assert json.loads(after.out)["is_ready"] is True


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (
            ["get", "nobody", "-k", "customer_id=1"],
            1,
            "feature service 'nobody' is not defined; defined: fraud",
        ),
        (["get", "fraud", "-k", "customer_id"], 2, "'customer_id' is not NAME=VALUE"),
        (["get", "fraud", "-k", "customer_id=x"], 2, "customer_id has whole numbers"),
        (["get", "fraud", "-k", "shop=x"], 1, "'customer_id' is missing"),
        (
            ["materialize", "nobody"],
            1,
            "feature view 'nobody' is not defined; defined: stats, visits",
        ),
        (
            ["materialize", "--until", "yesterday"],
            2,
            "is not a time; write it as 2026-11-27T06:00:00Z",
        ),
        (["materialize", "--until", "2026-01-01T00:00:00"], 1, "has no time zone"),
        (["materialize", "--online-store", "mysql://x"], 1, "is not a known kind of online store"),
        (["join", "fraud", "features.yaml", "-o", "x.parquet"], 1, "cannot be read as Parquet"),
        (["join", "fraud", "stats.parquet", "-o", "x.parquet"], 1, "age, city, spend; rename them"),
        (["apply", "none.yaml"], 1, "cannot read none.yaml: No such file"),
    ],
)
def test_what_cannot_be_done_says_why(
    headrace: Command, arguments: list[str], status: int, text: str
) -> None:
    headrace("features", "apply")

    told = headrace("features", *arguments)

    assert text in told.err
    assert told.status == status
    assert told.out == ""


def test_a_file_that_cannot_be_written_leaves_nothing(headrace: Command, tmp_path: Path) -> None:
    headrace("features", "apply")
    pl.DataFrame({"customer_id": [17], "event_timestamp": [NOW]}).write_parquet(
        tmp_path / "l.parquet"
    )

    told = headrace("features", "join", "fraud", "l.parquet", "-o", tmp_path / "none" / "x.parquet")

    assert told.status == 1
    assert "cannot be written: No such file" in told.err


def test_a_repository_of_feasts_is_applied_and_read(headrace: Command) -> None:
    repo = Path(__file__).parents[2] / "contract" / "feast"

    applied = headrace("features", "apply", "--from-feast", repo)
    again = json.loads(headrace("features", "apply", "--from-feast", repo, "--json").out)
    got = headrace("features", "get", "fraud", "-k", "customer_id=-7", "--json")
    written = headrace("features", "materialize", "customer_stats")

    assert "skipped: view share, as it runs Feast code on demand\n" in applied.err
    assert "service fraud is created\n" in applied.err
    assert again["changes"] == []
    assert {"kind", "name", "reason"} == set(again["left_out"][0])
    (row,) = json.loads(got.out)["rows"]
    assert list(row["features"]) == ["age", "level", "spend", "score", "is_new", "city"]
    assert list(row["statuses"].values()) in (["PRESENT"], ["STALE"])
    assert written.status == 1
    assert "it belongs to Feast, and `feast materialize`" in written.err


def test_without_a_repository_of_feasts_it_is_told(headrace: Command, tmp_path: Path) -> None:
    told = headrace("features", "apply", "--from-feast", tmp_path / "none")

    assert told.status == 1
    assert "name the folder that contains it" in told.err


def test_a_home_without_features_says_how_to_begin(headrace: Command) -> None:
    told = headrace("features", "get", "fraud", "-k", "customer_id=1")

    assert "`headrace features apply features.yaml` defines them" in told.err


def test_an_on_demand_view_is_applied_with_its_code_and_read_with_its_request_columns(
    headrace: Command, tmp_path: Path
) -> None:
    (tmp_path / "made.py").write_text("def add(x):\n    return {'sum': x['age'] + x['more']}\n")
    on_demand = """
on_demand_views:
  - name: sums
    function: made.py:add
    inputs: ["stats:age"]
    request_columns: [{name: more, datatype: INT64}]
    features: [{name: sum, datatype: INT64}]
feature_services:
  - {name: added, features: [sums]}
"""
    whole = DEFINITIONS[: DEFINITIONS.index("feature_services")] + on_demand
    (tmp_path / "features.yaml").write_text(whole)
    refused = headrace("features", "apply")
    told = headrace("features", "apply", "--allow-code")
    headrace("features", "materialize", "stats")

    got = headrace("features", "get", "added", "-k", "customer_id=17", "-k", "more=9", "--json")
    wrong = headrace("features", "get", "added", "-k", "customer_id=17", "-k", "more=x")

    assert "runs the code of made.py:add" in refused.err
    assert "on-demand view sums is created" in told.err
    assert json.loads(got.out)["rows"][0]["features"] == {"sum": 42}
    assert "more has whole numbers, and not 'x'" in wrong.err


def test_skew_names_what_was_served_otherwise_than_a_join_says(
    headrace: Command, tmp_path: Path
) -> None:
    headrace("features", "apply")
    nothing = headrace("features", "skew", "fraud")
    headrace("features", "materialize", "stats")
    serve(tmp_path / "home")
    good = headrace("features", "skew", "fraud")
    stats = pl.read_parquet(tmp_path / "stats.parquet")
    stats.with_columns(pl.col("age") + 1).write_parquet(tmp_path / "stats.parquet")
    bad = headrace("features", "skew", "fraud", "--json")
    later = headrace("features", "skew", "fraud", "--since", "2100-01-01T00:00:00Z")
    no_time = headrace("features", "skew", "fraud", "--since", "yesterday")

    assert "no samples yet: no lookups of service 'fraud' are stored" in nothing.err
    assert (good.status, good.err) == (0, "0 of 3 features differ in 2 rows\n")
    assert bad.status == 3
    (age,) = [one for one in json.loads(bad.out)["features"] if one["differing"]]
    assert (age["feature"], age["causes"]) == ("age", {"OTHER_VALUE": 1})
    assert (age["examples"][0]["served"], age["examples"][0]["offline"]) == (33, 34)
    assert (later.status, no_time.status) == (1, 2)
    assert "has no row that service 'fraud' gave since 2100" in later.err
    assert "'yesterday' is not a time with a zone" in no_time.err


def serve(home: Path) -> None:
    """Read as a replica does, and keep what was read."""
    service = applied_definitions(home).service("fraud")
    store = open_online_store(default_online_store(home))
    keys = {"customer_id": [17, 18]}
    rows = FeatureReader(service, store).read(keys)
    writer = ServedFeaturesWriter(service, served_directory(home, "fraud"))
    writer.add(rows.read_at, keys, rows)
    writer.stop()
    store.close()


def test_skew_tells_how_late_a_value_is_and_what_it_looks_like(
    headrace: Command, tmp_path: Path
) -> None:
    headrace("features", "apply")
    headrace("features", "materialize", "stats")
    serve(tmp_path / "home")
    stats = pl.read_parquet(tmp_path / "stats.parquet")
    newer = stats.head(1).with_columns(
        event_timestamp=pl.lit(NOW - timedelta(minutes=30)).cast(stats.schema["event_timestamp"]),
        spend=pl.lit(None, pl.Float64),
    )
    pl.concat([stats, newer]).write_parquet(tmp_path / "stats.parquet")
    told = headrace("features", "skew", "fraud")
    waits = headrace("features", "skew", "fraud", "--grace", "7200")
    as_json = headrace("features", "skew", "fraud", "--json")

    assert told.status == 3
    (line,) = [one for one in told.out.splitlines() if one.startswith("spend")]
    assert "1 of 2" in line
    assert "NOT_MATERIALIZED 1, late by " in line
    late_s = line.rpartition("late by ")[2].removesuffix(" s").replace(",", "")
    assert int(late_s) >= 1800  # and for as long as the tests before this one took
    assert (waits.status, "1 within the grace" in waits.out) == (0, True)
    (spend,) = [one for one in json.loads(as_json.out)["features"] if one["differing"]]
    assert spend["examples"][0]["offline"] is None  # NaN


def test_request_columns_are_read_as_their_types(headrace: Command, tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "def make(x):\n    return {'y': x['f'] * x['b'] + 0.0, 't': x['t']}\n"
    )
    (tmp_path / "features.yaml").write_text("""
entities: [{name: customer, datatype: INT64}]
feature_views:
  - {name: v, entities: [customer], source: {path: a}, features: [{name: z, datatype: BOOL}]}
on_demand_views:
  - name: made
    function: made.py:make
    request_columns:
      - {name: f, datatype: FP64}
      - {name: b, datatype: BOOL}
      - {name: t, datatype: BYTES}
    features: [{name: y, datatype: FP64}, {name: t, datatype: BYTES}]
feature_services: [{name: s, features: ["made:y"]}]
""")
    headrace("features", "apply", "--allow-code")

    got = headrace("features", "get", "s", "-k", "f=2.5", "-k", "b=true", "-k", "t=x", "--json")
    no_number = headrace("features", "get", "s", "-k", "f=much", "-k", "b=true", "-k", "t=x")
    no_bool = headrace("features", "get", "s", "-k", "f=1", "-k", "b=yes", "-k", "t=x")

    assert json.loads(got.out)["rows"][0]["features"] == {"y": 2.5}
    assert "f has numbers, and not 'much'" in no_number.err
    assert "b is true or false, and not 'yes'" in no_bool.err
