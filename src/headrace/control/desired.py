"""What should run? The resolved spec: every model pinned to one version of one digest."""

import hashlib
from typing import Any

import msgspec

from headrace.core import EndpointName, ReplicaSettings


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable snapshot of what one replica runs.

    `id` is the digest of everything that a running process depends on; weight and replica count
    are no part of it. `model` is the registry reference `NAME:VERSION` or the path that was served
    as it is. `settings` lacks only what differs between replicas: `uds` and `replica`. `reload`
    counts how often an operator wished to load the same again.
    """

    id: str
    endpoint: EndpointName
    model: str
    version: str
    settings: ReplicaSettings
    reload: int = 0


class DesiredArm(msgspec.Struct, frozen=True, kw_only=True):
    """A revision with its share of the endpoint's requests and its number of copies."""

    revision: Revision
    weight: int
    replicas: int


class DesiredEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint: the weights of its arms sum to 100."""

    name: EndpointName
    timeout_s: float | None
    arms: tuple[DesiredArm, ...]


class DesiredState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that should run, and the spec document that said so.

    `generation` grows by one with every change.
    """

    generation: int = 0
    spec: dict[str, Any] = {}
    endpoints: tuple[DesiredEndpoint, ...] = ()

    def endpoint(self, name: str) -> DesiredEndpoint | None:
        """The endpoint of this name, if there is one."""
        return next((endpoint for endpoint in self.endpoints if endpoint.name == name), None)

    def revisions(self) -> dict[str, Revision]:
        """All revisions by id."""
        arms = (arm for endpoint in self.endpoints for arm in endpoint.arms)
        return {arm.revision.id: arm.revision for arm in arms}


def make_revision(
    *, endpoint: EndpointName, model: str, settings: ReplicaSettings, reload: int = 0
) -> Revision:
    """The revision that runs `settings`.

    Args:
        reload: Counts the operator's wishes to load the same model again; a new count is a new
            revision, so that a reload loses no request either.
    """
    identity = msgspec.json.encode((endpoint, settings, reload), order="deterministic")
    return Revision(
        id=hashlib.sha256(identity).hexdigest()[:16],
        endpoint=endpoint,
        model=model,
        version=settings.model_version,
        settings=settings,
        reload=reload,
    )
