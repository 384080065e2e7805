"""Feast, asked in turn with ours: one line of JSON in, one out.

    .venv-feast/bin/python bench/servers/feast_worker.py FOLDER SOCKET

FOLDER has `stats.parquet`, `risk.parquet` and `spend.parquet`. Commands: `["read", STORE, IDS]`
gives the seconds that each read of one entity took, and the last one's values; `["join", FROM, TO]`
joins the rows of a Parquet file, writes what came of it to another, and gives the seconds.
"""

import json
import os
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64

VIEWS = ("stats", "risk", "spend")
CONFIG = """\
project: bench
registry: registry.db
provider: local
online_store:
{online}
offline_store:
  type: duckdb
entity_key_serialization_version: 3
"""
ONLINE = {
    "sqlite": "  type: sqlite\n  path: feast.db",
    "redis": '  type: redis\n  connection_string: "localhost:6379,unix_socket_path={socket}"',
}


def opened(kind: str, folder: Path, socket: str) -> FeatureStore:
    """Feast with one of its online stores, all of them with the same definitions and values."""
    repo = folder / kind
    repo.mkdir()
    online = ONLINE[kind].format(socket=socket)
    (repo / "feature_store.yaml").write_text(CONFIG.format(online=online))
    store = FeatureStore(repo_path=str(repo))
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=name,
            entities=[customer],
            ttl=timedelta(days=2),
            schema=[
                Field(name="customer_id", dtype=Int64),
                *(Field(name=f"{name}_{i}", dtype=Float32) for i in range(10)),
            ],
            source=FileSource(
                path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp"
            ),
        )
        for name in VIEWS
    ]
    store.apply([customer, *views, FeatureService(name="bench", features=views)])
    store.materialize(datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1))
    return store


def read(store: FeatureStore, ids: list[int]) -> dict[str, Any]:
    """How long each read took, and what the last one gave."""
    service = store.get_feature_service("bench")
    taken, answer = [], {}
    for one in ids:
        began = time.perf_counter()
        answer = store.get_online_features(service, [{"customer_id": one}]).to_dict()
        taken.append(time.perf_counter() - began)
    return {"seconds": taken, "values": answer}


def join(store: FeatureStore, rows: str, to: str) -> dict[str, Any]:
    """How long it took; reading and writing files is not counted."""
    asked = pd.read_parquet(rows)
    began = time.perf_counter()
    joined = store.get_historical_features(asked, store.get_feature_service("bench")).to_arrow()
    seconds = time.perf_counter() - began
    joined.to_pandas().to_parquet(to)
    return {"seconds": seconds}


def main() -> None:
    """Answer until there is nothing more to answer."""
    warnings.simplefilter("ignore")
    folder, socket = Path(sys.argv[1]), sys.argv[2]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Feast prints is no answer
    stores = {kind: opened(kind, folder, socket) for kind in ONLINE}
    answers.write('"ready"\n')
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "read":
            answer = read(stores[arguments[0]], arguments[1])
        else:
            answer = join(stores["sqlite"], *arguments)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
