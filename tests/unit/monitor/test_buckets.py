from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headrace.monitor.history import bucket_of, index_of, joined_bucket_of, joined_index
from tests.unit.monitor.counted import envoy_bucket

_SECONDS = st.floats(1e-6, 1000.0)


@given(seconds=_SECONDS)
def test_a_bucket_keeps_its_bounds(seconds: float) -> None:
    bucket = envoy_bucket(seconds)

    assert bucket_of(index_of(bucket)) == bucket


@given(seconds=_SECONDS)
def test_a_joined_bucket_holds_the_bucket_and_is_about_a_tenth_wide(seconds: float) -> None:
    bucket = envoy_bucket(seconds)
    lower_s, width_s = joined_bucket_of(joined_index(index_of(bucket)))

    assert lower_s <= bucket[0]
    assert bucket[0] + bucket[1] <= lower_s + width_s + 1e-9
    assert width_s <= lower_s * 0.101


def test_joined_buckets_leave_no_gap() -> None:
    firsts = sorted({joined_index(index) for index in range(200, 500)})
    bounds = [joined_bucket_of(first) for first in firsts[1:-1]]

    for (lower_s, width_s), (following_s, _) in pairwise(bounds):
        assert abs(lower_s + width_s - following_s) < 1e-9 * following_s


def test_no_time_at_all_is_a_bucket() -> None:
    assert bucket_of(index_of((0.0, 0.0))) == (0.0, 0.0)
    assert joined_bucket_of(joined_index(0)) == (0.0, 0.0)
