"""A pool's figures as Prometheus text: those of each model, and how models come and go."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from headrace.observe.text import metric_head, single
from headrace.serving.exposition import JoinedExposition, model_labels, process_lines
from headrace.serving.hosted import HostedPhase

if TYPE_CHECKING:
    from headrace.serving.pool import Pool

_BY_MODEL: Final = (
    ("headrace_pool_model_loaded", "gauge", "1 if the model is loaded."),
    ("headrace_pool_loads_total", "counter", "How often the model was loaded."),
    ("headrace_pool_unloads_total", "counter", "How often it was unloaded to make room."),
)


async def pool_exposition(pool: "Pool", query: bytes = b"") -> bytes:
    """The metrics of `pool`, in Prometheus' text format 0.0.4; `query` may hold `BRIEF`.

    Models that were never asked are left out. Others are answered in between.
    """
    text = JoinedExposition()
    for hosted in list(pool.models.values()):
        if hosted.is_used:
            text.add_model(hosted.state, query)
            await asyncio.sleep(0)
    text.add(_pool_lines(pool))
    return text.text()


def _pool_lines(pool: "Pool") -> Iterator[str]:
    for name, kind, text in _BY_MODEL:
        yield from metric_head(name, kind, text)
        for hosted in pool.models.values():
            value = {
                "headrace_pool_model_loaded": int(hosted.phase is HostedPhase.LOADED),
                "headrace_pool_loads_total": hosted.loads,
                "headrace_pool_unloads_total": hosted.unloads,
            }[name]
            yield f"{name}{{{model_labels(hosted.state)}}} {value}"
    report = pool.report()
    labels = f'pool="{report.pool}"'
    text = "What loaded models take, as measured when each was tried."
    yield from single("headrace_pool_loaded_bytes", "gauge", text, labels, report.loaded_bytes)
    text = "What loaded models may take."
    yield from single("headrace_pool_memory_bytes", "gauge", text, labels, report.memory_bytes)
    yield from process_lines(labels)
