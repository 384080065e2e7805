"""A small Feast repository with its stores, and the values that Feast reads from them.

    .venv-feast/bin/python tests/contract/feast_fixtures.py FOLDER [--redis SOCKET]

Runs in the environment of Feast (`make setup ENV=feast`): `tests.contract.feast_repositories` calls
it to write the committed files, and tests compare what it writes now with what our adapter reads.
FOLDER then has `feature_store.yaml`, `registry.db`, `online.db`, Parquet files and `expected.json`.
With `--redis` the values are also written to the server at that socket and copied to `redis.json`:
key ▸ field ▸ value, in hexadecimal.
"""

import argparse
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import feast
import pandas as pd
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.transformation.python_transformation import PythonTransformation
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String

NOW: Final = datetime(2026, 11, 27, 12, tzinfo=UTC)
CONFIG: Final = """\
project: market
registry: registry.db
provider: local
online_store:
{online}
offline_store:
  type: duckdb
entity_key_serialization_version: 3
"""
ONLINE: Final = {
    "sqlite": "  type: sqlite\n  path: online.db",
    "redis": '  type: redis\n  connection_string: "localhost:6379,unix_socket_path={socket}"',
}
CUSTOMERS: Final = [1, 2, 3, -7, 2**62]
SHOPS: Final = ["north", "süd", "a,b:c"]
WRITTEN: Final = ["customer_stats", "visits", "cards"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--redis", metavar="SOCKET")
    chosen = parser.parse_args()
    folder: Path = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in ("registry.db", "online.db"):
        Path(name).unlink(missing_ok=True)
    write_tables()
    expected = {"feast": feast.__version__, "now": NOW.isoformat()}
    store = opened("sqlite", "")
    store.apply(definitions())
    store.materialize(datetime(2020, 1, 1, tzinfo=UTC), NOW, feature_views=WRITTEN)
    expected["online"] = online(store)
    expected["offline"] = offline(store)
    if chosen.redis:
        store = opened("redis", chosen.redis)
        store.materialize(datetime(2020, 1, 1, tzinfo=UTC), NOW, feature_views=WRITTEN)
        expected["redis"] = online(store)
        Path("redis.json").write_text(json.dumps(dump(chosen.redis), indent=0, sort_keys=True))
        opened("sqlite", "")
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def opened(kind: str, socket: str) -> FeatureStore:
    """Feast, with one of its online stores."""
    text = CONFIG.format(online=ONLINE[kind].format(socket=socket))
    Path("feature_store.yaml").write_text(text)
    return FeatureStore(repo_path=".")


def write_tables() -> None:
    """Rows with a null, values that are not ASCII, and times of whole seconds and parts of them."""
    pd.DataFrame(
        {
            "customer_id": [1, 1, 2, 3, -7, 2**62],
            "event_timestamp": [
                NOW - timedelta(days=9),
                NOW - timedelta(hours=1),
                NOW - timedelta(days=3),
                NOW - timedelta(minutes=1, microseconds=250_001),
                NOW - timedelta(days=1),
                NOW,
            ],
            "created": [NOW] * 6,
            "age": pd.array([33, 34, 51, None, -1, 2**53 + 1], dtype="Int64"),
            "level": pd.array([1, 2, -3, 4, None, 2**31 - 1], dtype="Int32"),
            "spend": pd.array([10.5, 20.25, 0.1, None, float("inf"), -1e30], dtype="Float32"),
            "score": [0.1, 0.2, float("nan"), 1e300, -0.0, 5e-324],
            "is_new": pd.array([True, False, True, None, False, True], dtype="boolean"),
            "city": ["Zürich", "Bern", "", None, "東京", "x" * 200],
        }
    ).to_parquet("customers.parquet")
    pd.DataFrame(
        {
            "customer_id": [1, 1, 2],
            "shop_id": SHOPS,
            "at": [(NOW - timedelta(hours=h)).replace(tzinfo=None) for h in (1, 2, 3)],
            "n": [3, 4, 5],
        }
    ).to_parquet("visits.parquet")
    pd.DataFrame(
        {
            "card": pd.array([7, 8], dtype="int32"),
            "event_timestamp": [NOW - timedelta(days=400)] * 2,
            "limit": [1.5, 2.5],
            "vector": [[0.5, 1.5], [2.5, 3.5]],
        }
    ).to_parquet("cards.parquet")


def definitions() -> list[Any]:
    """Everything that the adapter reads, and some that it has to leave out."""
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
    card = Entity(name="card", join_keys=["card"], value_type=ValueType.INT32)
    stats = FeatureView(
        name="customer_stats",
        entities=[customer],
        ttl=timedelta(days=1),
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="age", dtype=Int64),
            Field(name="level", dtype=Int32),
            Field(name="spend", dtype=Float32),
            Field(name="score", dtype=Float64),
            Field(name="is_new", dtype=Bool),
            Field(name="city", dtype=String),
        ],
        source=FileSource(
            path="customers.parquet",
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        ),
    )
    visits = FeatureView(
        name="visits",
        entities=[shop, customer],
        ttl=timedelta(0),
        schema=[Field(name="visits", dtype=Int64)],
        source=FileSource(
            path="visits.parquet", timestamp_field="at", field_mapping={"n": "visits"}
        ),
    )
    cards = FeatureView(
        name="cards",
        entities=[card],
        ttl=timedelta(days=365),
        schema=[
            Field(name="card", dtype=Int32),
            Field(name="limit", dtype=Float64),
            Field(name="vector", dtype=Array(Float32)),
        ],
        source=FileSource(path="cards.parquet", timestamp_field="event_timestamp"),
    )
    everybody = FeatureView(
        name="everybody",
        entities=[],
        schema=[Field(name="age", dtype=Int64)],
        source=FileSource(path="customers.parquet", timestamp_field="event_timestamp"),
    )
    asked = RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])

    def share(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"share": inputs["amount"]}

    # The registry keeps the function as a pickle, and with it where its file stands: not here.
    share.__code__ = share.__code__.replace(co_filename="share.py")
    on_demand = OnDemandFeatureView(
        name="share",
        sources=[stats, asked],
        schema=[Field(name="share", dtype=Float64)],
        feature_transformation=PythonTransformation(share, "share"),
        mode="python",
    )
    return [
        customer,
        shop,
        card,
        stats,
        visits,
        cards,
        everybody,
        on_demand,
        FeatureService(name="fraud", features=[stats]),
        FeatureService(name="wide", features=[visits, stats[["score", "age"]]]),
        FeatureService(name="limits", features=[cards[["limit"]]]),
        FeatureService(name="vectors", features=[cards]),
        FeatureService(name="shares", features=[on_demand, stats[["age"]]]),
        FeatureService(
            name="mapped", features=[stats.with_join_key_map({"customer_id": "other_id"})]
        ),
    ]


