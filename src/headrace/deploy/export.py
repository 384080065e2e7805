"""Export: documents with names, labels and notes, written as YAML or JSON."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
"""Value of the managed-by label of exported objects, which a control plane does not touch."""
_LONGEST: Final = 63
_NOT_DNS: Final = re.compile(r"[^a-z0-9-]+")
_HASH: Final = 8


def object_name(*parts: str, longest: int = _LONGEST) -> str:
    """Return `instance-endpoint-version` as a DNS label.

    Characters that DNS does not allow become dashes. If a name was changed or cut, a hash of the
    whole keeps it unique. Objects of a revision have the driver's names instead.
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
    """Return the labels of exported objects that do not belong to a revision."""
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
"""A document of another system, as JSON data."""
Services: TypeAlias = Mapping[tuple[str, str], tuple[str, int | None]]
"""Names and ports of Services, by endpoint and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportDocument:
    """One document."""

    name: str
    """File name without suffix."""
    body: Body


def manifest(api_version: str, kind: str, metadata: Body, **parts: Body) -> ExportDocument:
    """Return a Kubernetes object; its file is named by kind and name."""
    body = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}
    return ExportDocument(name=f"{kind.lower()}-{metadata['name']}", body=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The result of an export."""

    target: ExportTarget
    documents: tuple[ExportDocument, ...]
    notes: tuple[str, ...] = ()
    """Approximations and allowed losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTarget:
    """The cluster's part of an export."""

    instance: str = INSTANCE

    namespace: str = "default"

    services: Services = field(default_factory=dict)
    """Names and ports of existing Services by endpoint and version."""

    def service(self, endpoint: Endpoint, version: Version) -> tuple[str, int | None]:
        """Return the Service of a version, and its port if it is not the default.

        The driver's Service if its name is known; else a plain name.
        """
        named_service = self.services.get((endpoint.name, version.number))
        if named_service is not None:
            return named_service
        if version.revision:
            revision_key = (endpoint.name, version.number, version.revision)
            return revision_name(*revision_key, instance=self.instance), None
        return object_name(self.instance, endpoint.name, version.number), None

    def has_drivers_service(self, endpoint: Endpoint, version: Version) -> bool:
        """Whether the Service of a version is created by the driver, so that it has HTTP only."""
        is_given = (endpoint.name, version.number) in self.services
        return bool(version.revision) and not is_given

    def metadata(self, name: str, labels: Mapping[str, str]) -> Body:
        """Return the metadata of an object."""
        return {"name": name, "namespace": self.namespace, "labels": dict(labels)}


_COPYING: Final = (ExportTarget.GATEWAY_API, ExportTarget.ENVOY, ExportTarget.AWS_APIGATEWAY)
"""Targets that mirror requests, or have a gateway behind them that does."""


def finish(
    target: ExportTarget,
    facts: ExportFacts,
    documents: Iterable[ExportDocument],
    *,
    losses: Iterable[Loss] = (),
    notes: Iterable[ExportNote] = (),
) -> Export:
    """Return the export, unless a loss is not allowed.

    Args:
        losses: Losses that the table does not contain, from combinations of settings.
        notes: Approximations of the same kind.

    Raises:
        NotExpressibleError: The target cannot express the spec.
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
        ):  # noted once for a part, not again for its fields
            approximated.append((setting_outcome.cell, location))
            all_notes.append(ExportNote(setting_outcome.cell.note, location))
    if target not in _COPYING:
        lost += [
            Loss(
                f"{e.location}.rollout",
                "does not mirror requests",
                "wait until the rollout is over",
            )
            for e in facts.endpoints
            if e.mirror
        ]
    left_out = accepted(target.value, [*lost, *losses], facts.allowed)
    all_notes += [loss.left_out(target.value) for loss in left_out]
    return Export(target=target, documents=tuple(documents), notes=unique_texts(all_notes))


def implied_access(facts: ExportFacts, reason: str, remedy: str) -> list[Loss]:
    """Return losses of endpoints without `access`, which beyond loopback require authentication.

    A target without authentication would make them public, which the spec does not allow.
    """
    return [
        Loss(
            f"{endpoint.location}.access",
            f"is not set, so Headrace requires authentication beyond loopback, and {reason}",
            remedy,
        )
        for endpoint in facts.endpoints
        if endpoint.spec.access is None
    ]


NO_AUTHENTICATION: Final = (
    "this target does not authenticate",
    "set `access: public`, or authenticate elsewhere",
)


def addresses_of(
    facts: ExportFacts, requested: Mapping[tuple[str, str], Sequence[str]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the addresses of each version's replicas, from `--replica`.

    Raises:
        InvalidArgumentError: A version has no address, or an address has no such version.
    """
    versions = {(e.name, v.number): v for e in facts.endpoints for v in e.versions}
    mistakes = [
        f"--replica {name}:{number}: version does not exist; versions: "
        + ", ".join(f"{e}:{v}" for e, v in versions)
        for name, number in requested
        if (name, number) not in versions
    ]
    mistakes += [
        f"{version.location}: version {number} of {name!r} has no address: "
        f"--replica {name}:{number}=HOST:PORT"
        for (name, number), version in versions.items()
        if version.upstream is None and not requested.get((name, number))
    ]
    if mistakes:
        raise InvalidArgumentError("addresses are missing:\n  " + "\n  ".join(mistakes))
    return {key: tuple(dict.fromkeys(requested.get(key, ()))) for key in versions}


_WIDTH: Final = 100


class DocumentFormat(StrEnum):
    """The format of documents."""

    YAML = "yaml"
    JSON = "json"


def text_of(export: Export, form: DocumentFormat) -> str:
    """Return all documents as one text.

    Raises:
        InvalidArgumentError: There are several documents, and JSON allows one.
    """
    documents = export.documents
    if form is DocumentFormat.JSON:
        if len(documents) == 1:
            return _json(documents[0].body)
        if all("kind" in document.body for document in documents):
            items = [document.body for document in documents]
            return _json({"apiVersion": "v1", "kind": "List", "items": items})
        msg = f"JSON allows one document, this export has {len(documents)}: use --output FOLDER"
        raise InvalidArgumentError(msg)
    return "---\n".join([_head(export), *(_yaml(d.body) for d in documents)])


def files_of(export: Export, form: DocumentFormat) -> dict[str, str]:
    """Return each document as a file, by name."""
    ending = form.value
    if form is DocumentFormat.JSON:
        return {f"{d.name}.{ending}": _json(d.body) for d in export.documents}
    head = _head(export)
    return {f"{d.name}.{ending}": head + _yaml(d.body) for d in export.documents}


def _head(export: Export) -> str:
    lines = [
        f"Written by `headrace export {export.target.value}` of Headrace {__version__}.",
        "Export again instead of editing it.",
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
