"""Tables of the metrics that a replica, a pool's replica and a stream worker expose."""

import asyncio
import re
from typing import Any, cast

from headrace.core import Code, PoolReplicaSettings, ReplicaSettings
from headrace.observe import ModelStatistics
from headrace.observe.row_checks import RowCheckCounts
from headrace.serving.pool.application import pool_exposition
from headrace.serving.pool.pool import ModelPool
from headrace.serving.state import ReplicaState
from headrace.serving.telemetry.metrics import exposition
from headrace.streaming.metrics import Counters
from headrace.streaming.metrics import render_metrics as stream_exposition
from headrace.streaming.settings import PartitionStatus, StreamStatus
from scripts.reference.tables import cell

_SETTINGS = ReplicaSettings(model_name="digits", model_version="1", path="")


def replica_metric_table() -> str:
    """Name, type, labels and meaning of every metric of a replica."""
    statistics = ModelStatistics(name="digits", version="1")
    text = exposition(
        ReplicaState(settings=_SETTINGS, statistics=statistics, row_checks=RowCheckCounts())
    ).decode()
    return _table(text)


def pool_metric_table() -> str:
    """The same of what a pool's copy adds."""
    unused = cast("Any", None)  # nothing is loaded here
    pool = ModelPool(PoolReplicaSettings(name="small"), trial=unused, loader=unused)
    pool.declare([_SETTINGS])
    return _table(asyncio.run(pool_exposition(pool)).decode(), prefix="headrace_pool_")


def stream_metric_table() -> str:
    """The same of a stream's worker."""
    partition = PartitionStatus(topic="in", partition=0, lag_records=0, lag_s=0.0)
    status = StreamStatus(stream="pay", member="pay-0", partitions=[partition])
    counters = Counters(failed={Code.INVALID_ARGUMENT: 1})
    return _table(stream_exposition(counters, status).decode())


def _table(text: str, *, prefix: str = "") -> str:
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = [
        f"| `{name}` | {kinds[name]} | {_labels(name, text)} | {cell(meaning)} |"
        for name, meaning in re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE)
        if name.startswith(prefix)
    ]
    head = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _labels(metric: str, text: str) -> str:
    match = re.search(rf"^{metric}(?:_bucket)?\{{([^}}]*)\}}", text, re.MULTILINE)
    names = re.findall(r"(\w+)=", match[1]) if match else []
    return ", ".join(f"`{name}`" for name in names if name != "le")
