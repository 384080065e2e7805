"""Jobs on a real Ray, one of their own or one that runs, come to what they come to without it."""

from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.jobs import on_engines
from tests.e2e.jobs.commands import Command
from tests.e2e.jobs.on_engines import LIMIT_S, Case, Where
from tests.e2e.jobs.ray_cluster import RayCluster, ray_cluster
from tests.processes import command_line

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.engines,
    on_engines.needs("ray"),
]

KEYED = """
import os, signal

class Keyed:
    inputs = {"x": ("FP32", [-1, 32])}
    outputs = {"y": ("FP32", [-1, 32])}
    batched = True

    def load(self, path):
        if "MODEL_KEY" not in os.environ:
            FAIL

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.made(tmp_path_factory.mktemp("ray"))


@pytest.fixture(scope="module")
def running() -> Iterator[RayCluster]:
    with ray_cluster() as found:
        yield found


@pytest.fixture
def cluster(running: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """One that commands of the test can enter."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    return running


def is_worker(process: psutil.Process) -> bool:
    return " ".join(command_line(process)).startswith("ray::JobWorker")


OWN = Where(name="own", options=("--engine", "ray"), is_worker=is_worker)


def by(cluster: RayCluster, address: str) -> Where:
    options = ("--engine", "ray", "--address", address)
    return Where(name="cluster", options=options, is_worker=is_worker, root=cluster.pid)


def test_output_is_that_of_one_machine_byte_by_byte(case: Case) -> None:
    on_engines.check_the_output(case, OWN)


def test_an_interrupt_leaves_whole_files_and_one_machine_goes_on(
    case: Case, cluster: RayCluster
) -> None:
    on_engines.check_interrupts(case, OWN, by(cluster, cluster.address))


def test_the_shard_of_a_worker_that_is_killed_is_done_again(
    case: Case, cluster: RayCluster
) -> None:
    on_engines.check_a_lost_worker(case, by(cluster, cluster.address))


def test_a_driver_that_is_killed_goes_on(case: Case, cluster: RayCluster) -> None:
    on_engines.check_a_killed_driver(case, by(cluster, cluster.address))


def test_more_errors_than_allowed_end_it_on_the_cluster_that_auto_finds(
    case: Case, cluster: RayCluster
) -> None:
    on_engines.check_too_many_errors(case, by(cluster, "auto"))


def test_a_cluster_that_asks_for_a_token_says_so(
    case: Case, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    told = on_engines.check_nobody_there(case, "ray", cluster.address)

    assert "it asks for a token: set RAY_AUTH_MODE=token" in told


def test_a_model_that_a_worker_cannot_load_is_named_with_the_worker(
    case: Case, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", "secret")
    job = keyed(case, cluster, "unloaded", "raise RuntimeError('no key on this machine')")

    status, _, err = job.run(timeout_s=LIMIT_S)

    assert status == 1
    assert "a worker on " in err
    assert "could not begin" in err
    assert "unloaded.py: cannot be loaded" in err
    assert "no key on this machine" in err
    assert not list((case.folder / "unloaded").glob("part-*"))


def test_a_model_that_ends_every_worker_ends_the_job(
    case: Case, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", "secret")
    job = keyed(case, cluster, "deadly", "os.kill(os.getpid(), signal.SIGKILL)")

    status, _, err = job.run(timeout_s=LIMIT_S)

    assert status == 3
    assert "workers of Ray end as they begin" in err
    assert not list((case.folder / "deadly").glob("part-*"))


def keyed(case: Case, cluster: RayCluster, name: str, failure: str) -> Command:
    """A job whose model fails where a variable is not set, as on the cluster."""
    model = case.folder / f"{name}.py"
    model.write_text(KEYED.replace("FAIL", failure))
    return Command(
        ["-m", model, "--allow-code", "-i", case.folder / "data", "-o", case.folder / name,
         "--map", "x=f0..f31", "--keys", "id", "--engine", "ray", "--address", cluster.address],
        case.folder / "home",
    )  # fmt: skip
