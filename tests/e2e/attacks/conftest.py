"""One system for all attacks; every module's attacks are watched as a whole."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.attacks.harness import Door, Site, started
from tests.e2e.attacks.tenants import Tenants, tenants
from tests.e2e.ordinary_user import OrdinaryUser


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with started() as site:
        yield site
        assert "Traceback" not in site.logs()


@pytest.fixture(params=["gateway", "replica"])
def door(request: pytest.FixtureRequest, site: Site) -> Door:
    return site.door(request.param)


@pytest.fixture(scope="module")
def watched(site: Site) -> Iterator[None]:
    """The small attacks of a module together cost nobody anything."""
    with site.unharmed():
        yield


@pytest.fixture(scope="module", params=["as root", "as an ordinary user"])
def building(
    request: pytest.FixtureRequest, ordinary_user: OrdinaryUser
) -> Iterator[tuple[Tenants, dict[str, object]]]:
    """A system of several tenants, and its spec at the start."""
    if request.param == "as root" and os.geteuid() != 0:
        pytest.skip("needs root")
    user = OrdinaryUser(0) if request.param == "as root" else ordinary_user
    with tenants(user) as house:
        yield house, house.admin("GET", "/api/v1/spec")["spec"]


@pytest.fixture
def house(building: tuple[Tenants, dict[str, object]]) -> Iterator[Tenants]:
    """The system as it was at the start, whatever tests before did to it."""
    house, original = building
    yield house
    house.restore(original)
