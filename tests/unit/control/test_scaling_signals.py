import msgspec
import pytest

from headrace.autoscale import Signals
from headrace.control.scaling.signals import STALE_S, ArmMeter
from headrace.core.spec.scale import AutoscaleSpec
from headrace.serving.telemetry.report import ReplicaReport

BOUNDS = [0.1, 0.2]
SETTINGS = AutoscaleSpec()


def report(at: float, received: int, **other: float) -> ReplicaReport:
    found = ReplicaReport(
        replica="r",
        model="m",
        version="1",
        at=at,
        ready=True,
        in_flight=2,
        received=received,
        answered=received,
        bounds_s=BOUNDS,
        request=[received, 0, 0],
        queue_wait=[received, 0, 0],
        cpu_s=at,
        max_concurrent_runs=2,
    )
    return msgspec.structs.replace(found, **other)


def look(meter: ArmMeter, at: float, **reports: ReplicaReport | None) -> Signals:
    return meter.signals(list(reports), reports, SETTINGS, now=at, monotonic=at, starting=0, held=0)


def test_signals_are_what_came_between_two_reports() -> None:
    meter = ArmMeter()
    first = look(meter, 10.0, a=report(10.0, 100, busy_s=5.0, run_s=5.0, queue_wait_s=1.0))

    second = look(meter, 11.0, a=report(11.0, 150, busy_s=6.0, run_s=6.5, queue_wait_s=1.5))

    assert first.is_missing, "one report says nothing about a rate"
    assert second.arrivals == pytest.approx(50.0)
    assert second.in_flight == 2.0
    assert second.service_s == pytest.approx(0.01), "two runs at once: half of 1 s / 50"
    assert second.run_s == pytest.approx(0.03)
    assert second.queue_wait_s == pytest.approx(0.01)
    assert second.concurrency == 2
    assert second.p99_s is not None
    assert not second.is_missing


def test_an_event_loop_that_is_busier_than_the_runs_is_what_counts() -> None:
    meter = ArmMeter()
    look(meter, 10.0, a=report(10.0, 0))

    signals = look(meter, 11.0, a=report(11.0, 1000, busy_s=0.3, loop_s=0.9))

    assert signals.service_s == pytest.approx(0.0009)
    assert signals.concurrency == 1


def test_the_same_report_seen_twice_keeps_the_rate() -> None:
    meter = ArmMeter()
    look(meter, 10.0, a=report(10.0, 100))
    newest = report(11.0, 150)
    look(meter, 11.0, a=newest)

    again = look(meter, 12.0, a=newest)
    stale = look(meter, 11.0 + STALE_S + 0.1, a=newest)

    assert again.arrivals == pytest.approx(50.0)
    assert not again.is_missing
    assert stale.is_missing
    assert (stale.in_flight, stale.arrivals) == (None, None)


def test_a_report_after_a_gap_counts_for_the_time_that_it_spans() -> None:
    meter = ArmMeter()
    look(meter, 10.0, a=report(10.0, 100))

    signals = look(meter, 14.0, a=report(14.0, 180))

    assert signals.arrivals == pytest.approx(20.0)


def test_a_process_that_began_anew_counts_from_nothing() -> None:
    meter = ArmMeter()
    look(meter, 10.0, a=report(10.0, 1000, cpu_s=100.0))

    signals = look(meter, 11.0, a=report(11.0, 30, cpu_s=0.2))

    assert signals.arrivals == pytest.approx(30.0)


def test_replicas_are_added_up_and_a_silent_one_makes_it_partial() -> None:
    meter = ArmMeter()
    look(meter, 10.0, a=report(10.0, 0), b=report(10.0, 0))
    whole = look(meter, 11.0, a=report(11.0, 10), b=report(11.0, 30))
    partial = look(meter, 12.0, a=report(12.0, 20), b=report(12.0, 60), c=None)
    without = look(meter, 13.0, a=report(13.0, 30))

    assert whole.arrivals == pytest.approx(40.0)
    assert not whole.is_partial
    assert partial.is_partial
    assert partial.arrivals == pytest.approx(40.0)
    assert without.arrivals == pytest.approx(10.0), "one that is not ready any more is not counted"


def test_what_waits_in_sockets_is_in_flight_as_the_gateway_knows() -> None:
    meter = ArmMeter()

    def seen(at_gateway: int | None, **reports: ReplicaReport) -> float | None:
        return meter.signals(
            list(reports),
            reports,
            SETTINGS,
            now=10.0,
            monotonic=10.0,
            starting=0,
            held=0,
            at_gateway=at_gateway,
        ).in_flight

    assert seen(None, a=report(10.0, 0)) == 2.0
    assert seen(50, a=report(10.0, 0)) == 50.0
    assert seen(1, a=report(10.0, 0)) == 2.0
    assert seen(7) == 7.0
    assert seen(None) is None


def test_a_language_models_requests_between_two_reports_are_in_flight() -> None:
    meter = ArmMeter()

    def llm(at: float, run_s: float, in_flight: int = 0) -> float | None:
        told = report(at, 0, run_s=run_s, busy_s=run_s, in_flight=in_flight)
        return look(meter, at, a=told).in_flight

    assert llm(10.0, 0.0) == 0.0
    assert llm(11.0, 0.5) == 0.5, "one of half a second came and went"
    assert llm(12.0, 0.5) == 0.0
    assert llm(13.0, 0.5, in_flight=3) == 3.0
    assert llm(23.0, 30.5) == 0.0, "these were counted while they ran"
    assert look(meter, 24.0, a=report(24.0, 0, run_s=30.5)).concurrency == 2


def test_use_is_told_per_copy() -> None:
    meter = ArmMeter()
    assert meter.cores_per_busy_copy == 0.0
    assert meter.memory_bytes == 0

    for second in range(4):
        look(
            meter,
            10.0 + second,
            a=report(
                10.0 + second,
                100 * second,
                busy_s=1.6 * second,
                cpu_s=1.5 * second,
                rss_bytes=50,
                peak_rss_bytes=80,
            ),
        )

    assert meter.cores == pytest.approx(1.5)
    assert meter.cores_per_busy_copy == pytest.approx(1.5 / 0.8)
    assert meter.memory_bytes == 80
    observed = meter.observed()
    assert observed.answered == 300
    assert observed.seconds == pytest.approx(3.0)


def test_old_use_fades() -> None:
    meter = ArmMeter()
    for second in range(700):
        rate = 1.0 if second < 350 else 0.1
        look(meter, float(second), a=report(float(second), second, cpu_s=second * rate + 1000.0))

    assert meter.observed().seconds < 700
