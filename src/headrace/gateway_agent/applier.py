"""Applier of bundles: activates them, returns to the last valid one, stores it for a restart."""

import asyncio
import gzip
import hashlib
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.agents.messages import (
    MAX_BUNDLE_BYTES,
    Bundle,
    Secret,
    SharedDirectory,
    decode_bundle,
    with_version,
)
from headrace.control.agents.tls import MutualTls
from headrace.control.base.ownership import ProcessOwner
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.control.gateway.tls import pem_secret
from headrace.control.local.sandbox import Sandbox, without_root
from headrace.core import Clock, FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.core.files import write_atomic
from headrace.gateway import EnvoyGateway, EnvoySettings, SecretFiles, SnapshotRejectedError
from headrace.gateway.resources import Resource
from headrace.gateway.tls import (
    LIMITS_TLS,
    api_key_secret,
    authorities_name,
    authorities_secret,
    certificate_name,
    certificate_secret,
)
from headrace.gateway_agent.settings import AgentSettings, gateway_settings

_LOG: Final = logging.getLogger("headrace.gateway")
_UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class BundleStore:
    """File with the active bundle, mode 0600 as it has private keys; its first line is a digest."""

    path: Path
    fallback: Path | None = None
    """Copy of the bundle of all gateways, compressed, for a gateway that never had one."""

    def read_fallback(self) -> Bundle | None:
        """Return the bundle of `fallback`; None if it is missing or damaged. Blocking."""
        if self.fallback is None:
            return None
        try:
            with gzip.open(self.fallback) as file:
                return checked(decode_bundle(file.read(MAX_BUNDLE_BYTES + 1)))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error, InvalidArgumentError) as error:
            extra = {"path": str(self.fallback), "error": str(error)}
            _LOG.error("cannot read the fallback configuration", extra=extra)
            return None

    def read(self) -> Bundle | None:
        """Return the stored bundle; None if it is missing or damaged. Blocking."""
        try:
            with self.path.open("rb") as file:
                return _decode(file.read(MAX_BUNDLE_BYTES + 1))
        except FileNotFoundError:
            return None
        except (OSError, InvalidArgumentError) as error:
            extra = {"path": str(self.path), "error": str(error)}
            _LOG.error("cannot read the stored configuration", extra=extra)
            return None

    def write(self, bundle: Bundle) -> None:
        """Store the bundle durably. Blocking.

        Raises:
            OSError: The disk is full; the previous bundle is unchanged.
        """
        data = msgspec.json.encode(bundle)
        write_atomic(self.path, b"%b\n%b" % (_digest(data), data), mode=0o600)


def checked(bundle: Bundle) -> Bundle:
    """Return `bundle` if its version matches its content.

    Raises:
        InvalidArgumentError: The bundle was damaged in transit.
    """
    if with_version(bundle).version != bundle.version:
        raise InvalidArgumentError("the content does not match its version")
    return bundle


def _decode(content: bytes) -> Bundle:
    digest, _, data = content.partition(b"\n")
    if digest != _digest(data):
        raise InvalidArgumentError("the stored configuration is damaged")
    return decode_bundle(data)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


