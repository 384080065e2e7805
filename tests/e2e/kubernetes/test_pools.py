"""Pools on a cluster whose pods are real processes: two models in each, behind a real gateway."""

from typing import Any

import pytest

from tests.e2e.control.system import Traffic, replicas
from tests.e2e.kubernetes.installation import Installation, until

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.slow]

PATIENCE_S = 180.0
"""A pod's process, a fork server, two fetches and an Envoy start, on a machine that may be busy."""
POOL = {"name": "small", "replicas": 2, "memory_bytes": 500_000_000}


def spec_of(lab: Installation, *, digits: int = 1, **pool: Any) -> dict[str, Any]:
    models = {"digits": digits, "letters": 2}
    endpoints = [
        lab.endpoint(seed) | {"name": name, "pool": "small"} for name, seed in models.items()
    ]
    return {"version": 1, "pools": [POOL | pool], "endpoints": endpoints}


def fetched(lab: Installation) -> dict[str, set[str]]:
    """Digests of what the pods that run have fetched, by the pods' names."""
    return {
        pod["metadata"]["name"]: {
            path.name
            for path in lab.kubelet.folder.glob(f"{pod['metadata']['uid']}/volumes/*/sha256/*")
            if any(path.iterdir())
        }
        for pod in lab.live_pods()
    }


def answers(lab: Installation, *names: str) -> bool:
    return all(lab.system.infer(name)[0] == 200 for name in names)


def test_a_pool_s_models_are_served_by_its_pods_and_replaced_without_a_failure(
    lab: Installation,
) -> None:
    lab.start(spec=spec_of(lab))
    lab.system.wait_ready(PATIENCE_S)
    pods = lab.pods()

    assert len(pods) == 2
    assert answers(lab, "digits", "letters")
    with (
        Traffic(lab.system, "digits").flowing(2) as digits,
        Traffic(lab.system, "letters").flowing(2) as letters,
    ):
        until(lambda: all(len(found) == 2 for found in fetched(lab).values()))
        lab.apply(spec_of(lab, digits=3))
        until(lambda: digits.versions[-1:] == ["2"])
        # What is hosted no more leaves the pods' disks too, and another model is there instead.
        until(lambda: {len(found) for found in fetched(lab).values()} == {2})

    assert (digits.failures, letters.failures) == ([], [])
    assert lab.pods() == pods


def test_a_pod_of_a_pool_that_is_lost_is_made_again_and_told_its_models(lab: Installation) -> None:
    lab.start(spec=spec_of(lab))
    lab.system.wait_ready(PATIENCE_S)
    lost, kept = lab.pods()
    with Traffic(lab.system, "digits").flowing(2) as traffic:
        until(lambda: all(fetched(lab).values()))
        lab.lose_node_of(lost)
        until(lambda: len(set(lab.pods()) - {lost}) == 2)
        until(lambda: all(found for name, found in fetched(lab).items() if name != lost))
        (new,) = set(lab.pods()) - {lost, kept}

    # What was in flight on the lost one, at most one request of each caller.
    assert len(traffic.failures) <= 2
    # It was asked for one of its two models, and fetched that one only.
    assert len(fetched(lab)[new]) == 1
    assert fetched(lab)[new] <= fetched(lab)[kept]


def test_a_pod_whose_process_crashed_is_told_again_and_until_then_others_answer(
    lab: Installation,
) -> None:
    lab.start(spec=spec_of(lab))
    lab.system.wait_ready(PATIENCE_S)
    crashed, _ = lab.pods()
    with Traffic(lab.system, "digits").flowing(2) as traffic:
        until(lambda: all(fetched(lab).values()))
        lab.process(crashed).crash()
        until(lambda: restarts(lab, crashed) == [1])
        # Ready again is who was told.
        until(lambda: states(lab, "digits") == {"ready"})

    assert len(traffic.failures) <= 2
    assert 404 not in traffic.failures
    assert len(lab.pods()) == 2


def restarts(lab: Installation, pod: str) -> list[int]:
    found = replicas(lab.system.status(), "digits")
    return [one["restarts"] for one in found if one["name"] == pod]


def states(lab: Installation, name: str) -> set[str]:
    return {one["state"] for one in replicas(lab.system.status(), name)}


def test_an_endpoint_moves_into_a_pool_and_out_of_it_without_a_failure(lab: Installation) -> None:
    hosted, alone = spec_of(lab, replicas=1), spec_of(lab, replicas=1)
    del alone["endpoints"][0]["pool"]
    lab.start(spec=alone)
    lab.system.wait_ready(PATIENCE_S)

    assert len(lab.pods()) == 2
    with Traffic(lab.system, "digits").flowing(2) as traffic:
        lab.apply(hosted)
        until(lambda: len(lab.pods()) == 1)
        lab.apply(alone)
        until(lambda: len(lab.pods()) == 2)

    assert traffic.failures == []
