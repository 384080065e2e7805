"""What does a gateway need to serve? Everything in one message."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from headrace.control.activator import HoldLimits
from headrace.control.agents.messages import (
    Bundle,
    GatewayOptions,
    Secret,
    Shared,
    with_version,
)
from headrace.control.desired import POOL_PREFIX
from headrace.control.observed import Route
from headrace.gateway import GatewayPolicy, GatewaySettings


def make_bundle(
    settings: GatewaySettings,
    routes: Iterable[Route],
    policy: GatewayPolicy,
    *,
    secrets: Sequence[Secret],
    limits_port: int | None,
    max_held_of: Callable[[str], int],
    socket_dir: Path | None,
) -> Bundle:
    """The bundle for all gateways, with its version: what callers can name, and no pools."""
    named = tuple(route for route in routes if not route.name.startswith(POOL_PREFIX))
    return with_version(
        Bundle(
            version="",
            options=options_of(settings, limits_port=limits_port),
            routes=named,
            policy=policy,
            secrets=tuple(secrets),
            holds={
                route.name: HoldLimits(max_held=max_held_of(route.name), hold_s=route.hold_s)
                for route in named
                if route.held
            },
            sockets=None if socket_dir is None else _shared(socket_dir),
        )
    )


def options_of(settings: GatewaySettings, *, limits_port: int | None) -> GatewayOptions:
    """What all gateways have in common."""
    return GatewayOptions(
        max_body_bytes=settings.max_body_bytes,
        max_connections=settings.max_connections,
        idle_timeout_s=settings.idle_timeout_s,
        headers_timeout_s=settings.headers_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        max_memory_bytes=settings.max_memory_bytes,
        access_log=settings.access_log,
        request_log=settings.request_log,
        tracing=settings.tracing,
        tls=settings.tls,
        limits_port=limits_port,
        limits_address=None if limits_port else _elsewhere(settings.limits_address),
    )


def _elsewhere(address: str | None) -> str | None:
    """A service that every host can reach."""
    return None if address is None or address.startswith("unix:") else address


def _shared(directory: Path) -> Shared:
    status = directory.stat()
    return Shared(path=str(directory), device=status.st_dev, inode=status.st_ino)
