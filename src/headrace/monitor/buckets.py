"""How is a latency bucket named by a small number? Envoy's buckets have two significant digits.

One from 10 e to 99 e (e a power of ten) is e wide: 90 to a decade, a tenth of their lower bound at
most. What is kept longer is kept in fewer: those from 20 e on are joined as long as they stay about
a tenth as wide as their lower bound.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Final, TypeAlias

Bucket: TypeAlias = tuple[float, float]
"""Lower bound and width in seconds."""
Buckets: TypeAlias = Mapping[Bucket, int]
"""Requests by bucket."""

_PER_DECADE: Final = 90
_FIRST: Final = 10  # the least number with two digits
_LEAST_EXPONENT: Final = -9
_MOST_EXPONENT: Final = 5
_LAST: Final = (_MOST_EXPONENT - _LEAST_EXPONENT + 1) * _PER_DECADE
_DIGITS: Final = 10
_ZERO: Final = 0
# Up to which leading digits how many buckets are joined: 20-21, 22-23, ... 30-32, ... 95-99.
_JOINED: Final = ((20, 1), (30, 2), (51, 3), (55, 4), (100, 5))


@cache
def index_of(bucket: Bucket) -> int:
    """The number of the bucket in which the middle of `bucket` is; 0 for no time at all."""
    lower_s, width_s = bucket
    middle = lower_s + width_s / 2
    if middle <= 0:
        return _ZERO
    exponent = math.floor(math.log10(middle)) - 1
    digits = math.floor(middle / 10.0**exponent)
    index = (exponent - _LEAST_EXPONENT) * _PER_DECADE + digits - _FIRST + 1
    return min(max(index, 1), _LAST)


@cache
def bucket_of(index: int) -> Bucket:
    """The bucket of a number."""
    if index == _ZERO:
        return (0.0, 0.0)
    decade, digits = divmod(index - 1, _PER_DECADE)
    width_s = 10.0 ** (decade + _LEAST_EXPONENT)
    return (round((digits + _FIRST) * width_s, _DIGITS), round(width_s, _DIGITS))


@cache
def joined_index(index: int) -> int:
    """The number of the first bucket among those that `index` is joined with."""
    if index == _ZERO:
        return _ZERO
    decade, digits = divmod(index - 1, _PER_DECADE)
    return decade * _PER_DECADE + _first_of(digits + _FIRST) - _FIRST + 1


@cache
def joined_bucket_of(index: int) -> Bucket:
    """The bucket that all those together are that are joined with `index`."""
    first = joined_index(index)
    lower_s, width_s = bucket_of(first)
    count = sum(
        joined_index(other) == first for other in range(first, min(first + _FIRST, _LAST + 1))
    )
    return (lower_s, round(width_s * count, _DIGITS))


def _first_of(digits: int) -> int:
    begin = _FIRST
    for end, count in _JOINED:
        if digits < end:
            return digits - (digits - begin) % count
        begin = end
    raise AssertionError(digits)
