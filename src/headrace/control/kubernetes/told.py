"""What do pods fetch, and what are their replicas told? Pure."""

import hashlib
from typing import Final

import msgspec

from headrace.control.artifact_paths import ArtifactPath, artifact_at
from headrace.control.desired import Revision
from headrace.control.kubernetes.names import Place
from headrace.control.kubernetes.pods import GRPC_PORT, HTTP_PORT, METRICS_PORT, MODELS_DIR
from headrace.core import FailedPreconditionError

SETTINGS_KEY: Final = "replica.json"
_MOST_SETTINGS_BYTES: Final = 1_000_000


def told_to(revision: Revision, place: Place) -> tuple[ArtifactPath, str]:
    """What pods fetch, and what their replicas are told.

    Raises:
        FailedPreconditionError: The revision cannot run on a cluster; the text says what to do.
    """
    if revision.pool:
        raise FailedPreconditionError(
            f"{revision.model}: pods of pool {revision.pool!r} host it, and who hosts what a "
            "control plane tells them: where there is none, leave 'pool' out"
        )
    artifact = artifact_of(revision)
    check_artifacts(revision.model, place)
    path = f"{MODELS_DIR}/{artifact.filename}"
    return artifact, settings_text(revision, place, path=path)


def check_artifacts(what: str, place: Place) -> None:
    """Raise FailedPreconditionError if there is nowhere that pods have `what` from."""
    if not place.artifacts_url:
        raise FailedPreconditionError(
            f"{what}: pods have to fetch it from somewhere, and the control plane has no "
            "store for artifacts that they reach: give it one (--artifacts URL)"
        )


def artifact_of(revision: Revision) -> ArtifactPath:
    """What pods have to fetch.

    Raises:
        FailedPreconditionError: The model lies on the control plane's machine only.
    """
    found = artifact_at(revision.settings.path)
    if found is None:
        raise FailedPreconditionError(
            f"{revision.model} is served where it lies, at {revision.settings.path}, which no pod "
            "can read: push it (headrace models push NAME FILE) and name it as NAME:VERSION"
        )
    return found


def settings_text(revision: Revision, place: Place, *, path: str) -> str:
    """What the replicas of a revision are told, as they read it.

    Args:
        path: Where the model lies in their pods.

    Raises:
        FailedPreconditionError: It is more than a ConfigMap holds.
    """
    settings = msgspec.structs.replace(
        revision.settings,
        path=path,
        uds="",
        host="0.0.0.0",  # noqa: S104  # the pod's own address; a NetworkPolicy says who reaches it
        port=HTTP_PORT,
        grpc_port=None if revision.settings.grpc_port is None else GRPC_PORT,
        metrics_port=METRICS_PORT,
        drain_timeout_s=place.drain_timeout_s,
        log_format=place.log_format,
    )
    text = msgspec.json.format(msgspec.json.encode(settings), indent=2).decode()
    if len(text) > _MOST_SETTINGS_BYTES:
        raise FailedPreconditionError(
            f"{revision.model}: its replicas are told {len(text)} bytes, more than a ConfigMap "
            f"holds ({_MOST_SETTINGS_BYTES}): give fewer 'labels'"
        )
    return text


def digest_of(told: str) -> str:
    """By which pods show that they were told something else before."""
    return hashlib.sha256(told.encode()).hexdigest()[:16]
