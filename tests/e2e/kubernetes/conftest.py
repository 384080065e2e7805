"""The driver against a strict API server, over real connections."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
