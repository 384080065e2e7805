"""Which bounds have the buckets of latencies?

A quantile is interpolated inside its bucket, so the bucket's width bounds how far it is off. What
processes keep is fine: 48 buckets to a decade, none wider than a twentieth. What is told as text is
every second of these, or fewer, because each bound is a time series to whoever scrapes.
"""

from typing import Final

PER_DECADE: Final = 48
_DECADES: Final = range(-5, 2)

FINE_S: Final = (
    *(
        float(f"{10 ** (step / PER_DECADE):.3g}e{decade}")
        for decade in _DECADES
        for step in range(PER_DECADE)
    ),
    100.0,
)
"""From 10 us to 100 s."""

_EXACT_FROM_S: Final = 0.0005
_EXACT_UNTIL_S: Final = 10.0
_COARSE: Final = 6
_BRIEF_FROM_S: Final = 0.0001


def told(per_decade: int) -> tuple[int, ...]:
    """Places of those of `FINE_S` that are told: `per_decade` from 0.5 ms to 10 s, 6 elsewhere."""
    return tuple(
        place
        for place, bound in enumerate(FINE_S)
        if place % (PER_DECADE // _COARSE) == 0
        or (_EXACT_FROM_S <= bound <= _EXACT_UNTIL_S and place % (PER_DECADE // per_decade) == 0)
    )


BRIEF_PLACES: Final = tuple(
    place
    for place, bound in enumerate(FINE_S)
    if place % (PER_DECADE // 3) == 0 and _BRIEF_FROM_S <= bound <= _EXACT_UNTIL_S
)
"""Places of the few bounds that are told of each of many models: 3 to a decade, 0.1 ms to 10 s."""

_TWO_DIGITS: Final = (
    1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.8, 2.0, 2.2, 2.4, 2.7, 3.0,
    3.3, 3.6, 3.9, 4.3, 4.7, 5.1, 5.6, 6.2, 6.8, 7.5, 8.2, 9.1,
)  # fmt: skip

_FEW_DIGITS: Final = frozenset({1.0, 1.5, 2.2, 3.3, 4.7, 6.8})

TWO_DIGITS_S: Final = (
    *(
        bound
        for decade in range(-4, 2)
        for digits in _TWO_DIGITS
        if _EXACT_FROM_S <= (bound := float(f"{digits}e{decade}")) <= _EXACT_UNTIL_S
        or digits in _FEW_DIGITS
    ),
    100.0,
)
"""From 0.1 ms to 100 s, 24 to a decade from 0.5 ms to 10 s: bounds of Envoy's buckets as well."""

_HALF_OF_THEM: Final = frozenset(
    float(f"{digits}e{decade}") for decade in range(-4, 3) for digits in _TWO_DIGITS[::2]
)
BRIEF_TWO_DIGITS_S: Final = tuple(bound for bound in TWO_DIGITS_S if bound in _HALF_OF_THEM)
"""Of these 12 to a decade from 0.5 ms to 10 s."""
