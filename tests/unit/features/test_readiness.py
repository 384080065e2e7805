"""A service is ready when each of its views was materialized lately enough."""

from pathlib import Path

import pytest

from headrace.features.online_writers import materialize, service_readiness
from tests.unit.features.stores import MemoryStore
from tests.unit.features.tables import at, service, view, write
from tests.unit.features.test_lookup import TurnedClock


@pytest.mark.parametrize(
    ("passed_s", "ttl_s", "status"),
    [(40.0, 100.0, "PRESENT"), (60.0, 100.0, "STALE"), (1e9, None, "PRESENT")],
)
def test_a_view_is_as_old_as_its_newest_value(
    tmp_path: Path, passed_s: float, ttl_s: float | None, status: str
) -> None:
    path = tmp_path / "stats.parquet"
    write(path, customer_id=[1, 2], event_timestamp=[0, -500], score=[1.0, 2.0])
    of = view(path, ttl_s=ttl_s)
    store = MemoryStore()
    materialize(of, store, until=at(5))
    clock = TurnedClock()
    clock.passed_s = passed_s

    (told,) = service_readiness(service(of), store, clock)

    assert (told.status, told.newest, told.age_s) == (status, at(0), 50.0 + passed_s)


def test_a_view_that_never_was_is_missing() -> None:
    (told,) = service_readiness(service(view(Path("none"))), MemoryStore(), TurnedClock())

    assert (told.status, told.newest, told.age_s) == ("MISSING", None, None)
