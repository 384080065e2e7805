"""Which Services may a route lead to? What has to be said of their names, and of gRPC."""

from collections.abc import Iterator
from typing import Final

from headrace.deploy.export import Place
from headrace.deploy.facts import Endpoint, Facts, Version

MODEL_HEADER: Final = "x-model"


def has_grpc_route(endpoint: Endpoint, place: Place) -> bool:
    """Whether every version speaks gRPC: a replica of the driver's does not."""
    return all(
        not place.has_drivers_service(endpoint, version)
        if version.upstream is None
        else version.upstream.protocol == "grpc"
        for version in endpoint.versions
    )


def grpc_notes(facts: Facts, place: Place, port: int | None) -> Iterator[str]:
    """What gRPC needs, and where it has no route. `port`: None where nobody asked for routes."""
    if port is None:
        return
    if any(has_grpc_route(endpoint, place) for endpoint in facts.endpoints):
        if len(facts.endpoints) > 1:
            yield (
                "gRPC: routes cannot read a message, so callers name the endpoint in the metadata "
                f"{MODEL_HEADER}"
            )
        yield f"gRPC: the Services need port {port}, with replicas that serve gRPC there"
    for endpoint in facts.endpoints:
        if any(place.has_drivers_service(endpoint, version) for version in endpoint.versions):
            yield (
                f"{endpoint.place}: no GRPCRoute, as the driver's Services have HTTP only: leave "
                "gRPC to Headrace's gateway, or name others by --service"
            )


def service_notes(facts: Facts, place: Place) -> Iterator[str]:
    """Which Services have names that nobody vouches for."""
    for endpoint in facts.endpoints:
        for version in endpoint.versions:
            if _is_guessed(place, endpoint, version):
                name, _ = place.service(endpoint, version)
                yield (
                    f"{version.place}: the Service of version {version.number} is taken to be "
                    f"called {name}: what the driver calls it is known of a running system "
                    "(--from-system) and of models in the registry; --service names another"
                )


def _is_guessed(place: Place, endpoint: Endpoint, version: Version) -> bool:
    is_named = (endpoint.name, version.number) in (place.services or {})
    return not (is_named or version.revision or version.upstream is not None)
