"""What an endpoint at a glance says, and in which order endpoints come."""

import pytest

from headrace.control.api.history import (
    EndpointHealth,
    OverviewRow,
    SortKey,
    last_minute,
    row,
    sort_rows,
    state_of,
)
from headrace.control.model.desired import DesiredEndpoint
from headrace.control.reconcile.status import EndpointStatus, ReplicaStatus, RevisionStatus
from headrace.core import EndpointName
from headrace.monitor import RequestHistory, RequestWindow
from tests.unit.monitor.counted import Counted

_NOON = 1_800_000_000.0


def status(*, ready: bool = True, failed: bool = False) -> EndpointStatus:
    def revision(version: str, replicas: int, state: str = "ready") -> RevisionStatus:
        return RevisionStatus(
            version=version,
            model=f"m:{version}",
            weight=replicas and 100,
            desired_weight=replicas and 100,
            desired_replicas=replicas,
            replicas=(
                ReplicaStatus(
                    name=f"m-{version}",
                    state=state,
                    pid=1,
                    address="",
                    restarts=0,
                    reason="",
                    rss_bytes=None,
                ),
            ),
        )

    return EndpointStatus(
        name="m",
        ready=ready,
        failed=failed,
        url="",
        revisions=(revision("2", 2), revision("1", 0)),
        message="",
    )


def window(requests: int = 100, errors: int = 0) -> RequestWindow:
    latency = {(0.01, 0.001): requests}
    return RequestWindow(begin=0, end=60, requests=requests, errors=errors, latency=latency)


@pytest.mark.parametrize(
    ("ready", "failed", "got", "slo", "state"),
    [
        (True, False, window(), None, EndpointHealth.OK),
        (True, False, window(0), None, EndpointHealth.IDLE),
        (False, False, window(0), None, EndpointHealth.WARNING),
        (False, True, window(), None, EndpointHealth.FAILING),
        (True, False, window(errors=1), None, EndpointHealth.WARNING),
        (True, False, window(errors=5), None, EndpointHealth.FAILING),
        (True, False, window(), 0.02, EndpointHealth.OK),
        (True, False, window(), 0.005, EndpointHealth.WARNING),
    ],
)
def test_the_state_says_whether_it_is_well(
    ready: bool,  # noqa: FBT001  # a row of the table
    failed: bool,  # noqa: FBT001  # likewise
    got: RequestWindow,
    slo: float | None,
    state: EndpointHealth,
) -> None:
    assert state_of(status(ready=ready, failed=failed), got, slo_latency_s=slo) is state


def test_a_row_counts_what_is_wanted() -> None:
    endpoint = DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=())
    found = row(endpoint, status(), window(120, errors=6), rollout="progressing")

    assert found.versions == ("2",)
    assert (found.replicas_ready, found.replicas_desired) == (1, 2)
    assert (found.requests_per_s, found.error_ratio) == (2.0, 0.05)
    assert found.p50_s == pytest.approx(0.0105)
    assert found.rollout == "progressing"


def test_the_last_minute_is_shorter_where_counting_began_later() -> None:
    history = RequestHistory()
    history.advance(_NOON)
    history.add(_NOON + 10, "m", "1", Counted().after([0.01] * 100))

    assert last_minute(history, "m", _NOON + 10).requests_per_s == 10


def test_old_counts_are_not_told_as_if_they_were_new() -> None:
    history = RequestHistory()
    history.advance(_NOON)
    history.add(_NOON + 10, "m", "1", Counted().after([0.01] * 100))

    assert last_minute(history, "m", _NOON + 600).requests == 0


def glance(
    name: str, rate: float, p99: float | None, state: EndpointHealth = EndpointHealth.OK
) -> OverviewRow:
    return OverviewRow(
        name=name,
        ready=True,
        state=state,
        versions=("1",),
        replicas_ready=1,
        replicas_desired=1,
        requests_per_s=rate,
        error_ratio=rate / 100,
        p50_s=p99,
        p95_s=p99,
        p99_s=p99,
        rollout=None,
    )


_ROWS = [
    glance("b", 1.0, None),
    glance("c", 5.0, 0.2, EndpointHealth.FAILING),
    glance("a", 3.0, 0.1, EndpointHealth.IDLE),
]


@pytest.mark.parametrize(
    ("key", "names", "turned"),
    [
        (SortKey.NAME, "abc", "cba"),
        (SortKey.STATE, "cba", "abc"),
        (SortKey.REQUESTS, "cab", "bac"),
        (SortKey.ERRORS, "cab", "bac"),
        (SortKey.P50, "cab", "acb"),
        (SortKey.P95, "cab", "acb"),
        (SortKey.P99, "cab", "acb"),
    ],
)
def test_rows_come_in_order_and_those_without_a_value_last(
    key: SortKey, names: str, turned: str
) -> None:
    assert "".join(one.name for one in sort_rows(_ROWS, key, reverse=False)) == names
    assert "".join(one.name for one in sort_rows(_ROWS, key, reverse=True)) == turned
