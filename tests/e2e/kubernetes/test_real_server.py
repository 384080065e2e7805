"""Driver on a real API server."""

import asyncio
from dataclasses import replace

import msgspec
import pytest

from headrace.control.kubernetes import name_of, role_rules
from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.election import Elector, LeaseTimes
from headrace.control.kubernetes.reconciler import KubernetesReconciler
from headrace.core import SystemClock
from tests.e2e.kubernetes.driving import Gateway, Publisher, until
from tests.kube_server.fixtures import kube_lab, namespace  # noqa: F401
from tests.kube_server.namespace import TestNamespace
from tests.unit.control.kubernetes.states import PLACE, a_revision, a_state, an_arm, an_endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.anyio]


async def test_a_deployment_is_made_and_its_pods_are_routed(namespace: TestNamespace) -> None:  # noqa: F811
    token = namespace.token("driver", role_rules())
    installation = replace(PLACE, namespace=namespace.name)
    gateway = Gateway()
    async with namespace.lab.cluster.http(token, "control-a") as http:
        api = ClusterApi(http=http, namespace=namespace.name)
        clock = SystemClock()
        elector = Elector(
            api=api,
            installation=installation,
            identity="control-a",
            clock=clock,
            times=LeaseTimes(),
        )
        reconciler = KubernetesReconciler(
            api=api, publisher=Publisher("control-a", gateway), clock=clock,
            installation=installation, is_leader=elector.is_leading,
        )  # fmt: skip
        elector.on_elected = reconciler.wake
        tasks = [asyncio.create_task(elector.run()), asyncio.create_task(reconciler.run())]
        state = a_state(an_endpoint(an_arm(replicas=2)))
        reconciler.set_desired(msgspec.structs.replace(state, generation=1))
        await until(lambda: len(gateway.addresses) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert namespace.names("Deployment") == [name_of(a_revision())]
    addresses = {pod["status"]["podIP"] for pod in namespace.list("Pod")}
    assert {address.partition(":")[0] for address in gateway.addresses} == addresses
