"""How fast are features read and joined? Online reads in process, and a join of 100,000 rows.

    python -m bench.features [--redis URL] [--only-feast]

30,000 records: 10,000 entities in 3 views of 10 FP32 features each. Where Feast is installed (`make
feast`), the same is asked of it in turns, and ratios are told.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from bench.features_feast import compare
from headrace.core import Datatype
from headrace.features import (
    DataSource,
    Entity,
    Feature,
    FeatureReader,
    FeatureService,
    FeatureView,
    OnlineStore,
    ServiceColumn,
    join_as_of,
    open_online_store,
)
from headrace.features.online_writers import materialize

ENTITIES = 10_000
JOINED_ROWS = 100_000
NOW = datetime.now(UTC)
CUSTOMER = Entity(name="customer", join_key="customer_id", datatype=Datatype.INT64)


def make_views(folder: Path) -> list[FeatureView]:
    random_numbers = np.random.default_rng(0)
    views = []
    for name in ("stats", "risk", "spend"):
        path = folder / f"{name}.parquet"
        features = [f"{name}_{i}" for i in range(10)]
        ages = random_numbers.uniform(0, 86_400, ENTITIES)
        pl.DataFrame(
            {
                "customer_id": np.arange(ENTITIES),
                "event_timestamp": [NOW - timedelta(seconds=age) for age in ages],
                **{f: random_numbers.normal(size=ENTITIES).astype(np.float32) for f in features},
            }
        ).write_parquet(path)
        views.append(
            FeatureView(
                name=name,
                entities=(CUSTOMER,),
                features=tuple(Feature(name=f, datatype=Datatype.FP32) for f in features),
                source=DataSource(path=path),
                ttl_s=172_800.0,
            )
        )
    return views


def make_service(views: Sequence[FeatureView]) -> FeatureService:
    columns = [
        ServiceColumn(name=f.name, view=view, feature=f) for view in views for f in view.features
    ]
    return FeatureService(name="bench", columns=tuple(columns))


def quantiles(run: Callable[[], object], times: int) -> str:
    """Of the time that passed, and of the processor's, which others on the machine change less."""
    passed, used = [], []
    for _ in range(times):
        began, began_used = time.perf_counter(), time.thread_time()
        run()
        used.append(time.thread_time() - began_used)
        passed.append(time.perf_counter() - began)
    told = [
        f"p50 {_quantile(of, 50):.3f} ms, p99 {_quantile(of, 99):.3f} ms" for of in (passed, used)
    ]
    return f"{told[0]}; processor {told[1]}"


def _quantile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    return sorted(seconds)[len(seconds) * percent // 100] * 1000


def measure_store(label: str, views: Sequence[FeatureView], store: OnlineStore) -> None:
    began = time.perf_counter()
    for view in views:
        materialize(view, store, until=NOW)
    print(f"{label}: materialize {3 * ENTITIES:,} records in {time.perf_counter() - began:.2f} s")
    reader = FeatureReader(make_service(views), store)
    pick = random.Random(0).randrange  # noqa: S311  # which entities are asked for
    for rows, times in ((1, 5000), (100, 500)):
        told = quantiles(
            lambda rows=rows: reader.read({"customer_id": [pick(ENTITIES) for _ in range(rows)]}),
            times,
        )
        print(f"{label}: read {rows} x 30 features of 3 views: {told}")


def make_rows() -> pl.DataFrame:
    random_numbers = np.random.default_rng(1)
    ages = random_numbers.uniform(0, 86_400, JOINED_ROWS)
    return pl.DataFrame(
        {
            "customer_id": random_numbers.integers(0, ENTITIES, JOINED_ROWS),
            "event_timestamp": [NOW - timedelta(seconds=age) for age in ages],
        }
    )


def measure_join(views: Sequence[FeatureView]) -> None:
    rows, service = make_rows(), make_service(views)
    told = quantiles(lambda: join_as_of(rows, service), 10)
    print(f"join {JOINED_ROWS:,} rows x 3 views: {told}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--redis", help="redis://HOST:PORT/DB or unix:///SOCKET; it is written to"
    )
    arguments.add_argument("--only-feast", action="store_true", help="only the comparison")
    chosen = arguments.parse_args()
    url = chosen.redis
    with tempfile.TemporaryDirectory() as directory:
        views = make_views(Path(directory))
        stores = {"SQLite": f"sqlite:///{directory}/online.db"} | ({"Redis": url} if url else {})
        if not chosen.only_feast:
            for label, address in stores.items():
                store = open_online_store(address, namespace="bench")
                measure_store(label, views, store)
                store.close()
            measure_join(views)
        compare(views, make_service(views), make_rows())


if __name__ == "__main__":
    main()
