"""A running system keeps the online store up to date, and tells of a file that it cannot read."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from headrace.features import (
    FeatureReader,
    applied_definitions,
    apply_definitions,
    default_online_store,
    open_online_store,
)
from tests.e2e.control.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]
YAML = """
entities: [{name: customer, datatype: INT64}]
feature_views:
  - name: stats
    entities: [customer]
    source: {path: stats}
    materialize: {every_s: 1}
    features: [{name: age, datatype: INT64, default: -1}]
feature_services: [{name: s, features: [stats]}]
"""


def write(path: Path, *people: int, age: int) -> None:
    """A Parquet file, put in its place whole, as a job would."""
    now = datetime.now(UTC)
    table = pl.DataFrame(
        {
            "customer": people,
            "age": [age] * len(people),
            "event_timestamp": pl.Series([now] * len(people), dtype=pl.Datetime("us", "UTC")),
        }
    )
    part = path.with_suffix(".part")
    table.write_parquet(part)
    part.replace(path)


def ages(home: Path, *people: int) -> list[int]:
    store = open_online_store(default_online_store(home))
    try:
        service = applied_definitions(home).service("s")
        found = FeatureReader(service, store).read({"customer": list(people)})
    finally:
        store.close()
    return [int(age) for age in found.columns["age"]]


def wait(condition: Callable[[], bool], told: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def view_of(system: System) -> Any:
    (view,) = system.get("/api/v1/features")["views"]
    return view


def reasons(system: System) -> list[str]:
    events = system.get("/api/v1/events")["events"]
    return [event["reason"] for event in events if event["kind"] == "features"]


def test_new_rows_come_to_the_online_store_and_a_broken_file_is_told_and_mended(
    system: System, mlp: Path, tmp_path: Path
) -> None:
    source = tmp_path / "stats"
    source.mkdir()
    write(source / "a.parquet", 1, 2, age=30)
    system.start({"name": "m", "model": str(mlp)}, first_request=False)
    system.wait_ready()
    assert system.get("/api/v1/features")["views"] == []

    (tmp_path / "features.yaml").write_text(YAML)
    apply_definitions(tmp_path / "features.yaml", system.home)
    wait(lambda: ages(system.home, 1, 2, 3) == [30, 30, -1], system.log_text)
    write(source / "b.parquet", 2, 3, age=31)
    wait(lambda: ages(system.home, 1, 2, 3) == [30, 31, 31], system.log_text)

    (source / "c.parquet").write_bytes(b"PAR1 half a file")
    wait(lambda: view_of(system)["failures"] > 0, lambda: view_of(system))
    failing = system.status()["features"][0]
    assert "cannot be read as Parquet" in failing["message"]
    write(source / "c.parquet", 1, age=32)
    wait(lambda: ages(system.home, 1, 2, 3) == [32, 31, 31], system.log_text)
    wait(lambda: view_of(system)["failures"] == 0, lambda: view_of(system))

    assert reasons(system) == ["Materialized", "MaterializeFailed", "MaterializeRecovered"]
    runs = view_of(system)["last_run_at"]
    system.end_control()
    assert not [one for one in psutil.process_iter(["cmdline"]) if _is_run(one, system.home)]

    write(source / "d.parquet", 4, age=33)
    system.start()
    wait(lambda: ages(system.home, 4) == [33], system.log_text)
    wait(lambda: view_of(system)["last_run_at"] > runs, lambda: view_of(system))
    assert reasons(system)[3:] == []


def _is_run(process: psutil.Process, home: Path) -> bool:
    line = " ".join(process.info["cmdline"] or [])
    return "materialize_process" in line and str(home) in line


def test_the_control_plane_loads_no_table_library(
    system: System, mlp: Path, tmp_path: Path
) -> None:
    write(tmp_path / "stats", 1, age=30)
    (tmp_path / "features.yaml").write_text(YAML)
    apply_definitions(tmp_path / "features.yaml", system.home)
    system.start({"name": "m", "model": str(mlp)}, first_request=False)
    wait(lambda: ages(system.home, 1) == [30], system.log_text)

    assert system.process is not None
    maps = Path(f"/proc/{system.process.pid}/maps").read_text()
    assert "polars" not in maps
    assert "python" in maps
