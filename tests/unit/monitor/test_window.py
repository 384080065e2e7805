"""What is said of a span of time."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.monitor.history import Bucket, Window, bucket_of, index_of, joined_bucket_of

latencies_s = st.lists(st.floats(1e-5, 500.0), min_size=1, max_size=60)


@given(
    latencies_s,
    st.sampled_from([bucket_of, joined_bucket_of]),
    st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]),
)
def test_a_quantile_is_within_five_percent_however_requests_lie_in_their_buckets(
    latencies: list[float], name: Callable[[int], Bucket], q: float
) -> None:
    counts: dict[tuple[float, float], int] = {}
    for latency in latencies:
        bucket = name(index_of((latency, 0.0)))
        counts[bucket] = counts.get(bucket, 0) + 1
    rank = max(q * len(latencies), 1e-9)
    true = next(
        value for place, value in enumerate(sorted(latencies), start=1) if place >= rank - 1e-9
    )

    found = Window(begin=0.0, end=1.0, latency=counts).quantile(q)

    assert found == pytest.approx(true, rel=0.0501)


def test_a_constant_latency_is_told_as_what_it_is() -> None:
    window = Window(begin=0.0, end=60.0, latency={(0.010, 0.001): 1000})

    shown = [window.quantile(q) for q in (0.5, 0.95, 0.99)]

    assert shown == pytest.approx([0.0102] * 3, rel=0.05)
