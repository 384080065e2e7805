"""Standby of a control plane that does not lead: waits for the Lease and answers probes."""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from headrace.control.base.faults import Faults
from headrace.control.base.journal import Emit, wait_for
from headrace.control.base.settings import DEFAULT_ADMIN_PORT, ClusterSettings, ControlSettings
from headrace.control.gateway.routes import RoutePublisher
from headrace.control.kubernetes.api import ClusterApi, ObjectMissingError, connect
from headrace.control.kubernetes.election import Elector, LeaseTimes
from headrace.control.kubernetes.names import LEADER, ROLE, InstallationName, leader_selector
from headrace.control.kubernetes.reconciler import KubernetesReconciler
from headrace.control.kubernetes.snapshot import OwnerLookup
from headrace.control.reconcile.publication import Reconciling
from headrace.core import Clock, FailedPreconditionError, HeadraceError, SystemClock
from headrace.core.gateways import MAX_BEHIND_S

_LOG: Final = logging.getLogger("headrace.control")
_HEALTH: Final = "/api/v1/health"
_READ_TIMEOUT_S: Final = 5.0
_LABEL_INTERVAL_S: Final = 30.0
_LABEL_RETRY_S: Final = 1.0
_CLOSE_S: Final = 0.5
"""Time in which the loop of the election closes its sockets."""
_MAX_HEAD: Final = 16 << 10


