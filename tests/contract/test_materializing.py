"""A run that was killed and begun again comes to the same, on every online store."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from headrace.features import FeatureReader, open_online_store
from headrace.features.online_writers import materialize
from tests.contract.redis_servers import NoServerError, running_server
from tests.unit.features.tables import at, service, view, write

ENTITIES = 50
_KILLED = """
import os, signal, sys
from pathlib import Path
from headrace.features.online_writers import materialize
from headrace.features import open_online_store
from tests.unit.features.tables import at, view

def die(done, entities):
    if done >= 20:
        os.kill(os.getpid(), signal.SIGKILL)

of = view(Path(sys.argv[1]))
store = open_online_store(sys.argv[2])
materialize(of, store, until=at(100), incremental=True, progress=die, rows_per_write=7)
"""


@pytest.fixture(params=["sqlite", "valkey"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'online.db'}"
        return
    try:
        with running_server("valkey") as server:
            yield server.url
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.mark.e2e
def test_a_killed_run_and_another_come_to_the_same(url: str, tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    customers = list(range(ENTITIES))
    scores = pl.Series([float(i) for i in customers])
    write(path, customer_id=customers, event_timestamp=[0] * ENTITIES, score=scores)
    of = view(path, ttl_s=None)
    store = open_online_store(url)

    command = [sys.executable, "-c", _KILLED, str(path), url]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)  # noqa: S603  # ours
    reader = FeatureReader(service(of), store)
    halfway = reader.read({"customer_id": customers}).statuses["stats"]
    report = materialize(of, store, until=at(100), incremental=True)
    whole = reader.read({"customer_id": customers})
    store.close()

    assert killed.returncode == -signal.SIGKILL
    assert halfway.count("PRESENT") == 21
    assert (report.since, report.entities) == (None, ENTITIES)
    assert whole.columns["score"].tolist() == scores.to_list()
