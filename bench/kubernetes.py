"""How does the Kubernetes driver scale? Cold start, steady steps, changes, and a new leader.

    make kube-server ARGS=--fake     # in another shell; set KUBECONFIG as it prints
    make bench SUITE=kubernetes ARGS="--endpoints 1000"

The driver runs against the cluster of the kubeconfig, in a namespace that is deleted at the end;
routes are not sent to a gateway. CPU seconds are those of the driver alone, and depend little on
other load. A fake pod is ready at once, so times are those of the driver and the API server.
"""

import argparse
import asyncio
import contextlib
import hashlib
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from headrace.control.kubernetes import InstallationName, name_of
from headrace.control.kubernetes.api import ClusterApi, connect
from headrace.control.kubernetes.reconciler import KubernetesReconciler
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.model.observed import addresses_of
from headrace.core import EndpointName, FailedPreconditionError, ReplicaSettings, SystemClock
from headrace.gateway import EndpointRoute

STEADY_STEPS = 20
CHANGES = 5
TICK_S = 0.02


@dataclass(slots=True)
class Publisher:
    """Remembers the routes that a gateway would get."""

    routes: Sequence[EndpointRoute] = ()

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        self.routes = tuple(routes)


@dataclass(slots=True)
class Meter:
    """Wall time, CPU time, requests, and the longest time for which the loop did not answer."""

    api: ClusterApi
    started: float = field(default_factory=time.monotonic)
    started_cpu: float = field(default_factory=time.process_time)
    before: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    longest_cpu_s: float = 0.0

    async def tick(self) -> None:
        while True:
            wall, cpu = time.monotonic(), time.process_time()
            try:
                await asyncio.sleep(TICK_S)
            finally:  # also at the end of the measurement
                self.longest_s = max(self.longest_s, time.monotonic() - wall - TICK_S)
                self.longest_cpu_s = max(self.longest_cpu_s, time.process_time() - cpu)

    def requests(self) -> Counter[str]:
        """Return the number of requests by verb, kind and result, without watches."""
        return Counter(
            {" ".join(key): duration.count for key, duration in self.api.durations.items()}
        )

    def __str__(self) -> str:
        wall, cpu = time.monotonic() - self.started, time.process_time() - self.started_cpu
        return (
            f"{wall:.2f} s, CPU {cpu:.2f} s, longest block {self.longest_s * 1000:.0f} ms "
            f"(CPU {self.longest_cpu_s * 1000:.0f} ms), requests "
            f"{dict((self.requests() - self.before).most_common())}"
        )


@contextlib.asynccontextmanager
async def metering(api: ClusterApi, label: str) -> AsyncIterator[None]:
    """Print what the block took."""
    meter = Meter(api)
    meter.before = meter.requests()
    ticking = asyncio.create_task(meter.tick())
    await asyncio.sleep(0)  # it starts
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
        print(f"{label}: {meter}", flush=True)


def make_state(replicas: Sequence[int], *, generation: int) -> DesiredState:
    """Return one endpoint for each number of replicas."""
    endpoints = []
    for number, count in enumerate(replicas):
        name = f"e{number}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        path = f"/home/headrace/artifacts/sha256/{digest}/model.onnx"
        settings = ReplicaSettings(model_name=name, model_version="1", path=path, sha256=digest)
        revision = make_revision(endpoint=EndpointName(name), model=f"{name}:1", settings=settings)
        arm = DesiredArm(revision=revision, weight=100, replicas=count)
        endpoints.append(DesiredEndpoint(name=EndpointName(name), timeout_s=None, arms=(arm,)))
    return DesiredState(spec={}, endpoints=tuple(endpoints), generation=generation)


async def until(holds: Callable[[], object], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110  # many things are looked at
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def leading(
    http: httpx2.AsyncClient, namespace: str
) -> AsyncIterator[tuple[KubernetesReconciler, Publisher]]:
    """Run the driver of a leader."""
    api, publisher, clock = ClusterApi(http=http, namespace=namespace), Publisher(), SystemClock()
    installation = InstallationName(
        namespace=namespace, artifacts_url="s3://artifacts", image_registry="registry.test/ml"
    )
    reconciler = KubernetesReconciler(
        api=api,
        publisher=publisher,
        clock=clock,
        installation=installation,
        is_leader=lambda: True,
    )
    running = asyncio.create_task(reconciler.run())
    try:
        yield reconciler, publisher
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def measure(http: httpx2.AsyncClient, namespace: str, endpoints: int) -> None:
    replicas = [1] * endpoints
    timeout_s = 60.0 + endpoints

    def is_done(reconciler: KubernetesReconciler, publisher: Publisher) -> bool:
        is_routed = len(addresses_of(publisher.routes)) >= endpoints
        return is_routed and reconciler.executor.is_idle and reconciler.publication.is_confirmed

    async with leading(http, namespace) as (reconciler, publisher):
        async with metering(reconciler.api, f"cold start of {endpoints} endpoints"):
            reconciler.set_desired(make_state(replicas, generation=1))
            await until(lambda: is_done(reconciler, publisher), timeout_s)
        await asyncio.sleep(3.0)
        async with metering(reconciler.api, f"{STEADY_STEPS} steady steps"):
            for _ in range(STEADY_STEPS):
                await reconciler.step()
        for number in range(min(CHANGES, endpoints)):
            replicas[number] = 2
            state = make_state(replicas, generation=number + 2)
            name = name_of(state.endpoints[number].arms[0].revision)
            async with metering(reconciler.api, "change to its Deployment"):
                reconciler.set_desired(state)
                await until(
                    lambda name=name: (
                        reconciler.cluster.objects["Deployment", name]["spec"]["replicas"] == 2
                    ),
                    timeout_s,
                )
            await asyncio.sleep(1.0)
    async with (
        leading(http, namespace) as (reconciler, publisher),
        metering(reconciler.api, "new leader"),
    ):
        reconciler.set_desired(make_state(replicas, generation=CHANGES + 2))
        await until(lambda: is_done(reconciler, publisher), timeout_s)


async def main(endpoints: int) -> None:
    namespace = f"bench-{secrets.token_hex(4)}"
    async with connect(identity="bench") as http:
        new = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        (await http.post("/api/v1/namespaces", json=new)).raise_for_status()
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        try:
            async with asyncio.timeout(60.0):  # no pod is admitted before
                while not (await http.get(account)).is_success:  # noqa: ASYNC110  # no event
                    await asyncio.sleep(0.1)
            await measure(http, namespace, endpoints)
        finally:
            await http.delete(f"/api/v1/namespaces/{namespace}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--endpoints", type=int, default=1000)
    try:
        asyncio.run(main(arguments.parse_args().endpoints))
    except FailedPreconditionError as error:
        sys.exit(f"bench: {error}")
