"""The embedded log keeps every broker's promises."""

from pathlib import Path

import pytest

from tests.contract.brokers.rig import Rig
from tests.contract.brokers.suite import BrokerContract


@pytest.mark.e2e
class TestLog(BrokerContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Rig:
        return Rig(url=f"log://{tmp_path / 'log'}", home=tmp_path, session_timeout_s=1.0)
