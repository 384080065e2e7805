"""Export: documents with names, labels and notes, written as YAML or JSON."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import StringIO
from typing import Any, Final, TypeAlias

from ruamel.yaml import YAML

from headrace import __version__
from headrace.control.kubernetes.names import (
    COMPONENT,
    ENDPOINT,
    MANAGED_BY,
    VERSION,
    label_value,
    revision_name,
)
from headrace.control.kubernetes.names import INSTANCE as INSTANCE_LABEL
from headrace.core import InvalidArgumentError
from headrace.deploy.facts import Endpoint, ExportFacts, Version
from headrace.deploy.features import (
    ExportNote,
    ExportOutcome,
    ExportTarget,
    FeatureSupport,
    Loss,
    accepted,
    is_within,
    setting_outcomes,
    unique_texts,
)
from headrace.deploy.table import TABLE

INSTANCE: Final = "headrace"
MANAGER: Final = "headrace-export"
"""Who says that an object is an export's: a control plane leaves it alone."""
_LONGEST: Final = 63
_NOT_DNS: Final = re.compile(r"[^a-z0-9-]+")
_HASH: Final = 8


def object_name(*parts: str, longest: int = _LONGEST) -> str:
    """`instance-endpoint-version` as a DNS label.

    What DNS does not take becomes a dash. Where something changed or was cut, a hash of the whole
    tells two names apart that would be one. A revision's objects have the driver's names instead.
    """
    whole = "-".join(part for part in parts if part)
    name = _NOT_DNS.sub("-", whole.lower()).strip("-")
    if name == whole and len(name) <= longest and name[:1].isalpha():
        return name
    mark = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_HASH]
    short = name[: longest - _HASH - 3].strip("-")
    start = short if short[:1].isalpha() else f"e-{short}".rstrip("-")
    return f"{start}-{mark}"


def labels(
    instance: str, component: str, *, endpoint: str = "", version: str = ""
) -> dict[str, str]:
    """The labels of every object of ours that is no revision's."""
    values = {ENDPOINT: endpoint, VERSION: version}
    return {
        "app.kubernetes.io/name": "headrace",
        INSTANCE_LABEL: instance,
        COMPONENT: component,
        "app.kubernetes.io/version": __version__,
        MANAGED_BY: MANAGER,
        **{key: label_value(value) for key, value in values.items() if value},
    }


