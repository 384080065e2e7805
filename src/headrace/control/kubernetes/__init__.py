"""Replicas as pods, their reconciler, and the resource `Endpoint`. Imports `desired` and below.

`objects_of` and its helpers are pure, and also render charts and manifests; the driver is imported
only where it is configured.
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
