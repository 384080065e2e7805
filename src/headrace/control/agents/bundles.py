"""Bundles: complete gateway configurations, including secrets."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.control.agents.messages import (
    Bundle,
    GatewayOptions,
    Secret,
    SharedDirectory,
    with_version,
)
from headrace.control.gateway.activator import HoldLimits
from headrace.control.model.desired import POOL_PREFIX
from headrace.gateway import EndpointRoute, EnvoySettings, GatewayPolicy, SecretFiles
from headrace.gateway.resources import Resource


@dataclass(slots=True, kw_only=True)
class SharedSecrets:
    """Secrets of all gateways."""

    local: SecretFiles | None = None
    """Secret files of the gateway on this host; None without one."""
    on_change: Callable[[], None] = lambda: None
    """Called when gateways on other hosts need the new secrets."""
    _known: dict[str, Secret] = field(default_factory=dict)

    def all(self) -> tuple[Secret, ...]:
        """Return all secrets in the form that gateways receive."""
        return tuple(secret for _, secret in sorted(self._known.items()))

    def write(self, secret: Resource) -> None:
        """Store a secret where a starting gateway finds it. Blocking."""
        if self.local is not None:
            self.local.write(secret)
        self._take(secret)

    def has(self, name: str) -> bool:
        """Whether a secret with this name is in force."""
        return name in self._known or (self.local is not None and self.local.has(name))

    async def put(self, secret: Resource) -> None:
        """Store a secret; return once the local gateway uses it, and notify other gateways.

        Raises:
            HeadraceError: See `SecretFiles.put`.
        """
        if self.local is not None:
            await self.local.put(secret)
        self._take(secret)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all other secrets. Blocking."""
        if self.local is not None:
            self.local.keep_only(names)
        for name in self._known.keys() - set(names):
            del self._known[name]

    def _take(self, resource: Resource) -> None:
        secret = secret_of(resource)
        if self._known.get(secret.name) != secret:
            self._known[secret.name] = secret
            self.on_change()


def secret_of(resource: Resource) -> Secret:
    """Return an Envoy secret in the form that gateways receive."""
    secret: dict[str, Any] = dict(resource)
    name = str(secret["name"])
    if "validation_context" in secret:
        authorities = secret["validation_context"]["trusted_ca"]["inline_string"]
        return Secret(name=name, certificates=authorities)
    if "generic_secret" in secret:
        return Secret(
            name=name, certificates="", key=secret["generic_secret"]["secret"]["inline_string"]
        )
    pair = secret["tls_certificate"]
    return Secret(
        name=name,
        certificates=pair["certificate_chain"]["inline_string"],
        key=pair["private_key"]["inline_string"],
    )


def make_bundle(
    settings: EnvoySettings,
    routes: Iterable[EndpointRoute],
    policy: GatewayPolicy,
    *,
    secrets: Sequence[Secret],
    limits_port: int | None,
    socket_dir: Path | None,
) -> Bundle:
    """Return the bundle for all gateways, with its version; it has callers' routes and no pools."""
    sockets = None
    if socket_dir is not None:
        status = socket_dir.stat()
        sockets = SharedDirectory(path=str(socket_dir), device=status.st_dev, inode=status.st_ino)
    named = tuple(route for route in routes if not route.name.startswith(POOL_PREFIX))
    return with_version(
        Bundle(
            version="",
            options=options_of(settings, limits_port=limits_port),
            routes=named,
            policy=policy,
            secrets=tuple(secrets),
            holds={
                route.name: HoldLimits(max_held=route.max_held, hold_s=route.hold_s)
                for route in named
                if route.held
            },
            sockets=sockets,
        )
    )


def options_of(settings: EnvoySettings, *, limits_port: int | None) -> GatewayOptions:
    """Return the options that all gateways share."""
    is_here = (settings.limits_address or "").startswith("unix:")  # no other host reaches it
    return GatewayOptions(
        max_body_bytes=settings.max_body_bytes,
        connections=settings.connections,
        cors=settings.cors,
        access_log=settings.access_log,
        request_log=settings.request_log,
        tracing=settings.tracing,
        tls=settings.tls,
        limits_port=limits_port,
        limits_address=None if limits_port or is_here else settings.limits_address,
    )
