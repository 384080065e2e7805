"""Jobs on a real Spark of this machine come to what they come to without one."""

from pathlib import Path

import psutil
import pytest

from tests.e2e.jobs import on_engines
from tests.e2e.jobs.on_engines import LIMIT_S, Case

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


def test_output_is_that_of_one_machine_byte_by_byte(case: Case) -> None:
    status, out, err = case.command("spark", "--engine", "spark", "--json").run(timeout_s=LIMIT_S)

    assert status == 0, err
    assert f'"rows":{on_engines.ROWS},"errors":{len(on_engines.BAD)}' in out
    case.check("spark")


def test_the_shard_of_a_worker_that_is_killed_is_done_again(case: Case) -> None:
    on_engines.check_a_lost_worker(case, "spark", is_worker)


def test_a_driver_that_is_killed_goes_on(case: Case) -> None:
    on_engines.check_a_killed_driver(case, "spark")


def test_an_interrupt_leaves_whole_files_and_one_machine_goes_on(case: Case) -> None:
    on_engines.check_an_interrupt(case, "spark")


def test_more_errors_than_allowed_end_it(case: Case) -> None:
    on_engines.check_too_many_errors(case, "spark")


def test_a_cluster_that_is_not_there_is_named(case: Case) -> None:
    job = case.command("spark-nowhere", "--engine", "spark", "--address", "spark://127.0.0.1:1")
    status, _, err = job.run(timeout_s=LIMIT_S)

    assert status == 3
    assert "no Spark at --address spark://127.0.0.1:1" in err
    assert not list(Path(case.folder, "spark-nowhere").glob("part-*"))
