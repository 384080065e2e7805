"""Which version scores a record, and whether two answers agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.arms import difference, is_chosen
from headrace.streaming.xxh64 import xxh64


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        # By the reference implementation, through the package xxhash 3.
        (b"", 0, 17241709254077376921),
        (b"foo", 0, 3728699739546630719),
        (b"lyft", 0, 4400747396090729504),
        (b"a" * 31, 0, 18322620742291695894),
        (b"a" * 32, 0, 9614767607332313815),
        (bytes(range(100)), 0, 7692681977284421015),
        (bytes(range(100)), 7, 9251869722998766813),
        (b"salt:key-1", 7, 4732287992375216233),
    ],
)
def test_the_hash_is_the_gateways(data: bytes, seed: int, expected: int) -> None:
    assert xxh64(data, seed) == expected


@given(st.binary(max_size=80), st.integers(0, 99))
def test_a_growing_canary_sends_no_key_back(key: bytes, percent: int) -> None:
    before = is_chosen(key, salt="s", percent=percent)

    assert not before or is_chosen(key, salt="s", percent=percent + 1)
    assert not is_chosen(key, salt="s", percent=0)
    assert is_chosen(key, salt="s", percent=100)


def test_a_canary_gets_its_share() -> None:
    chosen = [is_chosen(b"user-%d" % at, salt="s", percent=20) for at in range(4000)]

    assert 0.17 < sum(chosen) / len(chosen) < 0.23


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"y": [1.0, 2.0]}, {"y": [1.0, 2.5]}, 0.5),
        ({"y": [1.0, np.nan]}, {"y": [1.0, np.nan]}, 0.0),
        ({"y": [np.inf]}, {"y": [np.inf]}, 0.0),
        ({"y": [np.inf]}, {"y": [1.0]}, np.inf),
        ({"y": [np.nan]}, {"y": [1.0]}, np.inf),
        ({"y": [1, 2]}, {"y": [1, 4]}, 2.0),
        ({"y": [True]}, {"y": [False]}, 1.0),
        ({"y": [b"a"]}, {"y": [b"a"]}, 0.0),
        ({"y": [b"a"]}, {"y": [b"b"]}, np.inf),
        ({"y": []}, {"y": []}, 0.0),
        ({"y": [1.0]}, {"y": [1.0, 2.0]}, np.inf),
        ({"y": [1.0], "more": [5.0]}, {"y": [1.25]}, 0.25),
        ({"x": [1.0]}, {"y": [1.0]}, np.inf),
        ({}, {}, np.inf),
    ],
)
def test_the_difference_is_the_largest_of_what_both_have(
    one: dict[str, list[object]], other: dict[str, list[object]], expected: float
) -> None:
    arrays = [
        {
            name: np.array(v, object if v and isinstance(v[0], bytes) else None)
            for name, v in t.items()
        }
        for t in (one, other)
    ]

    assert difference(*arrays) == expected
