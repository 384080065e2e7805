"""One consistent set of Envoy resources, and the files it becomes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.gateway.bootstrap import static_bootstrap
from headrace.gateway.clusters import build_clusters
from headrace.gateway.listeners import STAT_PREFIX, build_listeners, routes_from_file
from headrace.gateway.resources import Json, Resource, any_of
from headrace.gateway.routes import ROUTE_CONFIG, build_routes
from headrace.gateway.settings import EndpointRoute, GatewaySettings


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the three files Envoy watches: its name, its resources' type, its statistics."""

    file: str
    type_name: str
    stats: str


LISTENERS: Final = Kind("lds.json", "envoy.config.listener.v3.Listener", "listener_manager.lds")
ROUTES: Final = Kind(
    "rds.json",
    "envoy.config.route.v3.RouteConfiguration",
    f"http.{STAT_PREFIX}.rds.{ROUTE_CONFIG}",
)
CLUSTERS: Final = Kind("cds.json", "envoy.config.cluster.v3.Cluster", "cluster_manager.cds")
KINDS: Final = (CLUSTERS, LISTENERS, ROUTES)
"""In the order in which Envoy reads them at its start."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text, and the version by which Envoy acknowledges it: a hash of its resources."""

    version: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What Envoy should do: every route's cluster is in `clusters`, which is sorted by name."""

    listeners: Sequence[Resource]
    routes: Resource
    clusters: Sequence[Resource]

    def document(self, kind: Kind) -> Document:
        """The file of one kind."""
        match kind.file:
            case LISTENERS.file:
                return make_document(kind, self.listeners)
            case ROUTES.file:
                return make_document(kind, [self.routes])
            case _:
                return make_document(kind, self.clusters)


def build_snapshot(settings: GatewaySettings, endpoints: Sequence[EndpointRoute]) -> Snapshot:
    """The resources that route to `endpoints`, and to nothing else.

    Raises:
        InvalidArgumentError: Two endpoints have one name.
    """
    names = [endpoint.name for endpoint in endpoints]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        msg = f"endpoints named more than once: {', '.join(repeated)}"
        raise InvalidArgumentError(msg)
    return Snapshot(
        listeners=build_listeners(settings, routes_from_file(str(settings.run_dir / ROUTES.file))),
        routes=build_routes(settings, endpoints),
        clusters=sorted(build_clusters(settings, endpoints), key=lambda c: str(c["name"])),
    )


def inline_bootstrap(settings: GatewaySettings, snapshot: Snapshot) -> Resource:
    """The snapshot as one bootstrap that needs no other file."""
    inline: Resource = {"route_config": snapshot.routes}
    return static_bootstrap(settings, build_listeners(settings, inline), snapshot.clusters)


def make_document(kind: Kind, resources: Sequence[Resource]) -> Document:
    """A DiscoveryResponse for Envoy to read from a file."""
    return _document([any_of(kind.type_name, resource) for resource in resources])


def read_document(text: str) -> Document:
    """A document as read back from its file."""
    return Document(str(json.loads(text)["version_info"]), text)


def with_old_clusters(new: Document, old: Document) -> Document:
    """`new`'s clusters and those of `old` that `new` lacks, so that no route loses its cluster."""
    clusters = {
        cluster["name"]: cluster
        for document in (old, new)
        for cluster in json.loads(document.text)["resources"]
    }
    return _document([clusters[name] for name in sorted(clusters)])


def _document(resources: Sequence[Json]) -> Document:
    version = hashlib.sha256(json.dumps(resources).encode()).hexdigest()[:16]
    return Document(version, json.dumps({"version_info": version, "resources": resources}))
