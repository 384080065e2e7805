"""Metrics of a pool: those of each model, and how models come and go."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from headrace.observe.metrics import Family, Sample, counter, gauge, merge, number, text
from headrace.serving.exposition import BRIEF, model_families, model_labels, process_families
from headrace.serving.hosted import HostedPhase

if TYPE_CHECKING:
    from headrace.serving.pool import Pool


async def pool_exposition(pool: "Pool", query: bytes = b"") -> bytes:
    """The metrics of `pool` in Prometheus text format 0.0.4; `query` may hold `BRIEF`.

    Models that were never asked are left out. Others are answered in between.
    """
    families: list[Family] = []
    for hosted in list(pool.models.values()):
        if hosted.is_used:
            families += model_families(hosted.state, is_brief=BRIEF in query)
            await asyncio.sleep(0)
    families += _pool_families(pool)
    return text(map(_summed, merge(families).values()))


def _summed(family: Family) -> Family:
    """`family` with one sample for each series: KServe's have no label for the version."""
    if len({(sample.name, sample.labels) for sample in family.samples}) == len(family.samples):
        return family
    totals: dict[tuple[str, str], float] = {}
    for sample in family.samples:
        series = sample.name, sample.labels
        totals[series] = totals.get(series, 0.0) + float(sample.value)
    samples = [Sample(*series, number(total)) for series, total in totals.items()]
    return Family(family.name, family.type, family.help, samples)


def _pool_families(pool: "Pool") -> Iterator[Family]:
    hosted = [(model_labels(each.state), each) for each in pool.models.values()]
    yield gauge(
        "headrace_pool_model_loaded",
        "1 if the model is loaded.",
        [(labels, each.phase is HostedPhase.LOADED) for labels, each in hosted],
    )
    yield counter(
        "headrace_pool_loads_total",
        "How often the model was loaded.",
        [(labels, each.loads) for labels, each in hosted],
    )
    yield counter(
        "headrace_pool_unloads_total",
        "How often it was unloaded to make room.",
        [(labels, each.unloads) for labels, each in hosted],
    )
    report = pool.report()
    labels = (("pool", report.pool),)
    yield gauge(
        "headrace_pool_loaded_bytes",
        "What loaded models take, as measured when each was tried.",
        [(labels, report.loaded_bytes)],
    )
    yield gauge(
        "headrace_pool_memory_bytes",
        "What loaded models may take.",
        [(labels, report.memory_bytes)],
    )
    yield from process_families(labels)
