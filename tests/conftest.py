"""How thorough Hypothesis is: `dev` for people, `ci` (HYPOTHESIS_PROFILE=ci) for machines."""

import gc
import os

import pytest
from hypothesis import settings

# No deadline: on a busy machine a slow example says nothing about the code.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="module", autouse=True)
def what_was_there_before_is_not_collected() -> None:
    """Put thousands of collected tests, and what other modules left, out of the collector's sight.

    Each full collection would walk them again: half a second, in tests that take milliseconds.
    """
    gc.collect()
    gc.freeze()
