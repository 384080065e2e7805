"""A Ray that cannot be had is named in time, with why."""

import os
import socket

import psutil
import pytest

from tests.e2e.jobs import on_engines
from tests.e2e.jobs.on_engines import Case

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.engines,
    on_engines.needs("ray"),
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.given(tmp_path_factory.mktemp("away"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nobody_listens(case: Case, address: str) -> None:
    told = on_engines.check_nobody_there(case, "ray", address)

    assert f"no Ray cluster at --address {address}: 127.0.0.1:1: Connection refused" in told


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_somebody_listens_who_is_not_ray(case: Case, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        told = on_engines.check_nobody_there(case, "ray", address)

    assert f"no Ray cluster at --address {address}: " in told


def test_auto_where_no_cluster_runs(case: Case) -> None:
    if os.environ.get("RAY_ADDRESS") or any(
        one.info["name"] == "gcs_server" for one in psutil.process_iter(["name"])
    ):
        pytest.skip("a Ray cluster runs on this machine")
    told = on_engines.check_nobody_there(case, "ray", "auto")

    assert "no Ray cluster at --address auto: Could not find any running Ray instance" in told


def test_an_address_without_a_port_is_refused_before_anything_is_loaded(case: Case) -> None:
    job = case.command("nowhere", "--engine", "ray", "--address", "head.example")
    status, _, err = job.run(timeout_s=on_engines.AWAY_S)

    assert status == 1
    assert "--address head.example is none of Ray's: say HOST:PORT, auto or ray://HOST:PORT" in err
