"""What is wrong between limits that may each be right: tiers, bodies, addresses of services."""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from headrace.core.priorities import MOST_ABOVE, MOST_BELOW
from headrace.core.settings import DEFAULT_MAX_BODY_BYTES


def limit_disagreements(document: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Place and message of each mistake in a raw document, whatever it holds."""
    gateway = document.get("gateway")
    gateway = gateway if isinstance(gateway, Mapping) else {}
    yield from _tiers(document.get("tiers"))
    yield from _bodies(document.get("endpoints"), gateway.get("max_body_bytes"))
    yield from _addresses(gateway)


def _tiers(tiers: object) -> Iterator[tuple[str, str]]:
    found = [tier for tier in _items(tiers) if isinstance(tier, Mapping)]
    first_use: dict[str, int] = {}
    for i, tier in enumerate(found):
        name = tier.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            yield f"tiers[{i}].name", f"{name!r} is already the name of tiers[{first_use[name]}]"
    given = {p for tier in found if isinstance(p := tier.get("priority"), int)}
    above = sum(priority > 0 for priority in given)
    below = sum(priority < 0 for priority in given)
    for count, most, where in ((above, MOST_ABOVE, "above"), (below, MOST_BELOW, "below")):
        if count > most:
            yield "tiers", f"have {count} different priorities {where} 0; {most} can be told apart"


def _bodies(endpoints: object, gateways: object) -> Iterator[tuple[str, str]]:
    limit = gateways if isinstance(gateways, int) else DEFAULT_MAX_BODY_BYTES
    for i, endpoint in enumerate(_items(endpoints)):
        limits = endpoint.get("limits") if isinstance(endpoint, Mapping) else None
        wanted = limits.get("max_body_bytes") if isinstance(limits, Mapping) else None
        if isinstance(wanted, int) and wanted > limit:
            message = f"is {wanted}, more than gateway.max_body_bytes ({limit}): raise that as well"
            yield f"endpoints[{i}].limits.max_body_bytes", message


def _addresses(gateway: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """A service is not encrypted: only this machine's processes may reach it."""
    for key in ("limits_service", "limits_listen"):
        address = gateway.get(key)
        if isinstance(address, str) and not _is_local(address):
            message = f"is {address!r}, neither unix:/path nor an address of this machine's own"
            yield f"gateway.{key}", f"{message}, such as 127.0.0.1:9090"
    if gateway.get("limits_service") and gateway.get("limits_listen"):
        message = "and 'limits_service' exclude each other: who asks another service has none"
        yield "gateway.limits_listen", message


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return address.startswith("unix:/")
    host, _, port = address.rpartition(":")
    try:
        is_loopback = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
    return is_loopback and port.isdigit() and 0 < int(port) <= 65535  # noqa: PLR2004  # the last port


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
