"""One consistent set of Envoy resources, and its files."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, TypeAlias

import orjson

from headrace.core import InvalidArgumentError
from headrace.core.spec.access import EndpointLimitsSpec, JwtSpec
from headrace.gateway import callers
from headrace.gateway.bootstrap import static_bootstrap
from headrace.gateway.callers import (
    EXTENSIONS,
    Extension,
    extension_configs,
    key_set_clusters,
    verify_cluster,
)
from headrace.gateway.clusters import (
    all_replicas,
    endpoint_clusters,
    shadow_cluster,
    shared_clusters,
)
from headrace.gateway.filters import AuthFilters, auth_filters
from headrace.gateway.limits import RateLimitPlan
from headrace.gateway.listeners import STAT_PREFIX, build_listeners, routes_from_file
from headrace.gateway.resources import Resource, any_of
from headrace.gateway.routes import (
    ROUTE_CONFIG,
    ServerRoutes,
    endpoint_routes,
    route_table,
    server_routes,
)
from headrace.gateway.settings import EndpointRoute, EnvoySettings, GatewayPolicy


@dataclass(frozen=True, slots=True)
class FileKind:
    """Kind of file that Envoy watches: its name, its resources' type, its statistics."""

    file: str
    type_name: str
    stats: str


LISTENERS: Final = FileKind("lds.json", "envoy.config.listener.v3.Listener", "listener_manager.lds")
ROUTES: Final = FileKind(
    "rds.json",
    "envoy.config.route.v3.RouteConfiguration",
    f"http.{STAT_PREFIX}.rds.{ROUTE_CONFIG}",
)
CLUSTERS: Final = FileKind("cds.json", "envoy.config.cluster.v3.Cluster", "cluster_manager.cds")
FILTERS: Final = {
    extension: FileKind(
        extension.file,
        callers.TYPE,
        f"extension_config_discovery.http_filter.{extension.filter_name}",
    )
    for extension in EXTENSIONS
}
"""File kinds of the filters that have their own file."""
KINDS: Final = (CLUSTERS, LISTENERS, *FILTERS.values(), ROUTES)
"""File kinds in the order in which Envoy reads them at its start."""


def servers_kind(file: str) -> FileKind:
    """Return the kind of a file with the servers of one cluster."""
    return FileKind(file, "envoy.config.endpoint.v3.ClusterLoadAssignment", "")


WATCHED_FILES: Final = tuple(kind.file for kind in KINDS)
"""Files that Envoy watches; fixed at its start."""
_NO_POLICY: Final = GatewayPolicy()
_FiltersOf: TypeAlias = tuple[GatewayPolicy, Mapping[str, EndpointLimitsSpec]]


