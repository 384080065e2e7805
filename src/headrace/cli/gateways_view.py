"""What `headrace status` says of gateways on other hosts."""

from typing import Any


def gateway_lines(document: dict[str, Any]) -> list[str]:
    """A line for each that follows."""
    return [
        f"gateway '{one['name']}': {one['standing']}, version {one['version'] or 'none'}, heard "
        f"{one['seen_s']:.1f} s ago{_reached(one)}"
        for one in _gateways(document)
        if not _trouble(one)
    ]


def gateway_troubles(document: dict[str, Any]) -> list[str]:
    """A line for each that does not, and for having none at all."""
    gateway = document.get("gateway", {})
    lines = [f"gateway '{one['name']}': {_trouble(one)}" for one in _gateways(document)]
    found = [line for line in lines if not line.endswith(": ")]
    if not found and gateway.get("reason"):
        found = [f"gateway: {gateway['reason']}"]
    return found


def _gateways(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document.get("gateway", {}).get("gateways", [])
    return found


def _trouble(one: dict[str, Any]) -> str:
    """What is wrong with one; empty if nothing is."""
    why = f": {one['reason']}" if one["reason"] else ""
    match one["standing"]:
        case "behind":
            return f"behind by {one['behind_s']:,.0f} s{why}"
        case "lost":
            return f"not heard for {one['seen_s']:,.0f} s"
        case "refused":
            return f"refused the newest version{why}"
        case _:
            return "" if one["ready"] else f"does not serve{why}"


def _reached(one: dict[str, Any]) -> str:
    return f", {one['url']}" if one["url"] else ""
