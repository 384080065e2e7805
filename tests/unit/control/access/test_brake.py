"""Whoever guesses is slowed, and nobody else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.auth.authenticate import LoginThrottle, Noted, network_of


def test_after_too_many_failures_there_is_a_wait_until_the_window_ends() -> None:
    brake = LoginThrottle(max_failures=3, window_s=60.0)
    for second in range(3):
        assert brake.wait_s("a", 10.0 + second) == 0.0
        brake.fail("a", 10.0 + second)

    assert brake.wait_s("a", 13.0) == 57.0
    assert brake.wait_s("b", 13.0) == 0.0
    assert brake.wait_s("a", 70.0) == 0.0


def test_a_new_window_begins_to_count_anew() -> None:
    brake = LoginThrottle(max_failures=2, window_s=60.0)
    for at in (0.0, 1.0, 61.0):
        brake.fail("a", at)

    assert brake.wait_s("a", 61.0) == 0.0


def test_the_first_failure_and_the_last_are_worth_a_note() -> None:
    brake = LoginThrottle(max_failures=3, window_s=60.0)

    assert [brake.fail("a", 0.0) for _ in range(5)] == [True, False, True, False, False]


@settings(max_examples=5)
@given(st.lists(st.integers(0, 10**6), max_size=300))
def test_it_remembers_a_bounded_number(keys: list[int]) -> None:
    brake = LoginThrottle(max_failures=1)
    for key in [*range(10_000), *keys]:
        brake.fail(str(key), 0.0)

    assert len(brake._counts) == 10_000


def test_a_network_is_an_address_or_what_one_household_has() -> None:
    assert network_of("10.0.0.5") == "10.0.0.5"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") == "2001:db8::/64"
    assert network_of("::ffff:10.0.0.5") == "10.0.0.5"
    assert network_of("") == "local"


def test_notes_are_bounded_in_a_window_of_time() -> None:
    noted = Noted(most=2, window_s=10.0)

    assert [noted.take(0.0) for _ in range(4)] == [True, True, False, False]
    assert noted.take(10.0)
