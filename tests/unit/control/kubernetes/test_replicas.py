from typing import Any, Final

import msgspec
import pytest

from headrace.control.kubernetes.replicas import EndpointSlice, Pod, pods_in, replicas_of
from headrace.control.kubernetes.snapshot import ClusterSnapshot
from headrace.control.model.observed import MANY_FAILURES, Replica, ReplicaPhase
from tests.kube_server.kubelet import State, fake_status
from tests.unit.control.kubernetes.states import PLACE, a_revision

ID = a_revision().id
SPEC: Final = {"containers": [{"name": "replica", "image": "headrace/replica"}]}


def a_pod(name: str = "p", state: str = "ready", *, restarts: int = 0, **metadata: Any) -> Pod:  # noqa: ANN401  # as an object has it
    told = {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "labels": {"headrace.dev/version": "1"},
            "annotations": {"headrace.dev/endpoint": "digits", "headrace.dev/revision-id": ID},
            **metadata,
        },
        "status": fake_status(SPEC, State(state), "10.0.0.1", restarts=restarts),
    }
    return msgspec.convert(told, Pod)


def a_slice(
    name: str = "p", ip: str = "10.0.0.1", *, port: int = 8000, **conditions: bool
) -> EndpointSlice:
    told = {
        "metadata": {"name": "s"},
        "endpoints": [
            {
                "addresses": [ip],
                "conditions": {"ready": True, **conditions},
                "targetRef": {"kind": "Pod", "name": name, "uid": f"uid-{name}"},
            }
        ],
        "ports": [{"name": "metrics", "port": 8002}, {"name": "http", "port": port}],
    }
    return msgspec.convert(told, EndpointSlice)


def look(
    *pods: Pod,
    slices: tuple[EndpointSlice, ...] = (),
    known: dict[str, Replica] | None = None,
    routed: frozenset[str] = frozenset(),
    now: float = 0.0,
) -> dict[str, Replica]:
    return replicas_of(pods, slices, known or {}, routed=routed, next_serial=1, now=now)


def test_a_pod_is_ready_where_a_slice_offers_it() -> None:
    (replica,) = look(a_pod(), slices=(a_slice(port=9000),)).values()

    assert replica.phase is ReplicaPhase.READY
    assert replica.address == "10.0.0.1:9000"
    assert (replica.endpoint, replica.version, replica.revision_id) == ("digits", "1", ID)


def test_a_pod_that_says_it_is_ready_gets_nothing_until_a_slice_says_so() -> None:
    assert look(a_pod())["p"].phase is ReplicaPhase.STARTING


@pytest.mark.parametrize(
    "offered", [a_slice(ready=False), a_slice(serving=False), a_slice(terminating=True)]
)
def test_an_address_that_is_not_offered_gets_nothing(offered: EndpointSlice) -> None:
    assert look(a_pod(), slices=(offered,))["p"].phase is not ReplicaPhase.READY


def test_an_unready_pod_gets_nothing_whatever_a_slice_says() -> None:
    assert look(a_pod(state="unready"), slices=(a_slice(),))["p"].phase is not ReplicaPhase.READY


def test_who_gets_requests_was_ready_and_is_unready_now() -> None:
    routed = frozenset({"10.0.0.1:8000"})
    (replica,) = look(a_pod(state="unready"), slices=(a_slice(),), routed=routed).values()

    assert replica.phase is ReplicaPhase.UNREADY
    assert replica.was_ready


def test_a_pod_that_was_told_to_end_drains() -> None:
    pod = a_pod(deletionTimestamp="2030-01-01T00:00:00Z")

    assert look(pod, slices=(a_slice(),))["p"].phase is ReplicaPhase.DRAINING


def test_pods_that_are_over_are_no_replicas() -> None:
    pod = a_pod()
    over = msgspec.structs.replace(pod, status=msgspec.structs.replace(pod.status, phase="Failed"))

    assert look(over) == {}


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert look(a_pod(), slices=(a_slice(ip="fd00::1"),))["p"].address == "[fd00::1]:8000"


def test_the_time_of_a_phase_is_that_of_its_beginning() -> None:
    first = look(a_pod(state="pending"), now=1.0)
    second = look(a_pod(state="pending"), known=first, now=5.0)
    third = look(a_pod(), slices=(a_slice(),), known=second, now=7.0)

    assert second == first
    assert third["p"].since == 7.0


def test_replicas_keep_their_numbers_and_new_ones_get_others() -> None:
    first = look(a_pod("b"), a_pod("a"))
    second = replicas_of(
        [a_pod("c"), a_pod("a")], (), first, routed=frozenset(), next_serial=3, now=0.0
    )

    assert [first[name].serial for name in "ab"] == [1, 2]
    assert [second[name].serial for name in "ac"] == [1, 3]


def test_ends_in_a_row_count_until_it_is_ready() -> None:
    first = look(a_pod(state="crashing", restarts=1))
    third = look(a_pod(state="crashing", restarts=3), known=first)
    ready = look(a_pod(restarts=3), slices=(a_slice(),), known=third)

    assert [each["p"].failures for each in (first, third, ready)] == [1, 3, 0]
    assert ready["p"].restarts == 3
    assert first["p"].process != third["p"].process


@pytest.mark.parametrize("state", ["no-image"])
def test_what_nobody_but_a_person_can_mend_counts_as_failed(state: str) -> None:
    assert look(a_pod(state=state))["p"].failures >= MANY_FAILURES


def test_a_signal_is_told_as_one() -> None:
    told = fake_status(SPEC, State.CRASHING, "10.0.0.1")
    told["containerStatuses"][0]["lastState"]["terminated"] = {"exitCode": 139}
    pod = msgspec.convert({"metadata": {"name": "p"}, "status": told}, Pod)
    pod = msgspec.structs.replace(pod, metadata=a_pod().metadata)

    assert look(pod)["p"].reason == "ended by signal 11"


@pytest.mark.parametrize(
    "odd",
    [
        {"metadata": {"name": "p"}},
        {"metadata": {"name": "p"}, "status": {"conditions": "none"}},
        {"metadata": {"name": "p", "annotations": {"headrace.dev/endpoint": "digits"}}},
    ],
)
def test_an_odd_object_is_passed_over(odd: dict[str, Any]) -> None:
    cluster = ClusterSnapshot()
    owner = {"kind": "ReplicaSet", "name": "headrace-x", "controller": True}
    metadata = {"ownerReferences": [owner], **odd["metadata"]}
    cluster.replace_all("Pod", [{"kind": "Pod", **odd, "metadata": metadata}])

    assert look(*pods_in(cluster, PLACE)) == {}


def test_a_pod_that_no_deployment_of_ours_made_is_none_of_ours() -> None:
    cluster = ClusterSnapshot()
    labelled = {"kind": "Pod", "metadata": {"name": "p", "labels": {"headrace.dev/version": "1"}}}
    cluster.replace_all("Pod", [labelled])

    assert pods_in(cluster, PLACE) == []
