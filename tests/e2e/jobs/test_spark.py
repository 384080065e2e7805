"""Jobs on a real Spark of this machine come to what they come to without one."""

import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.jobs import on_engines
from tests.e2e.jobs.on_engines import Case, Where
from tests.e2e.jobs.spark_cluster import spark_cluster

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.engines,
    on_engines.needs("pyspark", "java"),
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.made(tmp_path_factory.mktemp("spark"))


def is_worker(process: psutil.Process) -> bool:
    # The daemon forks a process for each worker.
    parent = process.parent()
    return parent is not None and all(
        "pyspark.daemon" in one.cmdline() for one in (process, parent)
    )


OWN = Where(name="own", options=("--engine", "spark"), is_worker=is_worker)


def test_output_is_that_of_one_machine_byte_by_byte(case: Case) -> None:
    on_engines.check_the_output(case, OWN)


def test_the_shard_of_a_worker_that_is_killed_is_done_again(case: Case) -> None:
    on_engines.check_a_lost_worker(case, OWN)


def test_a_driver_that_is_killed_goes_on(case: Case) -> None:
    on_engines.check_a_killed_driver(case, OWN)


def test_an_interrupt_leaves_whole_files_and_one_machine_goes_on(case: Case) -> None:
    on_engines.check_interrupts(case, OWN, OWN)


def test_more_errors_than_allowed_end_it(case: Case) -> None:
    on_engines.check_too_many_errors(case, OWN)


def test_a_cluster_that_is_not_there_is_named(case: Case) -> None:
    told = on_engines.check_nobody_there(case, "spark", "spark://127.0.0.1:1")

    assert "no Spark at --address spark://127.0.0.1:1: 127.0.0.1:1: Connection refused" in told


def test_a_cluster_that_runs_comes_to_the_same_and_does_lost_shards_again(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    with spark_cluster(tmp_path) as cluster:
        where = Where(
            name="cluster",
            options=("--engine", "spark", "--address", cluster.address),
            is_worker=is_worker,
            root=cluster.worker,
        )
        on_engines.check_a_lost_worker(case, where)
