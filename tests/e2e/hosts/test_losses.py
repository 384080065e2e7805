"""Hosts are lost and cut off under load: what fails is what was in flight on what was lost."""

from collections.abc import Iterator
import time
import pytest
from tests.e2e.hosts.cloud import cloud, Cloud
from tests.e2e.hosts.network import why_not

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud(tmp_path_factory.mktemp("hosts")) as made:
        made.wait_for(lambda status: status["ready"])
        yield made


def test_all_is_well(system: Cloud) -> None:
    load = system.load()
    time.sleep(5)
    found = load.end()
    assert len(found) > 300
    assert {one.status for one in found} == {"200"}
