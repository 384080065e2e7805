"""MkDocs hook that fills the generated parts of the pages when the documentation is built.

A page marks such a part with a comment, `<!-- generated: NAME -->`, where `NAME` is a key of
`PARTS`. The built site also contains the JSON Schema of the spec file.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from headrace import client
from headrace.advise.audit.checks import check_table
from headrace.control.reconcile.conditions import ConditionType
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
from headrace.core.settings import LlmSpec
from headrace.core.spec.parse import json_schema
from headrace.features import ForeignStore, OnlineStore
from headrace.runtimes import LoadOptions, Model, PythonModel, Runtime
from scripts.reference.api import class_head, class_section
from scripts.reference.commands import command_sections
from scripts.reference.events import event_table, phase_table
from scripts.reference.management import management_sections
from scripts.reference.metrics import (
    pool_metric_table,
    replica_metric_table,
    stream_metric_table,
)
from scripts.reference.packages import layer_list, package_tree
from scripts.reference.schema import spec_sections
from scripts.reference.tables import code_table, error_table, settings_section, word_table

ROOT: Final = Path(__file__).resolve().parents[2]
SCHEMA: Final = "reference/headrace.schema.json"
PART: Final = re.compile(r"^<!-- generated: ([a-z ]+) -->$", re.MULTILINE)
SETTINGS: Final = (
    ReplicaSettings,
    BatchingSpec,
    PaddingSpec,
    LlmSpec,
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
    "layers": lambda: layer_list("headrace"),
    "layers of cli": lambda: layer_list("headrace.cli"),
    "layers of control": lambda: layer_list("headrace.control"),
    "layers of streaming": lambda: layer_list("headrace.streaming"),
    "management": management_sections,
    "online stores": lambda: "\n".join(map(class_section, (OnlineStore, ForeignStore))),
    "packages": package_tree,
    "phases": phase_table,
    "pool metrics": pool_metric_table,
    "replica metrics": replica_metric_table,
    "replica settings": lambda: "\n".join(settings_section(kind) for kind in SETTINGS),
    "runtimes": lambda: "\n".join(map(class_section, (Runtime, Model, LoadOptions, PythonModel))),
    "stream metrics": stream_metric_table,
    "spec": lambda: spec_sections(json_schema()),
}
"""Name of a part ▸ the function that returns its Markdown."""


def _client_sections() -> Iterator[str]:
    yield class_section(client.Client)
    # AsyncClient has the same methods, as coroutines.
    yield class_head(client.AsyncClient)
    for kind in (InferResponse, RequestedOutput, ModelSignature, TensorSpec):
        yield class_head(kind)
    shown = {"Client", "AsyncClient"}
    for name in sorted(set(client.__all__) - shown):
        if isinstance(kind := getattr(client, name), type):
            yield class_head(kind)


def fill(markdown: str) -> str:
    """Return a page's Markdown with its generated parts.

    Raises:
        KeyError: A comment names a part that does not exist.
    """
    return PART.sub(lambda match: PARTS[match[1]]().strip(), markdown)


def on_files(files: Files, /, *, config: MkDocsConfig) -> Files:
    """Add the JSON Schema of the spec file to the site."""
    content = json.dumps(json_schema(), indent=2) + "\n"
    files.append(File.generated(config, SCHEMA, content=content))
    return files


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  # MkDocs passes them by name
    """Fill the generated parts of one page."""
    return fill(markdown)
