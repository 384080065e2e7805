"""Routes that were refused somewhere may be in force elsewhere: who they lead to is kept."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.gateway.routes import RoutesLeftOutError
from headrace.control.model.observed import addresses_of, perhaps_in_force
from headrace.control.reconcile.publication import RoutePublication
from headrace.core import UnavailableError
from headrace.gateway import EndpointRoute, RevisionTarget
from headrace.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def route(address: str, name: str = "m") -> EndpointRoute:
    arm = RevisionTarget(version="1", replicas=(address,), weight=100)
    return EndpointRoute(name=name, timeout_s=None, arms=(arm,))


class Gateways:
    """Several gateways: while `refusal` is set, some of them may have taken what was sent."""

    refusal: Exception | None = UnavailableError("gateway 'two' refused them")

    async def publish(self, _routes: Sequence[EndpointRoute]) -> None:
        if self.refusal is not None:
            raise self.refusal


async def publish(publication: RoutePublication, *routes: EndpointRoute) -> None:
    """One publication and the pause that follows a failure."""
    async with asyncio.TaskGroup() as group:
        publication.begin(routes, group)
        assert not publication.can_publish
    assert publication.can_publish


def routed(publication: RoutePublication) -> frozenset[str]:
    return addresses_of((*(publication.published or ()), *(publication.attempted or ())))


async def test_replica_is_busy_until_all_gateways_have_routes_without_it() -> None:
    gateways = Gateways()
    publication = RoutePublication(publisher=gateways, published=(route("a"),))
    for address in ("b", "c", "c"):
        await publish(publication, route(address))

    assert routed(publication) == {"a", "b", "c"}
    assert (publication.error, publication.is_confirmed) == (str(gateways.refusal), False)

    gateways.refusal = None
    await publish(publication, route("c"))
    assert routed(publication) == {"c"}
    assert (publication.error, publication.is_confirmed) == ("", True)


async def test_endpoint_whose_route_is_left_out_is_told_and_its_former_route_counts() -> None:
    gateways = Gateways()
    publication = RoutePublication(publisher=gateways)
    former = route("a", "bad"), route("a", "good")
    gateways.refusal = None
    await publish(publication, *former)
    in_force = route("a", "bad"), route("b", "good")
    gateways.refusal = RoutesLeftOutError(in_force, {"bad": "weights sum to 90"})

    await publish(publication, route("c", "bad"), route("b", "good"))

    assert publication.published == in_force
    assert publication.attempted == (route("c", "bad"),), "a gateway elsewhere may have it"
    assert publication.left_out == {"bad": "weights sum to 90"}
    assert "endpoint 'bad': weights sum to 90" in publication.error
    gateways.refusal = None
    await publish(publication, route("c", "bad"))
    assert not publication.left_out
    assert not publication.error
    assert not publication.attempted


async def test_unexpected_error_of_a_publisher_is_a_failed_publication() -> None:
    gateways = Gateways()
    gateways.refusal = ValueError("a bug")
    publication = RoutePublication(publisher=gateways)

    await publish(publication, route("a"))

    assert "ValueError" in publication.error
    assert publication.published is None


sent = st.lists(st.builds(route, st.sampled_from("abcd"), st.sampled_from("mn")), max_size=3)


@given(st.lists(sent, max_size=20))
def test_nothing_that_was_sent_is_forgotten_and_nothing_is_kept_twice(
    attempts: list[list[EndpointRoute]],
) -> None:
    found: tuple[EndpointRoute, ...] | None = None

    for routes in attempts:
        found = perhaps_in_force(tuple(routes), found)

    everything = [one for routes in attempts for one in routes]
    assert addresses_of(found or ()) == addresses_of(everything)
    assert set(everything) <= {*(found or ())}
    assert len(found or ()) <= 8 + 3


async def test_routes_are_recorded_before_replicas_that_they_lack_may_be_removed() -> None:
    gateways = Gateways()
    gateways.refusal = None
    busy: list[frozenset[str]] = []

    async def record(_routes: tuple[EndpointRoute, ...]) -> None:
        busy.append(routed(publication))

    publication = RoutePublication(publisher=gateways, published=(route("a"),), record=record)
    await publish(publication, route("b"))

    assert busy == [{"a", "b"}]
    assert routed(publication) == {"b"}
