"""What may the control plane do in its namespace? Exactly what its client does, as data.

The chart makes a Role of it; a test drives the driver and checks that no other verb was needed.
"""

from typing import Final

from headrace.control.kubernetes.names import Object
from headrace.core.spec_kubernetes import Autoscaler

_APPLIED: Final = ("get", "list", "watch", "create", "patch", "delete")


def role_rules(autoscaler: Autoscaler | None = None) -> list[Object]:
    """The rules of a Role; with those of every choice of autoscaler if None."""
    rules = [
        _rule("", ("configmaps", "services"), _APPLIED),
        _rule("apps", ("deployments",), _APPLIED),
        _rule("policy", ("poddisruptionbudgets",), _APPLIED),
        # Pods are made by their Deployment: we look, and say which one may go first.
        _rule("", ("pods",), ("list", "watch", "patch")),
        _rule("discovery.k8s.io", ("endpointslices",), ("list", "watch")),
        _rule("coordination.k8s.io", ("leases",), ("get", "create", "update")),
    ]
    if autoscaler in {None, Autoscaler.HPA}:
        rules.append(_rule("autoscaling", ("horizontalpodautoscalers",), _APPLIED))
    if autoscaler in {None, Autoscaler.KEDA}:
        rules.append(_rule("keda.sh", ("scaledobjects",), _APPLIED))
    return rules


def allows(rules: list[Object], *, group: str, resource: str, verb: str) -> bool:
    """Whether `rules` allow `verb`."""
    return any(
        group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
        for rule in rules
    )


def _rule(group: str, resources: tuple[str, ...], verbs: tuple[str, ...]) -> Object:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