Body: TypeAlias = dict[str, Any]
"""A document of another system's, as JSON has it."""
Services: TypeAlias = Mapping[tuple[str, str], tuple[str, int | None]]
"""Names and ports of Services, by endpoint and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportDocument:
    """One document. `name`: what its file is called, without an ending."""

    name: str
    body: Body


def manifest(api_version: str, kind: str, metadata: Body, **parts: Body) -> ExportDocument:
    """An object of Kubernetes'; its file is called by its kind and name."""
    body = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}
    return ExportDocument(name=f"{kind.lower()}-{metadata['name']}", body=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What a target gets. `notes`: what is only about the same, or left out by leave."""

    target: ExportTarget
    documents: tuple[ExportDocument, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTarget:
    """Where in a cluster an export belongs, and what is there already.

    `services`: names and ports of Services by endpoint and version, where they are others'.
    """

    instance: str = INSTANCE
    namespace: str = "default"
    services: Services | None = None

    def service(self, endpoint: Endpoint, version: Version) -> tuple[str, int | None]:
        """The Service of a version, and its port where it is not the usual one.

        The driver's, where its name can be known; else a plain name.
        """
        named_service = (self.services or {}).get((endpoint.name, version.number))
        if named_service is not None:
            return named_service
        if version.revision:
            revision_key = (endpoint.name, version.number, version.revision)
            return revision_name(*revision_key, instance=self.instance), None
        return object_name(self.instance, endpoint.name, version.number), None

    def has_drivers_service(self, endpoint: Endpoint, version: Version) -> bool:
        """Whether the Service of a version is one that the driver makes: it speaks HTTP only."""
        is_given = (endpoint.name, version.number) in (self.services or {})
        return bool(version.revision) and not is_given

    def metadata(self, name: str, labels: Mapping[str, str]) -> Body:
        """The head of an object."""
        return {"name": name, "namespace": self.namespace, "labels": dict(labels)}


_COPYING: Final = (ExportTarget.GATEWAY_API, ExportTarget.ENVOY, ExportTarget.AWS_APIGATEWAY)
"""Targets that copy requests, or have a gateway behind them that does."""


def finish(
    target: ExportTarget,
    facts: ExportFacts,
    documents: Iterable[ExportDocument],
    *,
    losses: Iterable[Loss] = (),
    notes: Iterable[ExportNote] = (),
) -> Export:
    """The export, if nothing is lost but what may be.

    Args:
        losses: What the table does not know: how parts of the spec stand to each other.
        notes: The same for what is only about the same.

    Raises:
        NotExpressibleError: The spec says what the target cannot express.
    """
    exported = {endpoint.location for endpoint in facts.endpoints}
    lost: list[Loss] = []
    all_notes = list(notes)
    approximated: list[tuple[FeatureSupport, str]] = []
    for setting_outcome in setting_outcomes(TABLE, target, facts.spec):
        location = setting_outcome.setting.location
        if location.startswith("endpoints[") and location.partition("]")[0] + "]" not in exported:
            continue
        if setting_outcome.is_lost:
            lost.append(setting_outcome.loss())
        elif setting_outcome.cell.outcome is ExportOutcome.APPROXIMATED and not any(
            cell == setting_outcome.cell and is_within(location, outer)
            for cell, outer in approximated
        ):  # once of a part, and not again of what is in it
            approximated.append((setting_outcome.cell, location))
            all_notes.append(ExportNote(setting_outcome.cell.note, location))
    if target not in _COPYING:
        lost += [
            Loss(f"{e.location}.rollout", "copies no requests to a shadow", "wait until it is over")
            for e in facts.endpoints
            if e.mirror
        ]
    left_out = accepted(target.value, [*lost, *losses], facts.allowed)
    all_notes += [loss.left_out(target.value) for loss in left_out]
    return Export(target=target, documents=tuple(documents), notes=unique_texts(all_notes))


def implied_access(facts: ExportFacts, why: str, remedy: str) -> list[Loss]:
    """Endpoints that say nothing of access: beyond loopback Headrace asks who calls.

    A target that cannot ask would open them, and nobody said that it may.
    """
    return [
        Loss(
            f"{endpoint.location}.access",
            f"is not set, so that Headrace asks who calls beyond loopback, and {why}",
            remedy,
        )
        for endpoint in facts.endpoints
        if endpoint.spec.access is None
    ]


NO_AUTHENTICATION: Final = ("this asks nobody", "say `access: public`, or have something else ask")


def addresses_of(
    facts: ExportFacts, requested: Mapping[tuple[str, str], Sequence[str]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """The addresses of each version's replicas, as `--replica` names them.

    Raises:
        InvalidArgumentError: A version has none, or one is for a version that is not there.
    """
    versions = {(e.name, v.number): v for e in facts.endpoints for v in e.versions}
    mistakes = [
        f"--replica {name}:{number}: there is no such version; there are "
        + ", ".join(f"{e}:{v}" for e, v in versions)
        for name, number in requested
        if (name, number) not in versions
    ]
    mistakes += [
        f"{version.location}: no address is known of version {number} of {name!r}: "
        f"--replica {name}:{number}=HOST:PORT"
        for (name, number), version in versions.items()
        if version.upstream is None and not requested.get((name, number))
    ]
    if mistakes:
        raise InvalidArgumentError("addresses are missing:\n  " + "\n  ".join(mistakes))
    return {key: tuple(dict.fromkeys(requested.get(key, ()))) for key in versions}


_WIDTH: Final = 100


class DocumentFormat(StrEnum):
    """How documents are written."""

    YAML = "yaml"
    JSON = "json"


def text_of(export: Export, form: DocumentFormat) -> str:
    """All documents in one text.

    Raises:
        InvalidArgumentError: There are several, of which JSON has room for one.
    """
    documents = export.documents
    if form is DocumentFormat.JSON:
        if len(documents) == 1:
            return _json(documents[0].body)
        if all("kind" in document.body for document in documents):
            items = [document.body for document in documents]
            return _json({"apiVersion": "v1", "kind": "List", "items": items})
        msg = f"these are {len(documents)} documents, of which JSON takes one: --output FOLDER"
        raise InvalidArgumentError(msg)
    return "---\n".join([_head(export), *(_yaml(d.body) for d in documents)])


def files_of(export: Export, form: DocumentFormat) -> dict[str, str]:
    """Each document as a file of its own, by its name."""
    ending = form.value
    if form is DocumentFormat.JSON:
        return {f"{d.name}.{ending}": _json(d.body) for d in export.documents}
    head = _head(export)
    return {f"{d.name}.{ending}": head + _yaml(d.body) for d in export.documents}


def _head(export: Export) -> str:
    lines = [
        f"Written by `headrace export {export.target.value}` of Headrace {__version__}.",
        "Write it again rather than change it.",
        *(line for note in export.notes for line in note.splitlines()),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _yaml(body: Mapping[str, Any]) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # an order of ours
    writer.width = _WIDTH
    writer.representer.ignore_aliases = lambda _: True  # the same part twice is no reference
    text = StringIO()
    writer.dump(json.loads(json.dumps(body)), text)  # with lists for tuples
    return text.getvalue()
