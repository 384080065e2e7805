"""Made-up readings: a version's second, with exact or drawn numbers."""

from collections.abc import Iterator, Sequence

import numpy as np

from headrace.rollout.readings import ArmCounts, Buckets, Increment


def in_buckets(
    *, lower_s: Sequence[float], width_s: Sequence[float], counts: Sequence[int]
) -> Buckets:
    """Requests of buckets with these edges and widths."""
    return dict(zip(zip(lower_s, width_s, strict=True), counts, strict=True))


def two_digits(latencies: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> Buckets:
    """Latencies in buckets of two significant digits, as the gateway has them."""
    unit = 10.0 ** (np.floor(np.log10(latencies)) - 1.0)
    lower = np.round(np.floor(latencies / unit) * unit, 9)
    keys, first, counts = np.unique(lower, return_index=True, return_counts=True)
    return in_buckets(
        lower_s=tuple(keys.tolist()),
        width_s=tuple(unit[first].tolist()),
        counts=tuple(counts.tolist()),
    )


def drawn(
    rng: np.random.Generator,
    requests: int,
    *,
    errors: float = 0.0,
    rejections: float = 0.0,
    times_slower: float = 1.0,
    yes: float = 0.3,
) -> ArmCounts:
    """One arm's second; latencies log-normal with a median of 20 ms, answers `yes` or `no`."""
    failed = int(rng.binomial(requests, errors))
    said_yes = int(rng.binomial(requests - failed, yes))
    latencies = np.exp(rng.normal(np.log(0.02 * times_slower), 0.5, requests))
    return ArmCounts(
        requests=requests,
        errors=failed,
        rejections=int(rng.binomial(requests - failed, rejections)),
        latency=two_digits(latencies),
        classes={"yes": said_yes, "no": requests - failed - said_yes},
    )


def seconds(
    seed: int,
    *,
    share: float = 0.5,
    requests_per_s: float = 100.0,
    errors: tuple[float, float] = (0.0, 0.0),
    rejections: tuple[float, float] = (0.0, 0.0),
    times_slower: float = 1.0,
    yes: tuple[float, float] = (0.3, 0.3),
) -> Iterator[Increment]:
    """Second after second; pairs are baseline's and candidate's."""
    rng = np.random.default_rng(seed)
    at = 0.0
    while True:
        at += 1.0
        total = int(rng.poisson(requests_per_s))
        to_candidate = int(rng.binomial(total, share))
        yield Increment(
            at=at,
            duration_s=1.0,
            share=share,
            baseline=drawn(
                rng,
                total - to_candidate,
                errors=errors[0],
                rejections=rejections[0],
                yes=yes[0],
            ),
            candidate=drawn(
                rng,
                to_candidate,
                errors=errors[1],
                rejections=rejections[1],
                times_slower=times_slower,
                yes=yes[1],
            ),
        )
