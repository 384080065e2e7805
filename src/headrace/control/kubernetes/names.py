"""Names and labels of our objects in a cluster."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.control.model.desired import Revision
from headrace.core import InvalidArgumentError
from headrace.core.gateways import MAX_BEHIND_S

FIELD_MANAGER: Final = "headrace"
GROUP: Final = "headrace.dev"
"""API group of the resource that defines endpoints."""
RESOURCE: Final = "Endpoint"
RESOURCE_VERSION: Final = "v1alpha1"
RESOURCE_PLURAL: Final = "endpoints"
FINALIZER: Final = "headrace.dev/endpoint"
"""Keeps a deleted resource until its endpoint is removed."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
ENDPOINT: Final = "headrace.dev/endpoint"
VERSION: Final = "headrace.dev/version"
REVISION: Final = "headrace.dev/revision"
REVISION_ID: Final = "headrace.dev/revision-id"
MODEL: Final = "headrace.dev/model"
ROLE: Final = "headrace.dev/role"
"""Label of the leader's pod, which the control plane's Service selects."""
LEADER: Final = "leader"
SETTINGS_DIGEST: Final = "headrace.dev/settings"
APPLIED: Final = "headrace.dev/applied"
"""Annotation with the digest of the last applied manifest, which detects removed fields."""

_MOST: Final = 63
_MAX_NAME: Final = 57
"""Longest name. Kubernetes keeps 58 characters of a pod's name and adds five, so the pod's name
begins with the Deployment's name and a dash, which Prometheus queries for a revision's pods use."""
_INSTANCE: Final = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_OWNERS: Final = frozenset({"Deployment", "ConfigMap", "ServiceAccount"})
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

Object = dict[str, Any]
"""A Kubernetes object as JSON has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerObject:
    """One owner of our objects. Kubernetes deletes them when none of their owners exists."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationName:
    """Namespace of objects, and the name of the installation in it."""

    namespace: str
    instance: str = "headrace"
    artifacts_url: str = ""
    """URL from which pods fetch models."""
    internal_secret: str = ""
    """Secret whose `token` authenticates the control plane at replicas."""
    image_registry: str = ""
    """Prefix of the names of our images, such as `registry.example/ml`; empty for none."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets for pulling images, besides those of the spec."""
    store_secret: str = ""
    """Secret whose keys are the variables of the artifact store; empty for none."""
    is_platform_uid: bool = False
    """Whether the platform sets the user of pods, as OpenShift does."""
    owners: tuple[OwnerObject, ...] = ()
    """Owners of all objects; without any they stay when the control plane is uninstalled."""
    drain_timeout_s: float = 30.0
    max_behind_s: float = MAX_BEHIND_S
    """Seconds for which a gateway may send requests to a terminating pod."""
    log_format: str = "json"


def name_of(revision: Revision, *, instance: str = "headrace") -> str:
    """Return the name of all objects of a revision: a unique DNS label.

    A long endpoint name is cut; the revision's id is a digest that covers it.
    """
    return revision_name(revision.endpoint, revision.version, revision.id, instance=instance)


def revision_name(endpoint: str, version: str, id_: str, *, instance: str = "headrace") -> str:
    """Return the result of `name_of` from the parts of a revision."""
    suffix = f"-{version}-{id_[:8]}"
    stem = re.sub(r"[^a-z0-9]+", "-", f"{instance}-{endpoint}".lower())
    return f"{stem[: _MAX_NAME - len(suffix)].strip('-')}{suffix}"


def labels_of(revision: Revision, *, instance: str = "headrace") -> dict[str, str]:
    """Return the labels of all objects of a revision, including pods."""
    return {
        "app.kubernetes.io/name": "headrace",
        INSTANCE: instance,
        COMPONENT: "replica",
        MANAGED_BY: "headrace",
        ENDPOINT: label_value(revision.endpoint),
        VERSION: label_value(revision.version),
        REVISION: revision.id[:12],
    }


def selector_of(revision: Revision, *, instance: str = "headrace") -> dict[str, str]:
    """Return the selector labels of a revision's pods, which are immutable."""
    labels = labels_of(revision, instance=instance)
    return {key: labels[key] for key in ("app.kubernetes.io/name", INSTANCE, COMPONENT, REVISION)}


def owned_by(installation: InstallationName) -> Object:
    """Return the metadata field with the owners of an object; no field without owners."""
    references = [
        {
            "apiVersion": owner.api_version,
            "kind": owner.kind,
            "name": owner.name,
            "uid": owner.uid,
            "controller": False,
            "blockOwnerDeletion": False,
        }
        for owner in installation.owners
    ]
    return {"ownerReferences": references} if references else {}


def control_metadata(name: str, installation: InstallationName) -> Object:
    """Return the metadata of an object of the control plane itself."""
    return {
        **owned_by(installation),
        "name": name,
        "namespace": installation.namespace,
        "labels": {
            "app.kubernetes.io/name": "headrace",
            INSTANCE: installation.instance,
            COMPONENT: "control",
            MANAGED_BY: "headrace",
        },
    }


def leader_selector(instance: str) -> str:
    """Return the label selector of the leader's pod."""
    return f"{INSTANCE}={instance},{COMPONENT}=control,{ROLE}={LEADER}"


def instance_selector(instance: str) -> str:
    """Return the label selector of all objects of an installation's replicas."""
    return f"{INSTANCE}={instance},{COMPONENT}=replica"


def check_instance(name: str) -> None:
    """Check an instance name; InvalidArgumentError if object names cannot begin with it."""
    if _INSTANCE.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"instance {name[:80]!r}: 1 to 40 small letters, digits and dashes, beginning with a "
            "letter and not ending with a dash"
        )


def check_namespace(name: str) -> None:
    """Check a namespace name; InvalidArgumentError if it is not valid."""
    if _NAMESPACE.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"namespace {name[:80]!r}: 1 to 63 small letters, digits and dashes, a letter or digit "
            "at both ends"
        )


def check_api_url(url: str) -> None:
    """Check the URL of an API server; InvalidArgumentError if it is not valid."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise InvalidArgumentError(f"'{url[:200]}' is not http[s]://HOST[:PORT]")


def check_owner(reference: str) -> None:
    """Check the reference of an owner; InvalidArgumentError if it cannot own objects."""
    kind, _, name = reference.partition("/")
    if kind not in _OWNERS or not name:
        raise InvalidArgumentError(
            f"'{reference[:200]}' is not Deployment/NAME, ConfigMap/NAME or ServiceAccount/NAME, "
            "of the same namespace"
        )


def label_value(text: str) -> str:
    """Return `text` if it is a valid label value; else its valid characters and a digest."""
    if _LABEL.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_.-]", "-", text)[: _MOST - 9].strip("-_.")
    return f"{readable}-{digest}" if readable else digest
