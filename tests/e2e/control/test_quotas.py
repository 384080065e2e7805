"""What was used of a day outlives whoever counts it, and several systems may share one limit."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.control.system import ROW, System

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def _limited(model: Path, **limits: Any) -> dict[str, Any]:
    return {"name": "m", "model": str(model), "limits": limits}


def _url(system: System) -> str:
    return f"{system.where().http_url}/v2/models/m/infer"


def _statuses(system: System, count: int, url: str = "") -> list[int]:
    url = url or _url(system)
    return [system.call("POST", url, ROW)[0] for _ in range(count)]


def _metrics(system: System) -> str:
    return str(system.call("GET", system.where().metrics_url)[1])


def _counts(system: System) -> None:
    """Wait until the gateway's questions are answered: those before it pass uncounted."""
    deadline = time.monotonic() + 20
    while "counting limits" not in system.log_text():
        assert time.monotonic() < deadline, system.log_text()
        time.sleep(0.02)
    time.sleep(0.3)


@pytest.mark.long
def test_a_quota_survives_the_death_of_the_control_plane_and_of_the_gateway(
    system: System, mlp: Path
) -> None:
    system.start(_limited(mlp, per_caller={"requests_per_day": 10}), first_request=False)
    system.wait_ready()
    _counts(system)
    assert _statuses(system, 4) == [200] * 4
    time.sleep(1.5)  # what was counted less than a second ago may be lost

    url = _url(system)
    system.kill_control()
    assert _statuses(system, 2, url) == [200, 200]  # nobody counts, and nobody is refused
    system.log.unlink()
    system.start(first_request=False)
    system.wait_ready()
    _counts(system)
    assert _statuses(system, 3) == [200] * 3
    time.sleep(1.5)

    system.gateway().kill()
    system.wait_for(lambda status: status["gateway"]["restarts"] == 1)
    system.wait_ready()
    time.sleep(0.3)
    assert _statuses(system, 4) == [200, 200, 200, 429]
    refused = (
        'headrace_limit_refusals_total{endpoint="m",scope="caller",limit="requests_per_day"} 1'
    )
    assert refused in _metrics(system)
    assert 'by="request_rate_limited"' in _metrics(system)


def _wait_refused(system: System) -> None:
    """Ask until the limit is reached: a question that is answered late passes uncounted."""
    deadline = time.monotonic() + 30
    while _statuses(system, 1) != [429]:
        assert time.monotonic() < deadline, _metrics(system)


@pytest.mark.long
def test_quotas_are_saved_when_the_system_stops(system: System, mlp: Path) -> None:
    system.start(_limited(mlp, requests_per_day=2), first_request=False)
    system.wait_ready()
    _counts(system)
    assert _statuses(system, 2) == [200, 200]

    system.end_control()
    system.log.unlink()
    system.start(first_request=False)
    system.wait_ready()
    _counts(system)

    assert _statuses(system, 1) == [429]


@pytest.mark.long
def test_two_systems_share_a_limit_that_one_of_them_counts(system: System, mlp: Path) -> None:
    folder = system.home.parent / "shared"
    folder.mkdir(mode=0o755)  # root's gateways run as a user of their own
    where = f"unix:{folder}/limits.sock"
    endpoint = _limited(mlp, requests_per_day=4)
    other = System(system.home.parent / "other")
    try:
        for each, gateway in (
            (system, {"limits_listen": where}),
            (other, {"limits_service": where}),
        ):
            spec = {
                "version": 1,
                "gateway": {"shared_limits": True, **gateway},
                "endpoints": [endpoint],
            }
            each.start(spec=spec, first_request=False)
            each.wait_ready()
            _counts(system)

        assert _statuses(system, 2) == [200, 200]
        _wait_refused(other)  # nobody counts for it but the first one
        _wait_refused(system)
    finally:
        other.close()


@pytest.mark.long
def test_a_changed_limit_is_in_force_within_a_second(system: System, mlp: Path) -> None:
    system.start(_limited(mlp, requests_per_s=1000.0))
    system.wait_ready()
    assert _statuses(system, 5) == [200] * 5

    endpoint = _limited(mlp, requests_per_s=0.01, burst=1)
    status, told = system.post("/api/v1/apply", {"version": 1, "endpoints": [endpoint]})
    assert status == 200, told
    deadline = time.monotonic() + 1.0
    while 429 not in _statuses(system, 2):
        assert time.monotonic() < deadline
    assert 'headrace_refused_requests{route="m",by="local_rate_limited"}' in _metrics(system)
