"""Blocks by the hundred: before each, Python would collect all that pytest left."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def old_objects_are_not_collected() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
