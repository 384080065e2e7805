"""What does an API server fill in? A part of it: enough that drift is told from defaults."""

import copy
import re
from decimal import Decimal
from typing import Any, Final

Object = dict[str, Any]
_PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")
_CPU: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m?)")


def with_defaults(one: Object) -> Object:
    """A copy of `one` with what the server says where nothing was said, and empty strings gone."""
    result: Object = copy.deepcopy(one)
    spec = result.get("spec") or {}
    match result["kind"]:
        case "Deployment":
            spec.setdefault("replicas", 1)
            spec.setdefault("revisionHistoryLimit", 10)
            _pod(spec["template"]["spec"])
        case "Pod":
            _pod(spec)
        case "Service":
            for port in spec.get("ports", ()):
                port.setdefault("protocol", "TCP")
            for key, value in (
                ("type", "ClusterIP"),
                ("sessionAffinity", "None"),
                ("internalTrafficPolicy", "Cluster"),
                ("clusterIPs", [spec.get("clusterIP", "10.0.0.1")]),
            ):
                spec.setdefault(key, value)
        case _:
            pass
    return result


def _pod(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    for volume in spec.get("volumes", ()):
        for kind in ("configMap", "secret"):
            if kind in volume:
                volume[kind].setdefault("defaultMode", 420)
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        _container(container)


def _container(container: Object) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("imagePullPolicy", "IfNotPresent")
    for variable in container.get("env", ()):
        if variable.get("value") == "":
            del variable["value"]
    for kind in ("requests", "limits"):
        amounts = container.get("resources", {}).get(kind, {})
        if "cpu" in amounts:
            amounts["cpu"] = _canonical_cpu(amounts["cpu"])
    for probe in (container[name] for name in _PROBES if name in container):
        probe.setdefault("successThreshold", 1)
        probe.setdefault("failureThreshold", 3)
        if "httpGet" in probe:
            probe["httpGet"].setdefault("scheme", "HTTP")


def _canonical_cpu(quantity: str) -> str:
    """`1000m` as `1`, `0.5` as `500m`."""
    found = _CPU.fullmatch(quantity)
    if found is None:
        return quantity
    millis = Decimal(found[1]) * (1 if found[2] else 1000)
    return f"{millis // 1000}" if millis % 1000 == 0 else f"{millis:f}m".replace(".0m", "m")