ASKED: Final[dict[str, dict[str, list[Any]]]] = {
    "fraud": {"customer_id": [*CUSTOMERS, 99]},
    "wide": {"customer_id": [1, 1, 2, 2, 3], "shop_id": [*SHOPS, "north", "none"]},
    "limits": {"card": [7, 9]},
}


def online(store: FeatureStore) -> dict[str, Any]:
    """What Feast reads: by service, the keys, and by column its values, statuses and times."""
    found = {}
    for name, keys in ASKED.items():
        rows = [dict(zip(keys, row, strict=True)) for row in zip(*keys.values(), strict=True)]
        answer = store.get_online_features(store.get_feature_service(name), rows).proto
        columns = {}
        for column, vector in zip(answer.metadata.feature_names.val, answer.results, strict=True):
            if column not in keys:
                columns[column] = {
                    "values": [plain(value) for value in vector.values],  # noqa: PD011  # no table
                    "statuses": list(vector.statuses),
                    "seconds": [t.seconds + t.nanos / 1e9 for t in vector.event_timestamps],
                }
        found[name] = {"keys": keys, "columns": columns}
    return found


def plain(value: Any) -> Any:  # noqa: ANN401  # any of Feast's
    """A value for JSON; floats as their hexadecimal text, which is exact."""
    kind = value.WhichOneof("val")
    got = None if kind in {None, "null_val"} else getattr(value, kind)
    return got.hex() if isinstance(got, float) else got


def offline(store: FeatureStore) -> dict[str, Any]:
    """What Feast's duckdb store joins to rows of the past."""
    rows = pd.DataFrame(
        {
            "customer_id": [1, 1, 1, 2, 3, 99],
            "shop_id": ["north", "süd", "north", "a,b:c", "north", "north"],
            "event_timestamp": [
                NOW,
                NOW - timedelta(days=8, hours=12),
                NOW - timedelta(days=5),
                NOW,
                NOW - timedelta(minutes=1),
                NOW,
            ],
        }
    )
    joined = store.get_historical_features(rows, store.get_feature_service("wide")).to_df()
    keys = ["customer_id", "shop_id", "event_timestamp"]
    joined = rows.merge(joined, on=keys, how="left")
    values = {
        name: [None if pd.isna(value) else float(value) for value in joined[name]]
        for name in ("visits", "score", "age")
    }
    return {
        "rows": {
            "customer_id": rows["customer_id"].tolist(),
            "shop_id": rows["shop_id"].tolist(),
            "event_timestamp": [time.isoformat() for time in rows["event_timestamp"]],
        },
        "columns": values,
    }


def dump(socket: str) -> dict[str, dict[str, str]]:
    """Everything that a Redis server holds."""
    import redis  # noqa: PLC0415  # only where it was asked for

    client: Any = redis.Redis(unix_socket_path=socket)
    return {
        key.hex(): {field.hex(): value.hex() for field, value in client.hgetall(key).items()}
        for key in client.scan_iter()
    }


if __name__ == "__main__":
    main()
