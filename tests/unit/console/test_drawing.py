"""The system as it runs, drawn: nothing overlaps, and every arrow has two ends."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.console.diagram import DiagramNode, draw_diagram
from headrace.console.endpoint import phases_of
from headrace.control.agents.registry import GatewayState, SyncStatus
from headrace.control.plane.status import GatewayStatus, SystemStatus
from headrace.control.reconcile.status import EndpointStatus, ReplicaStatus, RevisionStatus


def replica(name: str, *, state: str = "ready") -> ReplicaStatus:
    return ReplicaStatus(
        name=name, state=state, pid=7, address="", restarts=0, reason="", rss_bytes=None
    )


def endpoint(name: str, *replicas: int, ready: bool = True) -> EndpointStatus:
    """An endpoint with a version for each number, of so many replicas."""
    revisions = tuple(
        RevisionStatus(
            version=str(number),
            model=f"{name}:{number}",
            weight=100 // len(replicas),
            desired_weight=100 // len(replicas),
            desired_replicas=count,
            replicas=tuple(replica(f"{name}-{number}-{i}") for i in range(count)),
        )
        for number, count in enumerate(replicas, start=1)
    )
    return EndpointStatus(
        name=name, ready=ready, failed=False, url="", revisions=revisions, message=""
    )


def gateway(
    name: str,
    standing: SyncStatus = SyncStatus.CURRENT,
    *,
    behind_s: float = 0.0,
    seen_s: float = 0.2,
) -> GatewayState:
    return GatewayState(
        name=name,
        standing=standing,
        version="abcdef0123456789",
        behind_s=behind_s,
        seen_s=seen_s,
        ready=True,
    )


def status(
    *endpoints: EndpointStatus, ready: bool = True, gateways: Sequence[GatewayState] = ()
) -> SystemStatus:
    return SystemStatus(
        ready=ready,
        version="0",
        generation=1,
        pid=1,
        home="",
        gateway=GatewayStatus(
            ready=ready,
            pid=None if gateways else 2,
            restarts=0,
            reason="",
            gateways=tuple(gateways),
        ),
        endpoints=endpoints,
        addresses={},
    )


def overlap(one: DiagramNode, other: DiagramNode) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=6), st.integers(0, 9)
)
def test_nothing_overlaps_and_all_is_inside(shape: list[list[int]], gateways: int) -> None:
    endpoints = [endpoint(f"e{i}", *replicas) for i, replicas in enumerate(shape)]
    others = [gateway(f"gw-{number}") for number in range(gateways)]
    found = draw_diagram(status(*endpoints, gateways=others), endpoints)

    assert not any(overlap(one, other) for one, other in combinations(found.boxes, 2))
    for box in found.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= found.width
        assert box.y + box.height <= found.height


def test_a_split_stands_on_the_arrows() -> None:
    one = endpoint("fraud", 1, 1)
    found = draw_diagram(status(one), [one])

    assert [arrow.label for arrow in found.arrows if arrow.label] == ["50 %", "50 %"]


def test_many_replicas_are_drawn_as_a_few_and_the_rest() -> None:
    one = endpoint("fraud", 30)
    found = draw_diagram(status(one), [one])

    assert sum(box.name.startswith("fraud-1-") for box in found.boxes) == 7
    assert any(box.name == "23 more" for box in found.boxes)


def test_what_is_not_ready_is_told_apart() -> None:
    one = endpoint("fraud", 1, ready=False)
    found = draw_diagram(status(one, ready=False), [one])
    states = {box.name: box.state for box in found.boxes}

    assert states["fraud"] == "warning"
    assert states["Envoy"] == "failing"


def test_an_empty_system_has_callers_and_a_gateway() -> None:
    found = draw_diagram(status(), [])

    assert [box.name for box in found.boxes] == ["callers", "Envoy"]


def test_each_gateway_is_drawn_with_how_it_stands() -> None:
    others = [
        gateway("gw-1"),
        gateway("gw-2", SyncStatus.BEHIND, behind_s=12.4),
        gateway("gw-3", SyncStatus.LOST, seen_s=60.0),
    ]
    found = draw_diagram(status(gateways=others), [])
    told = {box.name: (box.detail, box.state) for box in found.boxes}

    assert told["gw-1"] == ("version abcdef01, last report 0 s ago", "ok")
    assert told["gw-2"] == ("configuration outdated for 12 s", "warning")
    assert told["gw-3"] == ("no report for 60 s", "failing")
    assert "Envoy" not in told, "there is none on this host"


# Where the time goes.


def version_stats(version: str, rows: int, runs: int, **sums: tuple[int, int]) -> dict[str, Any]:
    phases = ("queue", "compute_input", "compute_infer", "compute_output")
    stats = {
        name: dict(zip(("count", "ns"), sums.get(name, (0, 0)), strict=True)) for name in phases
    }
    counts = {"inference_count": rows, "execution_count": runs}
    return {"name": "fraud", "version": version, **counts, "inference_stats": stats}


def test_phases_are_means_of_what_was_counted() -> None:
    stats = version_stats("1", 12, 4, queue=(4, 8_000_000), compute_infer=(4, 40_000_000))
    (row,) = phases_of({"model_stats": [stats, version_stats("2", 0, 0)]})

    assert (row["version"], row["rows"], row["batch_rows"]) == ("1", 12, 3.0)
    assert (row["queue_s"], row["compute_s"], row["preprocess_s"]) == (0.002, 0.01, None)


def test_what_was_never_asked_has_no_phases() -> None:
    assert phases_of(None) == []
