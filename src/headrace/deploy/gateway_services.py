"""Which Services may a route lead to? What has to be said of their names, and of gRPC."""

from collections.abc import Iterator
from typing import Final

from headrace.deploy.export import Place
from headrace.deploy.facts import Endpoint, Facts, Version
from headrace.deploy.notes import Note

MODEL_HEADER: Final = "x-model"


def has_grpc_route(endpoint: Endpoint, place: Place) -> bool:
    """Whether every version speaks gRPC: a replica of the driver's does not."""
    return all(
        not place.has_drivers_service(endpoint, version)
        if version.upstream is None
        else version.upstream.protocol == "grpc"
        for version in endpoint.versions
    )


def grpc_notes(facts: Facts, place: Place, port: int | None) -> Iterator[Note]:
    """What gRPC needs, and where it has no route. `port`: None where nobody asked for routes."""
    if port is None:
        return
    if any(has_grpc_route(endpoint, place) for endpoint in facts.endpoints):
        if len(facts.endpoints) > 1:
            yield Note(
                "gRPC: routes cannot read a message, so callers name the endpoint in the metadata "
                f"{MODEL_HEADER}"
            )
        yield Note(f"gRPC: the Services need port {port}, with replicas that serve gRPC there")
    for endpoint in facts.endpoints:
        if any(place.has_drivers_service(endpoint, version) for version in endpoint.versions):
            yield Note(
                "no GRPCRoute, as the driver's Services have HTTP only: leave gRPC to Headrace's "
                "gateway, or name others by --service",
                endpoint.place,
            )


def service_notes(facts: Facts, place: Place) -> Iterator[Note]:
    """Which Services have names that nobody vouches for."""
    guessed = [
        f"{place.service(endpoint, version)[0]} ({version.place})"
        for endpoint in facts.endpoints
        for version in endpoint.versions
        if _is_guessed(place, endpoint, version)
    ]
    if guessed:
        yield Note(
            f"Services are taken to be called {', '.join(guessed)}: what the driver calls them is "
            "known of a running system (--from-system) and of models in the registry; --service "
            "names others"
        )


def _is_guessed(place: Place, endpoint: Endpoint, version: Version) -> bool:
    is_named = (endpoint.name, version.number) in (place.services or {})
    return not (is_named or version.revision or version.upstream is not None)
