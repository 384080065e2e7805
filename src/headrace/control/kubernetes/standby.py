"""Standby of a control plane that does not lead: waits for the Lease and answers probes."""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from headrace.control.base.faults import Faults
from headrace.control.base.journal import Emit
from headrace.control.base.settings import DEFAULT_ADMIN_PORT, ClusterSettings, ControlSettings
from headrace.control.gateway.routes import RoutePublisher
from headrace.control.kubernetes.api import RESOURCES, ClusterApi, connect
from headrace.control.kubernetes.election import Elector, LeaseTimes
from headrace.control.kubernetes.names import InstallationName, OwnerObject, check_owner
from headrace.control.kubernetes.reconciler import KubernetesReconciler
from headrace.control.reconcile.publication import Reconciling
from headrace.core import Clock, FailedPreconditionError, SystemClock
from headrace.core.gateways import MAX_BEHIND_S

_LOG: Final = logging.getLogger("headrace.control")
_HEALTH: Final = "/api/v1/health"
_READ_TIMEOUT_S: Final = 5.0
_MAX_HEAD: Final = 16 << 10


@dataclass(slots=True, kw_only=True)
class ClusterMembership:
    """A control plane's membership in a cluster: its Lease, connection and object settings."""

    api: ClusterApi
    elector: Elector
    installation: InstallationName
    _electing: asyncio.Task[None] = field(init=False)

    def begin(self) -> None:
        """Run for election until `close`."""
        self._electing = asyncio.create_task(self.elector.run())

    def reconciler(
        self, publisher: RoutePublisher, clock: Clock, emit: Emit, faults: Faults
    ) -> Reconciling:
        """Return the reconciler of the cluster; `emit` stores its events."""
        return KubernetesReconciler(
            api=self.api,
            publisher=publisher,
            clock=clock,
            installation=self.installation,
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
            asyncio.create_task(self.elector.elected.wait()),
            asyncio.create_task(stopped.wait()),
        }
        await asyncio.wait({*waits, self._electing}, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._electing.done():
            self._electing.result()
        return self.elector.is_leading() and not stopped.is_set()

    async def close(self) -> None:
        """Release the Lease, and close all connections."""
        self._electing.cancel()
        await asyncio.wait({self._electing})
        await self.elector.resign()
        await self.api.http.aclose()


async def stand_by(
    settings: ControlSettings, cluster: ClusterSettings, stopped: asyncio.Event
) -> ClusterMembership | None:
    """Return the membership once this control plane leads; None if `stopped` is set first.

    Raises:
        FailedPreconditionError: The cluster cannot be reached, or the owner does not exist.
        HeadraceError: The API server denies access to the owner.
    """
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request
    identity = cluster.identity or socket.gethostname()
    http = connect(identity=identity, url=cluster.url, context=cluster.context)
    api = ClusterApi(http=http, namespace=cluster.namespace)
    try:
        owner = await find_owner(api, cluster.owner) if cluster.owner else None
    except BaseException:
        await http.aclose()
        raise
    installation = InstallationName(
        namespace=cluster.namespace,
        instance=cluster.instance,
        artifacts_url=settings.artifacts,
        internal_secret=cluster.internal_secret,
        owner=owner,
        drain_timeout_s=settings.drain_timeout_s,
        max_behind_s=MAX_BEHIND_S if settings.agents is None else settings.agents.max_behind_s,
        log_format=settings.log_format,
    )
    elector = Elector(
        api=api,
        installation=installation,
        identity=identity,
        clock=SystemClock(),
        times=lease_times(cluster.lease_s),
    )
    membership = ClusterMembership(api=api, elector=elector, installation=installation)
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


async def find_owner(api: ClusterApi, reference: str) -> OwnerObject:
    """Return the object `KIND/NAME`, whose deletion deletes our objects.

    Raises:
        InvalidArgumentError: The kind is not supported.
        FailedPreconditionError: The object does not exist.
    """
    check_owner(reference)
    kind, _, name = reference.partition("/")
    owner = await api.get(kind, name)
    if owner is None:
        raise FailedPreconditionError(
            f"--owner {reference}: not found in namespace {api.namespace}"
        )
    uid = str(owner["metadata"]["uid"])
    return OwnerObject(api_version=RESOURCES[kind].api_version, kind=kind, name=name, uid=uid)


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
    by = f"{leader} leads" if leader else "no control plane leads yet"
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
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.admin_tls.certificate_file, settings.admin_tls.key_file)
    except (OSError, ssl.SSLError) as error:
        raise FailedPreconditionError(
            f"cannot use {settings.admin_tls.certificate_file} for the management API: {error}"
        ) from error
    return context
