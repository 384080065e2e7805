"""How many copies of a version run: bounds, targets and delays.

Durations are seconds, targets per replica.
"""

import msgspec


class ScheduleHint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At least `min_replicas` for `duration_s` from each time on that `cron` names.

    `cron` has five fields, in `timezone`.
    """

    cron: str
    duration_s: float
    min_replicas: int
    timezone: str = "UTC"


class AutoscaleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds and behaviour of one endpoint's replica count.

    `min_replicas` 0 scales to zero after `idle_s` without a request; the first request is then held
    for `hold_s` at most, and not more than `max_held` at once. `target_in_flight`: requests running
    or queued per replica; None derives it from the SLO and the measured service time.
    `target_queue_wait_s`: mean wait in a replica's queue; None derives it from the SLO.
    `slo_latency_s`: above this p99, add. `stable_window_s` and `panic_window_s` average the
    signals; where the panic window shows `panic_ratio` times what the ready copies should do, the
    scaler goes by that window and does not shrink. `scale_down_delay_s`: how long a smaller count
    must have been enough.
    `max_scale_up_ratio`, `max_scale_down_ratio`: how far one step may go.
    """

    min_replicas: int = 1
    max_replicas: int = 4
    target_in_flight: float | None = None
    target_queue_wait_s: float | None = None
    slo_latency_s: float | None = None
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_ratio: float = 1.1
    scale_down_delay_s: float = 120.0
    max_scale_up_ratio: float = 4.0
    max_scale_down_ratio: float = 2.0
    idle_s: float = 300.0
    hold_s: float = 30.0
    max_held: int = 100
    schedule: tuple[ScheduleHint, ...] = ()


class MachineBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all replicas together may use; None for what the machine has."""

    cpus: float | None = None
    memory_bytes: int | None = None
