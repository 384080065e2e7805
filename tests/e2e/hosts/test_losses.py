"""Hosts are lost and cut off under load: what fails is what was in flight on what was lost."""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.hosts.cloud import GATEWAYS, NODES, Cloud, Request, cloud
from tests.e2e.hosts.network import why_not
from tests.kube_server.fixtures import why_no_cluster

_WHY_NOT = why_not() or why_no_cluster()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.kube_server,
    pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT or "-"),
]

RATE = 40.0
"""Requests a second to each gateway."""
NOTICED_S = 4.0
"""By when a gateway sends nothing more to a host that is gone: two looks of a second failed."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud(tmp_path_factory.mktemp("hosts")) as made:
        made_well(made)
        yield made


@pytest.fixture(autouse=True)
def made_whole(system: Cloud) -> Iterator[None]:
    yield
    made_well(system)


def made_well(system: Cloud) -> None:
    """Wait until everything stands, as the control plane and as the gateways see it."""
    system.wait_for(
        lambda status: whole(status) and all(map(system.is_ready, GATEWAYS)), timeout_s=180.0
    )


def whole(status: dict[str, object]) -> bool:
    """Whether everything stands: both gateways follow, and all replicas are ready."""
    gateway: dict[str, object] = status["gateway"]  # type: ignore[assignment]  # JSON
    standings = [one["standing"] for one in gateway["gateways"]]  # type: ignore[attr-defined]  # as above
    return bool(status["ready"]) and standings == ["current"] * len(GATEWAYS)


Step = tuple[float, Callable[[], None]]


def during(system: Cloud, *steps: Step) -> tuple[list[Request], float]:
    """The requests while `steps` were done, each after so many seconds; when the first was."""
    load = system.load(RATE)
    time.sleep(2.0)
    began = 0.0
    for pause_s, step in steps:
        time.sleep(pause_s)
        began = began or time.monotonic()
        step()
    time.sleep(1.0)
    return load.end(), began


def told(name: str, requests: list[Request], began: float) -> list[Request]:
    """Those that failed; what there was is printed."""
    bad = [one for one in requests if not one.is_good]
    slow = [one for one in requests if one.is_good and one.took_s > 0.5]
    why = dict(Counter(one.status for one in bad))
    print(  # noqa: T201  # the figures of the docs
        f"\n{name}: {len(requests)} requests, {len(bad)} failed {why}"
        f" which began at {[round(b.at - began, 2) for b in bad][:12]} s; {len(slow)} took longer "
        f"than 0.5 s, {max((s.took_s for s in slow), default=0):.2f} s at most"
    )
    return bad


def nothing() -> None:
    """For a step that is only waited for."""


@pytest.mark.long
def test_nothing_fails_while_nothing_is_lost(system: Cloud) -> None:
    requests, began = during(system, (3.0, nothing))

    assert len(requests) > 3 * RATE
    assert told("nothing lost", requests, began) == []


@pytest.mark.parametrize("way", ["power", pytest.param("network", marks=pytest.mark.long)])
def test_a_node_is_lost(system: Cloud, way: str) -> None:
    victim = system.host(NODES[0])

    def lose() -> None:
        victim.unplug()
        if way == "power":
            victim.kill()

    requests, began = during(system, (0.0, lose), (10.0, nothing))
    bad = told(f"a node lost its {way}", requests, began)
    victim.plug()
    if way == "power":
        system.start_kubelet(NODES[0])

    assert all(-5.0 <= one.at - began <= NOTICED_S for one in bad)
    assert len(bad) <= RATE  # of 80 a second, a third of which went there


def test_a_gateway_is_lost_and_the_other_serves(system: Cloud) -> None:
    victim = system.host(GATEWAYS[0])

    def lose() -> None:
        victim.unplug()
        victim.kill()

    requests, began = during(system, (0.0, lose), (8.0, nothing))
    others = [one for one in requests if one.gateway != GATEWAYS[0]]
    bad = told("a gateway lost its power, as seen by callers of the other", others, began)
    victim.plug()
    system.start_gateway(GATEWAYS[0])

    assert bad == []


def test_the_control_plane_is_lost_and_comes_back(system: Cloud) -> None:
    victim = system.host("control")
    before = {one["name"] for one in system.replicas()}

    def lose() -> None:
        victim.unplug()
        victim.kill()

    def come_back() -> None:
        victim.plug()
        system.start_control()
        system.wait_for(whole, 90)

    requests, began = during(system, (0.0, lose), (8.0, come_back))
    bad = told("the control plane lost its power and came back", requests, began)

    assert bad == []
    assert {one["name"] for one in system.replicas()} == before


@pytest.mark.long
def test_a_gateway_starts_anew_while_the_control_plane_is_away(system: Cloud) -> None:
    control, victim = system.host("control"), system.host(GATEWAYS[1])
    control.unplug()
    victim.kill()
    system.start_gateway(GATEWAYS[1])
    time.sleep(6.0)
    requests, began = during(system, (0.0, nothing), (2.0, nothing))
    bad = told("a gateway started anew, from its disk", requests, began)
    control.plug()

    assert bad == []


@pytest.mark.long
@pytest.mark.parametrize("direction", ["both ways", "to", "from"])
def test_the_control_plane_is_cut_off_from_everything(system: Cloud, direction: str) -> None:
    control = system.host("control")
    others = [host for name, host in system.net.hosts.items() if name != "control"]

    def cut() -> None:
        if direction in {"both ways", "from"}:
            control.lose_what_is_sent_to(*(host.address for host in others))
        if direction in {"both ways", "to"}:
            for host in others:
                host.lose_what_is_sent_to(control.address)

    def heal() -> None:
        if direction in {"both ways", "from"}:
            control.find_again(*(host.address for host in others))
        if direction in {"both ways", "to"}:
            for host in others:
                host.find_again(control.address)

    requests, began = during(system, (0.0, cut), (10.0, heal), (3.0, nothing))

    assert told(f"the control plane was cut off, {direction}", requests, began) == []


@pytest.mark.long
@pytest.mark.parametrize("direction", ["both ways", "to the node", "from the node"])
def test_a_gateway_and_a_node_are_cut_off_from_each_other(system: Cloud, direction: str) -> None:
    gateway, node = system.host(GATEWAYS[0]), system.host(NODES[1])
    pods = system.addresses_on(NODES[1])

    def cut() -> None:
        if direction != "from the node":
            gateway.lose_what_is_sent_to(*pods)
        if direction != "to the node":
            node.lose_what_is_sent_to(gateway.address)

    def heal() -> None:
        if direction != "from the node":
            gateway.find_again(*pods)
        if direction != "to the node":
            node.find_again(gateway.address)

    requests, began = during(system, (0.0, cut), (8.0, heal), (3.0, nothing))
    bad = told(f"a gateway and a node were cut off, {direction}", requests, began)

    assert all(one.gateway == GATEWAYS[0] for one in bad)
    assert all(-5.0 <= one.at - began <= NOTICED_S for one in bad)
    assert len(bad) <= RATE
