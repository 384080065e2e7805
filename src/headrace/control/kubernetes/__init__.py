"""Replicas as pods: Kubernetes objects and their reconciler. Imports `reconcile` and below.

`objects_of` and what belongs to it are pure, and meant for whoever renders charts and manifests as
well; the driver is loaded only where it is chosen.
"""

from headrace.control.kubernetes.api import role_rules
from headrace.control.kubernetes.manifests import objects_of, settings_in
from headrace.control.kubernetes.names import (
    InstallationName,
    OwnerObject,
    labels_of,
    name_of,
    selector_of,
)

__all__ = [
    "InstallationName",
    "OwnerObject",
    "labels_of",
    "name_of",
    "objects_of",
    "role_rules",
    "selector_of",
    "settings_in",
]