@dataclass(frozen=True, slots=True)
class ResourceFile:
    """Content of one resource file."""

    version: str
    """Hash of the resources, by which Envoy acknowledges the file."""
    text: str
    """Content of the file."""
    clusters: Mapping[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    """Text of each cluster by name, derived from `text`; in the file of clusters only."""


@dataclass(frozen=True)
class ResourceGroup:
    """Resources that are built and serialized together, once."""

    resources: Sequence[Resource]
    type_name: str = ""

    @cached_property
    def texts(self) -> Sequence[bytes]:
        """Return each resource as JSON, with its type if it has one."""
        wrap = self.type_name
        return [orjson.dumps(any_of(wrap, r) if wrap else r) for r in self.resources]

    @cached_property
    def text(self) -> bytes:
        """Return the resources as items of a JSON array."""
        return b",".join(self.texts)


@dataclass(frozen=True, slots=True)
class EndpointResources:
    """One endpoint's part of a snapshot."""

    http: ResourceGroup
    grpc: ResourceGroup
    plain: ResourceGroup
    clusters: ResourceGroup

    @classmethod
    def of(
        cls,
        settings: EnvoySettings,
        guard: AuthFilters,
        limiting: RateLimitPlan,
        endpoint: EndpointRoute,
    ) -> "EndpointResources":
        """Return the part of `endpoint`."""
        routes = endpoint_routes(settings, guard, limiting, endpoint)
        return cls(
            http=ResourceGroup(routes.http),
            grpc=ResourceGroup(routes.grpc),
            plain=ResourceGroup(routes.plain),
            clusters=ResourceGroup(
                tuple(endpoint_clusters(settings, endpoint)), CLUSTERS.type_name
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Desired state of Envoy: `clusters`, sorted by name, has every route's cluster."""

    listeners: Sequence[Resource]
    server: ServerRoutes
    parts: Sequence[EndpointResources]
    shared: ResourceGroup
    filters: Mapping[Extension, Resource]

    @property
    def routes(self) -> Resource:
        """Return the route table."""
        routes = [route for piece in self._route_pieces() for route in piece.resources]
        return route_table(self.server, routes)

    @property
    def clusters(self) -> Sequence[Resource]:
        """Return all clusters."""
        clusters = [cluster for piece in self._cluster_pieces() for cluster in piece.resources]
        return sorted(clusters, key=lambda cluster: str(cluster["name"]))

    def document(self, kind: FileKind) -> ResourceFile:
        """Return the file of one kind."""
        match kind.file:
            case LISTENERS.file:
                return make_document(kind, self.listeners)
            case ROUTES.file:
                return self._routes_document()
            case CLUSTERS.file:
                return _clusters_document(
                    {
                        str(cluster["name"]): text
                        for piece in self._cluster_pieces()
                        for cluster, text in zip(piece.resources, piece.texts, strict=True)
                    }
                )
            case _:
                (extension,) = (extension for extension, its in FILTERS.items() if its == kind)
                return make_document(kind, [extension.resource(self.filters[extension])])

    def _route_pieces(self) -> Iterator[ResourceGroup]:
        yield ResourceGroup(self.server.before)
        yield from (part.http for part in self.parts)
        yield from (part.grpc for part in self.parts)
        yield ResourceGroup(self.server.after)
        yield from (part.plain for part in self.parts)
        yield ResourceGroup(self.server.last)

    def _cluster_pieces(self) -> Iterator[ResourceGroup]:
        yield from (part.clusters for part in self.parts)
        yield self.shared

    def _routes_document(self) -> ResourceFile:
        texts = (piece.text for piece in self._route_pieces() if piece.resources)
        ready: Any = orjson.Fragment(b"[%b]" % b",".join(texts))
        return _document([orjson.dumps(any_of(ROUTES.type_name, route_table(self.server, ready)))])


@dataclass(slots=True)
class SnapshotBuilder:
    """Builder of snapshots that rebuilds only the changed parts."""

    settings: EnvoySettings
    _parts: dict[str, tuple[EndpointRoute, EndpointResources]] = field(default_factory=dict)
    _limiting: RateLimitPlan | None = None
    _shared: tuple[tuple[Sequence[str], bool, tuple[JwtSpec, ...]], ResourceGroup] | None = None
    _filters: tuple[_FiltersOf, Mapping[Extension, Resource]] | None = None

    def build(
        self, endpoints: Sequence[EndpointRoute], policy: GatewayPolicy = _NO_POLICY
    ) -> Snapshot:
        """Return the resources that route callers of `policy` to `endpoints` only.

        Raises:
            InvalidArgumentError: Endpoint names are duplicate, or Envoy cannot represent one.
        """
        counts = Counter(endpoint.name for endpoint in endpoints)
        if repeated := sorted(name for name, count in counts.items() if count > 1):
            msg = f"duplicate endpoint names: {', '.join(repeated)}"
            raise InvalidArgumentError(msg)
        by_name = {endpoint.name: endpoint for endpoint in endpoints}
        endpoints = [endpoint.with_fallbacks(by_name) for endpoint in endpoints]
        guard = auth_filters(self.settings, endpoints)
        limiting = RateLimitPlan.of(policy.access)
        if limiting != self._limiting:
            self._limiting, self._parts = limiting, {}
        self._parts = {
            endpoint.name: (endpoint, self._part(guard, limiting, endpoint))
            for endpoint in endpoints
        }
        routes_file = str(self.settings.run_dir / ROUTES.file)
        return Snapshot(
            listeners=build_listeners(self.settings, routes_from_file(routes_file)),
            server=server_routes(self.settings, guard, limiting, endpoints),
            parts=[part for _, part in self._parts.values()],
            shared=self._shared_clusters(endpoints, policy),
            filters=self._filter_configs(policy, endpoints),
        )

    def _filter_configs(
        self, policy: GatewayPolicy, endpoints: Sequence[EndpointRoute]
    ) -> Mapping[Extension, Resource]:
        inputs = (policy, {endpoint.name: endpoint.limits for endpoint in endpoints})
        if self._filters is None or self._filters[0] != inputs:
            self._filters = (inputs, extension_configs(policy, endpoints))
        return self._filters[1]

    def _shared_clusters(
        self, endpoints: Sequence[EndpointRoute], policy: GatewayPolicy
    ) -> ResourceGroup:
        counts_copies = any(endpoint.counts_copies for endpoint in endpoints)
        inputs = (all_replicas(endpoints), counts_copies, policy.access.jwt)
        if self._shared is None or self._shared[0] != inputs:
            clusters = (
                *shared_clusters(self.settings, inputs[0]),
                *((shadow_cluster(),) if counts_copies else ()),
                *((verify_cluster(self.settings),) if policy.access.jwt else ()),
                *key_set_clusters(self.settings, policy),
            )
            self._shared = (inputs, ResourceGroup(clusters, CLUSTERS.type_name))
        return self._shared[1]

    def _part(
        self, guard: AuthFilters, limiting: RateLimitPlan, endpoint: EndpointRoute
    ) -> EndpointResources:
        cached = self._parts.get(endpoint.name)
        if cached is not None and cached[0] == endpoint:
            return cached[1]
        endpoint.check()
        return EndpointResources.of(self.settings, guard, limiting, endpoint)


def build_snapshot(
    settings: EnvoySettings,
    endpoints: Sequence[EndpointRoute],
    policy: GatewayPolicy = _NO_POLICY,
) -> Snapshot:
    """Return a snapshot as `SnapshotBuilder.build`, without an earlier one."""
    return SnapshotBuilder(settings).build(endpoints, policy)


def inline_bootstrap(settings: EnvoySettings, snapshot: Snapshot) -> Resource:
    """Return the snapshot as one bootstrap that needs no other file."""
    inline: Resource = {"route_config": snapshot.routes}
    listeners = build_listeners(settings, inline, snapshot.filters)
    return static_bootstrap(settings, listeners, snapshot.clusters)


def make_document(kind: FileKind, resources: Sequence[Resource]) -> ResourceFile:
    """Return a DiscoveryResponse for Envoy to read from a file."""
    return _document([orjson.dumps(any_of(kind.type_name, resource)) for resource in resources])


def read_document(text: str) -> ResourceFile:
    """Return a document from the text of its file."""
    document = orjson.loads(text)
    clusters = {
        resource["name"]: orjson.dumps(resource)
        for resource in document["resources"]
        if resource["@type"].endswith(CLUSTERS.type_name)
    }
    return ResourceFile(str(document["version_info"]), text, clusters)


def with_old_clusters(new: ResourceFile, old: ResourceFile) -> ResourceFile:
    """Return `new`'s clusters and those only in `old`, so that no route loses its cluster."""
    if old.clusters.keys() <= new.clusters.keys():
        return new
    return _clusters_document({**old.clusters, **new.clusters})


def _clusters_document(clusters: Mapping[str, bytes]) -> ResourceFile:
    document = _document([clusters[name] for name in sorted(clusters)])
    return replace(document, clusters=clusters)


def _document(resources: Sequence[bytes]) -> ResourceFile:
    body = b",".join(resources)
    version = hashlib.sha256(body).hexdigest()[:16]
    text = b'{"version_info":"%b","resources":[%b]}' % (version.encode(), body)
    return ResourceFile(version, text.decode())
