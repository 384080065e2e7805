"""What does the autoscaler look at? What one arm of an endpoint did since the last look."""

import msgspec


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all copies of one arm. None means that it is not known, never that it is zero.

    `at`: seconds since 1970. `ready` and `starting` count copies; those that leave are in neither.
    `in_flight`: requests taken and not answered, over all copies. `arrivals`: requests per second,
    refused ones included. `queue_wait_s`: mean wait of those answered. `p99_s`: of the last few
    panic windows.

    `service_s`: how long one request keeps one copy's busiest part busy, so that a copy can answer
    at most `1 / service_s` per second. `run_s`: how long a run takes, and `concurrency`: how many
    run at once in one copy. `held`: requests that wait for the first copy.

    `is_partial`: not every ready copy reported. Sums are then lower bounds: good enough to add
    copies, not to take any away.
    """

    at: float
    ready: int
    starting: int = 0
    in_flight: float | None = None
    arrivals: float | None = None
    queue_wait_s: float | None = None
    p99_s: float | None = None
    service_s: float | None = None
    run_s: float | None = None
    concurrency: int = 1
    held: int = 0
    is_partial: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether too little is known to take copies away."""
        return self.is_partial or self.in_flight is None or self.arrivals is None
