"""Spec parts for capacity: `autoscale`, `budget`, `pools`, and the gateway's `connections`."""

from typing import Annotated, Final

from msgspec import Meta

from headrace.core.cron import check_schedule
from headrace.core.names import NAME_PATTERN
from headrace.core.settings import DEFAULT_MAX_BODY_BYTES
from headrace.core.spec.part import DERIVED, SpecPart

_DAY_S: Final = 86_400.0


class ScaleScheduleSpec(SpecPart, frozen=True, kw_only=True):
    """Minimum number of replicas for some time after each moment that a cron line names."""

    cron: Annotated[str, Meta(min_length=9, max_length=200)]
    """Cron line with five fields: `0 8 * * 1-5`."""
    duration_s: Annotated[float, Meta(gt=0.0, le=7 * _DAY_S)]
    """How long the minimum applies. Unit: seconds."""
    min_replicas: Annotated[int, Meta(ge=1, le=1024)]
    """Minimum number of replicas. Unit: processes."""
    timezone: Annotated[str, Meta(max_length=64)] = "UTC"
    """Time zone, such as Europe/Berlin."""

    def __post_init__(self) -> None:
        check_schedule(self.cron, self.timezone)


class AutoscaleSpec(SpecPart, frozen=True, kw_only=True):
    """Number of replicas by load."""

    min_replicas: Annotated[int, Meta(ge=0, le=1024)] = 1
    """Minimum number of replicas; 0 scales to zero. Unit: processes."""
    max_replicas: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Maximum number of replicas. Unit: processes."""
    target_in_flight: Annotated[float, Meta(gt=0.0, le=1000000.0)] | None = None
    """Requests running or queued per replica; null derives it from the slo."""
    target_queue_wait_s: Annotated[float, Meta(gt=0.0, le=3600.0)] | None = None
    """Mean wait in a queue; null derives it from the slo. Unit: seconds."""
    slo_latency_s: Annotated[float | None, DERIVED] = None
    """The endpoint's `slo.latency_s`: above this p99, a replica is added. Unit: seconds."""
    stable_window_s: Annotated[float, Meta(ge=1.0, le=3600.0)] = 60.0
    """Averaging window of the signals. Unit: seconds."""
    panic_window_s: Annotated[float, Meta(ge=1.0, le=600.0)] = 6.0
    """Short window for bursts. Unit: seconds."""
    panic_ratio: Annotated[float, Meta(ge=1.0, le=100.0)] = 1.1
    """Ratio of load to target from which the short window decides."""
    scale_down_delay_s: Annotated[float, Meta(ge=0.0, le=_DAY_S)] = 120.0
    """How long fewer replicas must have been enough. Unit: seconds."""
    max_scale_up_ratio: Annotated[float, Meta(gt=1.0, le=1000.0)] = 4.0
    """Limit of one scale-up, as a factor."""
    max_scale_down_ratio: Annotated[float, Meta(gt=1.0, le=1000.0)] = 2.0
    """Limit of one scale-down, as a factor."""
    idle_s: Annotated[float, Meta(ge=1.0, le=_DAY_S)] = 300.0
    """Time without a request after which to scale to zero. Unit: seconds."""
    hold_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 30.0
    """How long a request waits for the first replica. Unit: seconds."""
    max_held: Annotated[int, Meta(ge=0, le=100000)] = 100
    """Number of waiting requests above which more are refused."""
    schedule: Annotated[tuple[ScaleScheduleSpec, ...], Meta(max_length=64)] = ()
    """Known busy times. See ScheduleSpec."""

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            msg = f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}"
            raise ValueError(msg)
        if self.panic_window_s > self.stable_window_s:
            msg = f"panic_window_s {self.panic_window_s:g} is above stable_window_s"
            raise ValueError(msg)
        for hint in self.schedule:
            if hint.min_replicas > self.max_replicas:
                msg = (
                    f"a schedule needs {hint.min_replicas} replicas, but max_replicas is "
                    f"{self.max_replicas}"
                )
                raise ValueError(msg)


class BudgetSpec(SpecPart, frozen=True, kw_only=True):
    """Resources of all replicas together."""

    cpus: Annotated[float, Meta(gt=0.0, le=4096.0)] | None = None
    """CPU limit; null for all of the machine's. Unit: cores."""
    memory_bytes: Annotated[int, Meta(ge=1 << 20)] | None = None
    """Memory limit; null for all of the machine's. Unit: bytes."""


class PoolSpec(SpecPart, frozen=True, kw_only=True):
    """Processes that host several small models, each loaded at its first request."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    """Name by which endpoints refer to it."""
    replicas: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Number of replicas. Unit: processes."""
    memory_bytes: Annotated[int, Meta(ge=1 << 20)] = 1 << 30
    """Memory for loaded models in one replica; the least recently used are unloaded first. Unit:
    bytes.
    """
    max_loaded: Annotated[int, Meta(ge=1, le=10000)] = 64
    """Models loaded at once in one replica. Unit: models."""
    load_timeout_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 30.0
    """How long a request waits for its model to load. Unit: seconds."""
    max_body_bytes: Annotated[int, DERIVED] = DEFAULT_MAX_BODY_BYTES
    """The gateway's `max_body_bytes`. Unit: bytes."""


class ConnectionsSpec(SpecPart, frozen=True, kw_only=True):
    """Connections of the gateway, and timeouts on them."""

    max: Annotated[int, Meta(ge=16, le=1_000_000)] = 10_000
    """Open connections; more are closed immediately."""
    idle_timeout_s: Annotated[float, Meta(ge=0.1, le=_DAY_S)] = 300.0
    """A connection without a request for this time is closed. Unit: seconds."""
    headers_timeout_s: Annotated[float, Meta(ge=0.1, le=_DAY_S)] = 10.0
    """Time limit of a request's headers, after which it gets 408. Unit: seconds."""
    request_timeout_s: Annotated[float, Meta(ge=0.1, le=_DAY_S)] = 60.0
    """Time limit of the whole request, after which it gets 408. Unit: seconds."""
    max_memory_bytes: Annotated[int, Meta(ge=128 << 20, le=1 << 40)] = 2 << 30
    """Memory limit of the gateway; near it, the requests that hold the most are ended, and then new
    ones are refused. Unit: bytes.
    """