@dataclass(slots=True, kw_only=True)
class Applier:
    """Applies bundles to the agent's one Envoy. Not safe for concurrent tasks."""

    settings: AgentSettings
    """Settings of the agent."""
    run_dir: Path
    """Directory of Envoy."""
    control_socket: Path
    """Socket for requests that only the control plane can answer."""
    store: BundleStore
    """File with the active bundle."""
    tls: MutualTls
    """Client certificate for the rate limit service."""
    clock: Clock
    """Time source."""
    sandbox: Sandbox
    """Sandbox of Envoy, if this process is root."""
    supervisor: EnvoySupervisor | None = None
    """Supervisor of Envoy; None before the first bundle."""
    in_force: Bundle | None = None
    """Active bundle."""
    refused: str = ""
    """Version of the last rejected bundle, while the control plane may offer it again."""
    reason: str = ""
    """Reason why that bundle was rejected."""
    is_refusing: bool = False
    """Whether the newest bundle was rejected."""
    problem: str = ""
    """Reason why the newest bundle cannot be applied, or Envoy does not start; empty if neither."""
    group: asyncio.TaskGroup | None = None
    """Task group of the supervisor; set before the first bundle is applied."""
    _running: asyncio.Task[None] | None = None
    _is_stored: bool = True

    @property
    def is_ready(self) -> bool:
        """Whether Envoy serves a bundle."""
        return (
            self.in_force is not None and self.supervisor is not None and self.supervisor.is_ready
        )

    async def restore(self, *, may_fall_back: bool = False) -> None:
        """Serve the stored bundle, if there is one.

        Args:
            may_fall_back: Whether to serve the copy of others if none is stored.

        Raises:
            HeadraceError: Envoy does not start with it.
        """
        bundle = await asyncio.to_thread(self.store.read)
        if bundle is None and may_fall_back:
            bundle = await asyncio.to_thread(self.store.read_fallback)
        if bundle is None:
            return
        await self._start_envoy(bundle)
        _LOG.info("serving the stored configuration", extra={"version": bundle.version})

    async def apply(self, bundle: Bundle) -> None:
        """Apply `bundle`; return when Envoy serves it, or the previous bundle if Envoy rejects it.

        Raises:
            HeadraceError: The bundle cannot be applied for a reason outside of it.
        """
        checked(bundle)
        try:
            _check_addresses(bundle)
            await self._activate(bundle)
        except (InvalidArgumentError, UnreachableError) as error:
            self.reason = error.reason if isinstance(error, SnapshotRejectedError) else str(error)
            self.refused, self.is_refusing = bundle.version, True
            extra = {"version": bundle.version, "error": self.reason}
            _LOG.error("rejected a version; the previous version stays active", extra=extra)
            await self._roll_back()
        else:
            self.problem, self.is_refusing = "", False
            await asyncio.to_thread(self._store, bundle)
            _LOG.info("serving", extra={"version": bundle.version, "routes": len(bundle.routes)})

    async def retry_store(self) -> None:
        """Store the active bundle if storing it failed before."""
        if self.in_force is not None and not self._is_stored:
            await asyncio.to_thread(self._store, self.in_force)

    def _store(self, bundle: Bundle) -> None:
        try:
            self.store.write(bundle)
        except OSError as error:
            self._is_stored = False
            self.problem = f"cannot store the active configuration: {error}"
            _LOG.error("cannot store the active configuration", extra={"error": str(error)})
        else:
            self._is_stored, self.problem = True, ""

    async def _activate(self, bundle: Bundle) -> None:
        supervisor = self.supervisor
        is_kept = supervisor is not None and self._running is not None
        if supervisor is None or not is_kept or self._settings_for(bundle) != supervisor.settings:
            await self._start_envoy(bundle)
            return
        await self._write_secrets(supervisor.secrets, bundle)
        await self._publish(supervisor, bundle)

    async def _publish(self, supervisor: EnvoySupervisor, bundle: Bundle) -> None:
        supervisor.policy = bundle.policy
        await supervisor.publish(bundle.routes)
        self.in_force = bundle
        await asyncio.to_thread(supervisor.secrets.keep_only, self._secret_names(bundle))

    async def _roll_back(self) -> None:
        """Write the active bundle's files again, so that a restart of Envoy serves it."""
        before = self.in_force
        if before is None:
            return
        try:
            await self._activate(before)
        except HeadraceError as error:
            self.problem = f"cannot return to the previous version: {error}"
            _LOG.error("cannot return to the previous version", extra={"error": str(error)})

    async def _start_envoy(self, bundle: Bundle) -> None:
        """Run an Envoy with this bundle's options: adopt the running one if possible."""
        supervisor = EnvoySupervisor(
            envoy=EnvoyGateway(self._settings_for(bundle)),
            owner=ProcessOwner.of(self.settings.dir, sockets=self.run_dir),
            record_path=self.run_dir.parent / "gateway.json",
            routes_path=self.run_dir.parent / "routes.json",
            clock=self.clock,
            policy=bundle.policy,
        )
        await self._stop_watching()
        for secret in self._secrets(bundle):
            await asyncio.to_thread(supervisor.secrets.write, secret)
        await supervisor.open(bundle.routes)
        if self.supervisor is not None:
            supervisor.restarts = self.supervisor.restarts
        self.supervisor = supervisor
        assert self.group is not None, "bundles are applied inside a group"
        self._running = self.group.create_task(supervisor.run())
        # An adopted Envoy may have an older configuration.
        await self._publish(supervisor, bundle)

    async def _stop_watching(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None

    async def _write_secrets(self, files: SecretFiles, bundle: Bundle) -> None:
        for secret in self._secrets(bundle):
            await files.put(secret)

    async def renew(self) -> None:
        """Publish this gateway's current certificate to Envoy."""
        if self.supervisor is not None and self.in_force is not None:
            await self._write_secrets(self.supervisor.secrets, self.in_force)

    def _secrets(self, bundle: Bundle) -> Iterable[Resource]:
        yield from (_resource(secret) for secret in bundle.secrets)
        if bundle.options.limits_port is not None:
            yield from _own_secrets(self.tls)

    def _secret_names(self, bundle: Bundle) -> list[str]:
        return [str(secret["name"]) for secret in self._secrets(bundle)]

    def _settings_for(self, bundle: Bundle) -> EnvoySettings:
        settings = gateway_settings(
            self.settings,
            bundle.options,
            run_dir=self.run_dir,
            control_socket=self.control_socket,
        )
        shared = bundle.sockets
        sockets = [shared.path] if shared is not None and _is_same_directory(shared) else []
        return without_root(settings, self.sandbox, sockets=sockets)

    async def stop(
        self, *, drain_s: float, drained: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Drain and stop Envoy, or leave it to the next agent, depending on the settings."""
        await self._stop_watching()
        if self.supervisor is not None and not self.settings.keeps_envoy:
            await self.supervisor.stop(drain_s=drain_s, drained=drained)


class UnreachableError(FailedPreconditionError):
    """Replicas listen on sockets of another host."""


def _check_addresses(bundle: Bundle) -> None:
    """Raise UnreachableError if replicas have no address that this host reaches."""
    local = [
        route.name
        for route in bundle.routes
        if any(address.startswith(_UNIX) for arm in route.arms for address in arm.replicas)
    ]
    if local and not _is_same_directory(bundle.sockets):
        names = ", ".join(f"'{name}'" for name in local[:5])
        more = f" and {len(local) - 5} more" if len(local) > 5 else ""  # noqa: PLR2004  # as above
        raise UnreachableError(
            f"replicas of {names}{more} listen on Unix sockets of the control plane's host, which "
            "this gateway cannot reach: run them with network addresses (--driver kubernetes, "
            "or headrace serve with an `upstream` in the spec)"
        )


def _is_same_directory(shared: SharedDirectory | None) -> bool:
    if shared is None:
        return False
    try:
        status = Path(shared.path).stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (shared.device, shared.inode)


def _resource(secret: Secret) -> Resource:
    if secret.key and not secret.certificates:
        return api_key_secret(secret.name, secret.key)
    if secret.key:
        return certificate_secret(secret.name, chain=secret.certificates, key=secret.key)
    return authorities_secret(secret.name, secret.certificates)


def _own_secrets(tls: MutualTls) -> Iterable[Resource]:
    """Yield the secrets of the connection to the control plane's rate limit service."""
    if tls.authorities is not None:
        yield pem_secret(authorities_name(LIMITS_TLS), tls.authorities)
    if tls.pair is not None:
        yield pem_secret(certificate_name(LIMITS_TLS), tls.pair)
