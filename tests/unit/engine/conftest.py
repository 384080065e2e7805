"""Engines over fake models. Virtual clocks where time matters; events where threads do."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
