from random import Random

from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway_agent.pace import AWAY, pause_s


@given(st.integers(1, 10_000), st.randoms(use_true_random=False))
def test_a_pause_is_at_least_half_of_the_delay_and_never_more(failures: int, rng: Random) -> None:
    longest = AWAY.delay_s(failures)

    assert longest / 2 <= pause_s(failures, rng) <= longest <= AWAY.limit_s


def test_two_gateways_do_not_come_back_at_the_same_moment() -> None:
    rng = Random(7)  # noqa: S311  # spreads retries; nobody must not guess it

    assert len({pause_s(5, rng) for _ in range(50)}) > 40
