"""What fails in the suite says with which values."""

import pytest

pytest.register_assert_rewrite(
    "tests.contract.brokers.rig",
    "tests.contract.brokers.suite_asking",
    "tests.contract.brokers.suite_delivering",
    "tests.contract.brokers.suite_groups",
    "tests.contract.brokers.suite_reading",
    "tests.contract.brokers.suite_sharing",
)
