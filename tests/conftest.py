"""What holds for all tests.

How thorough Hypothesis is: `dev` for people, `ci` (HYPOTHESIS_PROFILE=ci) for machines at each
change, `nightly` for those with time.
"""

import gc
import os
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

from headrace.core.redact import RESOLVED
from headrace.runtimes.libraries import FRAMEWORKS
from scripts.run_tests import record_run

# No deadline: on a busy machine a slow example says nothing about the code.
settings.register_profile("dev", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.register_profile("nightly", deadline=None, max_examples=400, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure(config: pytest.Config) -> None:
    """Let no incomplete run pass, however pytest was started."""
    record_run(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """Fail a test after which this process holds two frameworks, which can abort it later."""
    result = yield
    held = [name for name in FRAMEWORKS if sys.modules.get(name) is not None]
    if len(held) > 1:
        pytest.fail(
            f"this process has imported {' and '.join(held)}: mark each test with one of them, "
            "and run them by `make test SUITE=frameworks`",
            pytrace=False,
        )
    return result


# What fails in a suite says with which values; here, as it has to come before anybody imports them.
pytest.register_assert_rewrite(
    "headrace.testing.contracts",
    "headrace.testing.online_stores",
    *(
        f"tests.contract.brokers.{name}"
        for name in (
            "rig",
            "suite_asking",
            "suite_members",
            "suite_records",
        )
    ),
)


@pytest.fixture(autouse=True)
def resolved_values_of_another_test_are_shown() -> None:
    """Hide no value that another test of this process resolved."""
    RESOLVED.clear()


@pytest.fixture(scope="module", autouse=True)
def what_was_there_before_is_not_collected() -> None:
    """Put thousands of collected tests, and what other modules left, out of the collector's sight.

    Each full collection would walk them again: half a second, in tests that take milliseconds.
    """
    gc.collect()
    gc.freeze()
