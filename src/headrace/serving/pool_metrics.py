"""A pool's figures as Prometheus text: those of each model, and how models come and go."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from headrace.serving.exposition import (
    exposition_of_many,
    metric_head,
    model_labels,
    process_lines,
    single,
)
from headrace.serving.hosted import HostedPhase

if TYPE_CHECKING:
    from headrace.serving.pool import Pool

_BY_MODEL: Final = (
    ("headrace_pool_model_loaded", "gauge", "1 if the model is loaded."),
    ("headrace_pool_loads_total", "counter", "How often the model was loaded."),
    ("headrace_pool_unloads_total", "counter", "How often it was unloaded to make room."),
)


def pool_exposition(pool: "Pool") -> bytes:
    """The metrics of all models of `pool`, in Prometheus' text format 0.0.4."""
    states = [hosted.state for hosted in pool.models.values()]
    return exposition_of_many(states, _pool_lines(pool))


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
