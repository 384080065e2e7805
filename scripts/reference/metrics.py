"""What a replica counts, from what it really says."""

import re

from headrace.core import ReplicaSettings
from headrace.observe import ModelStatistics
from headrace.serving.exposition import exposition
from headrace.serving.state import ReplicaState
from scripts.reference.text import cell


def replica_metric_table() -> str:
    """Name, type, labels and meaning of every metric of a replica."""
    settings = ReplicaSettings(model_name="digits", model_version="1", path="")
    statistics = ModelStatistics(name="digits", version="1")
    text = exposition(ReplicaState(settings=settings, statistics=statistics)).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = [
        f"| `{name}` | {kinds[name]} | {_labels(name, text)} | {cell(meaning)} |"
        for name, meaning in re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE)
    ]
    head = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _labels(metric: str, text: str) -> str:
    found = re.search(rf"^{metric}(?:_bucket)?\{{([^}}]*)\}}", text, re.MULTILINE)
    names = re.findall(r"(\w+)=", found[1]) if found else []
    return ", ".join(f"`{name}`" for name in names if name != "le")
