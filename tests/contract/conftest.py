import pytest

pytest.register_assert_rewrite("headrace.testing.contracts")
