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
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
ENDPOINT: Final = "headrace.dev/endpoint"
VERSION: Final = "headrace.dev/version"
REVISION: Final = "headrace.dev/revision"
REVISION_ID: Final = "headrace.dev/revision-id"
MODEL: Final = "headrace.dev/model"
SETTINGS_DIGEST: Final = "headrace.dev/settings"
APPLIED: Final = "headrace.dev/applied"
"""Digest of what we last applied: fields that we no longer say are found by it."""

_MOST: Final = 63
_MOST_NAME: Final = 57
"""Of a pod's name Kubernetes keeps 58 characters and adds five: so it begins with the Deployment's
name and a dash, by which Prometheus is asked for the pods of one revision."""
_INSTANCE: Final = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_OWNERS: Final = frozenset({"Deployment", "ConfigMap"})
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

Object = dict[str, Any]
"""A Kubernetes object as JSON has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerObject:
    """The object whose end takes ours with it: the control plane's own Deployment."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationName:
    """Where objects go: a namespace, and the name of the installation in it."""

    namespace: str
    instance: str = "headrace"
    artifacts_url: str = ""
    """From where pods fetch models."""
    internal_secret: str = ""
    """The Secret by whose `token` the control plane shows replicas who it is."""
    owner: OwnerObject | None = None
    """None leaves objects when it is uninstalled."""
    drain_timeout_s: float = 30.0
    max_behind_s: float = MAX_BEHIND_S
    """How long a gateway may go on sending requests to a pod that leaves."""
    log_format: str = "json"


def name_of(revision: Revision, *, instance: str = "headrace") -> str:
    """What all objects of a revision are called: a DNS label, and one that tells revisions apart.

    The endpoint's name is cut where there is no room; the revision's id is a digest of it too.
    """
    return revision_name(revision.endpoint, revision.version, revision.id, instance=instance)


def revision_name(endpoint: str, version: str, id_: str, *, instance: str = "headrace") -> str:
    """As `name_of`, of a revision whose id is all that is known."""
    suffix = f"-{version}-{id_[:8]}"
    stem = re.sub(r"[^a-z0-9]+", "-", f"{instance}-{endpoint}".lower())
    return f"{stem[: _MOST_NAME - len(suffix)].strip('-')}{suffix}"


def labels_of(revision: Revision, *, instance: str = "headrace") -> dict[str, str]:
    """The labels of all objects of a revision, pods too."""
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
    """The labels by which pods of a revision are found; they can never change."""
    labels = labels_of(revision, instance=instance)
    return {key: labels[key] for key in ("app.kubernetes.io/name", INSTANCE, COMPONENT, REVISION)}


def control_metadata(name: str, installation: InstallationName) -> Object:
    """The metadata of an object of the control plane itself."""
    return {
        "name": name,
        "namespace": installation.namespace,
        "labels": {
            "app.kubernetes.io/name": "headrace",
            INSTANCE: installation.instance,
            COMPONENT: "control",
            MANAGED_BY: "headrace",
        },
    }


def instance_selector(instance: str) -> str:
    """The query for all objects of an installation's replicas."""
    return f"{INSTANCE}={instance},{COMPONENT}=replica"


def check_instance(name: str) -> None:
    """Raise InvalidArgumentError if objects' names cannot begin with `name`."""
    if _INSTANCE.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"instance {name[:80]!r}: 1 to 40 small letters, digits and dashes, beginning with a "
            "letter and not ending with a dash"
        )


def check_namespace(name: str) -> None:
    """Raise InvalidArgumentError if no namespace can be called `name`."""
    if _NAMESPACE.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"namespace {name[:80]!r}: 1 to 63 small letters, digits and dashes, a letter or digit "
            "at both ends"
        )


def check_api_url(url: str) -> None:
    """Raise InvalidArgumentError if no API server can be asked at `url`."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise InvalidArgumentError(f"'{url[:200]}' is not http[s]://HOST[:PORT]")


def check_owner(reference: str) -> None:
    """Raise InvalidArgumentError if `reference` names nothing that may own objects."""
    kind, _, name = reference.partition("/")
    if kind not in _OWNERS or not name:
        raise InvalidArgumentError(
            f"'{reference[:200]}' is neither Deployment/NAME nor ConfigMap/NAME, of the same "
            "namespace"
        )


def label_value(text: str) -> str:
    """`text` if it may be a label's value; else what can be read of it, and a digest."""
    if _LABEL.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_.-]", "-", text)[: _MOST - 9].strip("-_.")
    return f"{readable}-{digest}" if readable else digest
