"""Fill the parts of the reference pages that come from the code.

    python -m scripts.gen_reference

A page holds prose and, between `begin generated NAME` and `end generated` comments, what this
script makes of the code. The pages are committed, so that they can be read and reviewed without a
build; a test fails when they are stale.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from headrace import client
from headrace.advise.audit.checks import check_table
from headrace.control.api.endpoints import ConditionType
from headrace.core import (
    ArtifactsSettings,
    BatchingSpec,
    InferResponse,
    ModelSignature,
    PaddingSpec,
    PoolReplicaSettings,
    ReplicaSettings,
    RequestedOutput,
    TensorSpec,
)
from headrace.core.spec.parse import json_schema
from headrace.features import ForeignStore, OnlineStore
from headrace.runtimes import LoadOptions, Model, PythonModel, Runtime
from scripts.reference.api import class_head, class_section
from scripts.reference.commands import command_sections
from scripts.reference.enums import word_table
from scripts.reference.errors import code_table, error_table
from scripts.reference.events import event_table, phase_table
from scripts.reference.management import management_sections
from scripts.reference.metrics import (
    pool_metric_table,
    replica_metric_table,
    stream_metric_table,
)
from scripts.reference.settings import settings_section
from scripts.reference.spec import spec_sections
from scripts.reference.walk import walk_sections

REFERENCE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference"
WITH_PARTS: Final = (
    REFERENCE.parent / "how-to" / "audit.md",
    REFERENCE.parent / "explain" / "data-path.md",
)
"""Pages elsewhere that have generated parts, too."""
SCHEMA: Final = "headrace.schema.json"
_SETTINGS: Final = (
    ReplicaSettings,
    BatchingSpec,
    PaddingSpec,
    PoolReplicaSettings,
    ArtifactsSettings,
)
PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "checks": check_table,
    "cli": command_sections,
    "client": lambda: "\n".join(_client_sections()),
    "codes": code_table,
    "conditions": lambda: word_table(ConditionType, "condition"),
    "errors": error_table,
    "events": event_table,
    "management": management_sections,
    "online stores": lambda: "\n".join(map(class_section, (OnlineStore, ForeignStore))),
    "phases": phase_table,
    "pool metrics": pool_metric_table,
    "replica metrics": replica_metric_table,
    "replica settings": lambda: "\n".join(settings_section(kind) for kind in _SETTINGS),
    "runtimes": lambda: "\n".join(map(class_section, (Runtime, Model, LoadOptions, PythonModel))),
    "stream metrics": stream_metric_table,
    "spec": lambda: spec_sections(json_schema()),
    "walk": walk_sections,
}
"""What makes the text of each generated part."""

_PART: Final = re.compile(
    r"(<!-- begin generated ([a-z ]+) -->\n).*?(<!-- end generated -->)", re.DOTALL
)


def _client_sections() -> Iterator[str]:
    yield class_section(client.Client)
    # Its methods are the same, as coroutines.
    yield class_head(client.AsyncClient)
    for kind in (InferResponse, RequestedOutput, ModelSignature, TensorSpec):
        yield class_head(kind)
    shown = {"Client", "AsyncClient"}
    for name in sorted(set(client.__all__) - shown):
        if isinstance(kind := getattr(client, name), type):
            yield class_head(kind)


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        path.write_text(text)


def pages() -> dict[Path, str]:
    """The text that each file should have."""
    files = (*sorted(REFERENCE.glob("*.md")), *WITH_PARTS)
    found = {path: _filled(path.read_text()) for path in files}
    return found | {REFERENCE / SCHEMA: json.dumps(json_schema(), indent=2) + "\n"}


def _filled(text: str) -> str:
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", text)


if __name__ == "__main__":
    main()
