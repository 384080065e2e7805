"""Fixtures of the tests of `headrace.serve`."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