@dataclass(slots=True, kw_only=True)
class ClusterMembership:
    """A control plane's membership in a cluster: its Lease, connection and object settings."""

    api: ClusterApi
    elector: Elector
    elected: asyncio.Event
    """Set when the elector begins to lead."""
    installation: InstallationName
    pod: str
    """Name of the pod that this process runs in, if it runs in one."""
    gateway_secret: str = ""
    """Secret for a copy of the gateways' configuration; empty for none."""
    _election: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    """Loop of the elector's thread: a long step of the main loop must not delay renewals."""
    _thread: threading.Thread = field(init=False)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)
    _electing: asyncio.Task[None] = field(init=False)
    _labelling: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(
            target=self._election.run_forever, name="election", daemon=True
        )

    def begin(self) -> None:
        """Run for election until `close`."""
        self._thread.start()
        self._electing = asyncio.create_task(self._elect())
        self._labelling = asyncio.create_task(self._keep_label())

    async def _elect(self) -> None:
        campaign = asyncio.run_coroutine_threadsafe(self._campaign(), self._election)
        await asyncio.wrap_future(campaign)

    async def _campaign(self) -> None:
        """Run the elector until `close`, and release the Lease, in the elector's thread."""
        running = asyncio.create_task(self.elector.run())
        closing = asyncio.create_task(self._closing.wait())
        await asyncio.wait({running, closing}, return_when=asyncio.FIRST_COMPLETED)
        for task in (running, closing):
            task.cancel()
        await asyncio.wait({running, closing})
        await self.elector.resign()
        await self.elector.api.http.aclose()
        await asyncio.sleep(_CLOSE_S)
        if not running.cancelled():
            running.result()

    def reconciler(
        self, publisher: RoutePublisher, clock: Clock, emit: Emit, faults: Faults
    ) -> Reconciling:
        """Return the reconciler of the cluster; `emit` stores its events."""
        return KubernetesReconciler(
            api=self.api,
            publisher=publisher,
            clock=clock,
            installation=self.installation,
            owners=self.elector.owners,
            is_leader=self.elector.is_leading,
            emit=emit,
            faults=faults,
        )

    async def run(self) -> None:
        """Lead until cancelled; LeadershipLostError when the leadership is lost."""
        await asyncio.shield(self._electing)

    async def wait_elected(self, stopped: asyncio.Event) -> bool:
        """Return True once it leads, False if `stopped` is set first. Raises election errors."""
        waits = {
            asyncio.create_task(self.elected.wait()),
            asyncio.create_task(stopped.wait()),
        }
        await asyncio.wait({*waits, self._electing}, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._electing.done():
            self._electing.result()
        return self.elector.is_leading() and not stopped.is_set()

    async def close(self) -> None:
        """Remove the leader's label, release the Lease, and close all connections."""
        self._labelling.cancel()
        await asyncio.wait({self._labelling})
        with contextlib.suppress(HeadraceError, TimeoutError):
            async with asyncio.timeout(self.elector.times.timeout_s):
                await self._label(is_leader=False)
        self._election.call_soon_threadsafe(self._closing.set)
        await asyncio.wait({self._electing})
        self._election.call_soon_threadsafe(self._election.stop)
        await asyncio.to_thread(self._thread.join)
        self._election.close()
        await self.api.http.aclose()

    async def _keep_label(self) -> None:
        """Keep the label that the Service selects on the leader's pod, and on no other."""
        problem = ""
        while True:
            is_leader, delay_s = self.elector.is_leading(), _LABEL_INTERVAL_S
            try:
                await self._label(is_leader=is_leader)
                problem = ""
            except HeadraceError as error:
                if not isinstance(error, ObjectMissingError):  # it does not run in a pod
                    delay_s = _LABEL_RETRY_S
                if str(error) != problem:
                    problem = str(error)
                    _LOG.warning("cannot label the leader's pod", extra={"error": problem})
            changed = asyncio.Event() if is_leader else self.elected
            await wait_for(changed, delay_s)

    async def _label(self, *, is_leader: bool) -> None:
        listed = await self.api.list("Pod", leader_selector(self.installation.instance))
        labelled = {pod["metadata"]["name"] for pod in listed.items}
        changes: dict[str, str | None] = {
            name: None for name in labelled if is_leader is not (name == self.pod)
        }
        if is_leader and self.pod not in labelled:
            changes[self.pod] = LEADER
        for name, role in changes.items():
            await self.api.merge("Pod", name, {"metadata": {"labels": {ROLE: role}}})


async def stand_by(
    settings: ControlSettings, cluster: ClusterSettings, stopped: asyncio.Event
) -> ClusterMembership | None:
    """Return the membership once this control plane leads; None if `stopped` is set first.

    It waits while the API server is away.

    Raises:
        FailedPreconditionError: No API server is configured, or the port is in use.
    """
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request
    pod = cluster.identity or socket.gethostname()
    identity = f"{pod}_{uuid.uuid4()}"
    connected = partial(connect, identity=identity, url=cluster.url, context=cluster.context)
    api = ClusterApi(http=connected(), namespace=cluster.namespace)
    installation = InstallationName(
        namespace=cluster.namespace,
        instance=cluster.instance,
        artifacts_url=settings.artifacts,
        internal_secret=cluster.internal_secret,
        image_registry=cluster.image_registry,
        pull_secrets=cluster.pull_secrets,
        store_secret=cluster.store_secret,
        is_platform_uid=cluster.platform_uid,
        drain_timeout_s=settings.drain_timeout_s,
        max_behind_s=MAX_BEHIND_S if settings.agents is None else settings.agents.max_behind_s,
        log_format=settings.log_format,
    )
    loop, elected = asyncio.get_running_loop(), asyncio.Event()

    def on_elected() -> None:
        loop.call_soon_threadsafe(elected.set)

    times = lease_times(cluster.lease_s)
    elector = Elector(
        # Renewals wait neither behind other requests nor longer than the Lease lasts.
        api=replace(
            api, http=connected(), timeout_s=times.timeout_s, write_timeout_s=times.timeout_s
        ),
        installation=installation,
        identity=identity,
        clock=SystemClock(),
        times=times,
        owners=OwnerLookup(references=cluster.owners),
        on_change=on_elected,
    )
    membership = ClusterMembership(
        api=api,
        elector=elector,
        elected=elected,
        installation=installation,
        pod=pod,
        gateway_secret=cluster.gateway_secret,
    )
    membership.begin()
    _LOG.info("standing by", extra={"identity": identity, "namespace": cluster.namespace})
    async with _serve_health(settings, elector):
        if await membership.wait_elected(stopped):
            return membership
    await membership.close()
    return None


def lease_times(lease_s: float) -> LeaseTimes:
    """Return renewal interval and safety margin for a Lease of this duration."""
    return LeaseTimes(duration_s=lease_s, margin_s=lease_s / 3, renew_s=lease_s / 7.5)


@contextlib.asynccontextmanager
async def _serve_health(settings: ControlSettings, elector: Elector) -> AsyncIterator[None]:
    """Answer probes instead of the management API; a probe of the leader gets 503.

    Raises:
        FailedPreconditionError: The port is in use, or the certificate cannot be used.
    """

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            async with asyncio.timeout(_READ_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(standby_answer(head, elector.leader))
                await writer.drain()
        writer.close()

    port = DEFAULT_ADMIN_PORT if settings.admin_port is None else settings.admin_port
    try:
        server = await asyncio.start_server(
            accept,
            settings.admin_host,
            port,
            ssl=_tls(settings),
            limit=_MAX_HEAD,
        )
    except OSError as error:
        raise FailedPreconditionError(
            f"cannot listen for probes on {settings.admin_host}:{port}: {error}"
        ) from error
    try:
        yield
    finally:
        server.close()


def standby_answer(head: bytes, leader: str) -> bytes:
    """Return the response of a standby control plane to a request.

    `GET /api/v1/health` reports that it is alive; with `?leader`, and for all other requests, the
    response says that another control plane leads.
    """
    method, target = [*head.split(b" ", 2), b"", b""][:2]
    path, _, query = target.decode("latin-1").partition("?")
    is_alive = method == b"GET" and path == _HEALTH and "leader" not in query
    by = f"{leader.partition('_')[0]} leads" if leader else "no control plane leads yet"
    message = {"message": f"this control plane is on standby: {by}"}
    body = json.dumps({"alive": True} if is_alive else message).encode()
    status = "200 OK" if is_alive else "503 Service Unavailable"
    lines = (
        f"HTTP/1.1 {status}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "retry-after: 2",
        "connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body


def _tls(settings: ControlSettings) -> ssl.SSLContext | None:
    if settings.admin_tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    is_newest = settings.admin_tls.min_version == "1.3"
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if is_newest else ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.admin_tls.certificate_file, settings.admin_tls.key_file)
    except (OSError, ssl.SSLError) as error:
        raise FailedPreconditionError(
            f"cannot use {settings.admin_tls.certificate_file} for the management API: {error}"
        ) from error
    return context
