"""One system for all attacks; every module's attacks are watched as a whole."""

from collections.abc import Iterator

import pytest

from tests.e2e.attacks.harness import Door, Site, started


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
