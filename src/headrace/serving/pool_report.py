"""What does a whole pool's copy report? The sums of its models' counters, as one replica's."""

import time
from operator import add
from typing import Final

from headrace.observe import Histogram
from headrace.serving.memory import peak_bytes, resident_bytes
from headrace.serving.pool import Pool
from headrace.serving.report import ReplicaReport

POOL_PREFIX: Final = "pool:"
"""Before a pool's name where an endpoint's is expected."""


def pool_totals(pool: Pool) -> ReplicaReport:
    """The counters of all models of `pool` together. Called on the event loop's thread."""
    models = list(pool.models.values())
    states = [hosted.state for hosted in models]
    statistics = [state.statistics for state in states]
    waiting = sum(state.waiting for state in states)
    in_flight = waiting + sum(hosted.in_flight for hosted in models)
    queued = waiting + sum(s.served.engine.waiting for s in states if s.served)
    answered = sum(one.success.count for one in statistics)
    failed = sum(one.fail.count for one in statistics)
    batches = (batch for one in statistics for batch in one.batches.values())
    return ReplicaReport(
        replica=pool.settings.replica,
        model=POOL_PREFIX + pool.settings.name,
        version="",
        at=time.monotonic(),
        ready=pool.is_ready,
        in_flight=in_flight,
        queued=queued,
        received=answered + failed + in_flight,
        answered=answered,
        failed=failed,
        queue_wait_s=sum(state.phases.queue_wait.sum for state in states),
        bounds_s=list(Histogram().bounds),
        queue_wait=_together([state.phases.queue_wait for state in states]),
        request=_together([state.phases.request for state in states]),
        cpu_s=time.process_time(),
        request_s=sum(one.success.ns for one in statistics) / 1e9,
        run_s=sum(one.compute_infer.ns for one in statistics) / 1e9,
        busy_s=sum(batch.compute_infer.ns for batch in batches) / 1e9,
        loop_s=time.thread_time(),
        rss_bytes=resident_bytes(),
        peak_rss_bytes=peak_bytes(),
        intra_op_threads=1,
    )


def _together(histograms: list[Histogram]) -> list[int]:
    counts = Histogram().counts
    for histogram in histograms:
        counts = list(map(add, counts, histogram.counts))
    return counts
