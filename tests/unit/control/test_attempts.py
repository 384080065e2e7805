"""Routes that were refused somewhere may be in force elsewhere: who they lead to is kept."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.observed import Arm, Route, addresses_of, perhaps_in_force
from headrace.control.plan import PublishRoutes
from headrace.control.reconciler import Reconciler
from headrace.core import UnavailableError
from headrace.testing import LoopClock, VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def route(address: str, name: str = "m") -> Route:
    arm = Arm(version="1", replicas=(address,), weight=100)
    return Route(name=name, timeout_s=None, arms=(arm,))


class Refusing:
    """As gateways of which one takes routes and another does not, until they agree."""

    agrees = False

    async def publish(self, _routes: Sequence[Route]) -> None:
        if not self.agrees:
            raise UnavailableError("gateway 'two' refused them")


async def test_a_replica_is_busy_until_all_gateways_have_routes_without_it() -> None:
    publisher, nothing_runs = Refusing(), None
    driver: Any = nothing_runs
    found = Reconciler(
        driver=driver, publisher=publisher, clock=LoopClock(0.0), drain_timeout_s=1.0
    )
    found.published = (route("a"),)
    async with asyncio.TaskGroup() as group:
        found._group = group
        for address in ("b", "c", "c"):
            found._do(PublishRoutes(routes=(route(address),)))
            await asyncio.sleep(5.0)

        assert found.observed().routed_addresses() == {"a", "b", "c"}

        publisher.agrees = True
        found._do(PublishRoutes(routes=(route("c"),)))
        await asyncio.sleep(5.0)
        assert found.observed().routed_addresses() == {"c"}


sent = st.lists(st.builds(route, st.sampled_from("abcd"), st.sampled_from("mn")), max_size=3)


@given(st.lists(sent, max_size=20))
def test_nothing_that_was_sent_is_forgotten_and_nothing_is_kept_twice(
    attempts: list[list[Route]],
) -> None:
    found: tuple[Route, ...] | None = None

    for routes in attempts:
        found = perhaps_in_force(tuple(routes), found)

    everything = [one for routes in attempts for one in routes]
    assert addresses_of(found or ()) == addresses_of(everything)
    assert set(everything) <= {*(found or ())}
    assert len(found or ()) <= 8 + 3
