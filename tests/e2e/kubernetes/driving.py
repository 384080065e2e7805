"""Control planes' drivers on a real API server, with a gateway that only remembers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import msgspec

from headrace.control.kubernetes import role_rules
from headrace.control.kubernetes.api import ClusterApi, connect
from headrace.control.kubernetes.election import Elector, LeaseTimes
from headrace.control.kubernetes.reconciler import KubernetesReconciler
from headrace.control.kubernetes.snapshot import OwnerLookup
from headrace.control.model.desired import DesiredState
from headrace.control.model.observed import addresses_of
from headrace.core import HeadraceError, SystemClock, UnavailableError
from headrace.gateway import EndpointRoute
from tests.kube_server.namespace import TestNamespace
from tests.kube_server.proxy import Proxy
from tests.unit.control.kubernetes.states import PLACE

SHORT = LeaseTimes(duration_s=5.0, margin_s=1.5, renew_s=0.3)
"""For tests of lost leaders; a busy machine may hold up a renewal for seconds."""
PATIENT = LeaseTimes(duration_s=300.0, margin_s=5.0, renew_s=2.0)
"""For tests that restart the API server."""
PATIENCE_S = 60.0


@dataclass(slots=True)
class Gateway:
    """Remembers who published which routes; all control planes have the same one."""

    history: list[tuple[str, tuple[EndpointRoute, ...]]] = field(default_factory=list)
    refuses: bool = False

    @property
    def routes(self) -> tuple[EndpointRoute, ...]:
        return self.history[-1][1] if self.history else ()

    @property
    def addresses(self) -> frozenset[str]:
        return addresses_of(self.routes)


@dataclass(slots=True)
class Publisher:
    """One control plane's way to the gateway."""

    name: str
    gateway: Gateway

    async def publish(self, routes: Sequence[EndpointRoute]) -> None:
        await asyncio.sleep(0.005)
        if self.gateway.refuses:
            raise UnavailableError("the gateway does not run")
        self.gateway.history.append((self.name, tuple(routes)))


@dataclass(slots=True)
class Driver:
    """One control plane's part that knows Kubernetes. It ends when it leads no more."""

    server: Proxy
    gateway: Gateway
    name: str = "control-a"
    times: LeaseTimes = field(default_factory=LeaseTimes)
    owners: tuple[str, ...] = ()
    ended: str = ""
    reconciler: KubernetesReconciler = field(init=False)
    elector: Elector = field(init=False)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        http = connect(identity=self.name, url=self.server.url)
        installation = replace(PLACE, namespace=self.server.namespace.name)
        api = ClusterApi(http=http, namespace=installation.namespace, timeout_s=5.0)
        clock = SystemClock()
        self.elector = Elector(
            api=api,
            installation=installation,
            identity=self.name,
            clock=clock,
            times=self.times,
        )
        self.reconciler = KubernetesReconciler(
            api=api,
            publisher=Publisher(self.name, self.gateway),
            clock=clock,
            installation=installation,
            is_leader=self.elector.is_leading,
            owners=OwnerLookup(references=self.owners),
        )
        self.elector.on_change = self.reconciler.wake

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """End at once, without a word to anybody."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            await self.reconciler.api.http.aclose()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.elector.run())
                group.create_task(self.reconciler.run())
        except* HeadraceError as errors:
            self.ended = "; ".join(map(str, errors.exceptions))

    def set_desired(self, desired: DesiredState) -> None:
        generation = self.reconciler.desired.generation + 1
        self.reconciler.set_desired(msgspec.structs.replace(desired, generation=generation))

    def is_quiet(self) -> bool:
        """Whether it knows all, and has nothing to do."""
        reconciler = self.reconciler
        return (
            reconciler.watches.is_synced
            and reconciler.executor.is_idle
            and reconciler.publication.can_publish
            and reconciler.publication.is_confirmed
            and reconciler.publication.published == self.gateway.routes
            and not reconciler.publication.error
        )


@contextlib.asynccontextmanager
async def a_cluster(
    namespace: TestNamespace, *, longest_watch_s: float = 300.0
) -> AsyncIterator[tuple[Proxy, Gateway]]:
    """A way to the API server for which the chart's Role holds, and a gateway."""
    async with Proxy(namespace, role_rules(), longest_watch_s=longest_watch_s) as server:
        yield server, Gateway()


async def until(holds: Callable[[], object], what: str = "") -> None:
    """Return when `holds`; AssertionError if that takes too long."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110  # it looks at many things
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(what or "it never came to that") from None
