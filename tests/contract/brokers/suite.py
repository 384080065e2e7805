"""The promises that every broker keeps: derive from it, with a fixture `rig`."""

from collections.abc import Iterator

import pytest

from headrace.streaming.broker import Broker
from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite_asking import Asking
from tests.contract.brokers.suite_delivering import Delivering
from tests.contract.brokers.suite_groups import Groups
from tests.contract.brokers.suite_reading import Reading
from tests.contract.brokers.suite_sharing import Sharing


class BrokerContract(Reading, Groups, Sharing, Delivering, Asking):
    """All of them.

    `Rig.cannot` names the tests (without what stands in brackets) that a server cannot pass, and
    why; they are skipped.
    """

    @pytest.fixture
    def rig(self) -> Rig:
        """The broker under test."""
        raise NotImplementedError

    @pytest.fixture
    def broker(self, rig: Rig, request: pytest.FixtureRequest) -> Iterator[Broker]:
        reason = rig.cannot.get(request.function.__name__)
        if reason is not None:
            pytest.skip(reason)
        opened = rig.open()
        try:
            yield opened
        finally:
            opened.close()
