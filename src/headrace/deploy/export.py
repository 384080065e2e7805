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
    fates,
    is_within,
    told_once,
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
    said = {ENDPOINT: endpoint, VERSION: version}
    return {
        "app.kubernetes.io/name": "headrace",
        INSTANCE_LABEL: instance,
        COMPONENT: component,
        "app.kubernetes.io/version": __version__,
        MANAGED_BY: MANAGER,
        **{key: label_value(value) for key, value in said.items() if value},
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
        given = (self.services or {}).get((endpoint.name, version.number))
        if given is not None:
            return given
        if version.revision:
            of = (endpoint.name, version.number, version.revision)
            return revision_name(*of, instance=self.instance), None
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
    mine = {endpoint.place for endpoint in facts.endpoints}
    found: list[Loss] = []
    said = list(notes)
    told: list[tuple[FeatureSupport, str]] = []
    for fate in fates(TABLE, target, facts.spec):
        place = fate.setting.place
        if place.startswith("endpoints[") and place.partition("]")[0] + "]" not in mine:
            continue
        if fate.is_lost:
            found.append(fate.loss())
        elif fate.cell.outcome is ExportOutcome.APPROXIMATED and not any(
            cell == fate.cell and is_within(place, outer) for cell, outer in told
        ):  # once of a part, and not again of what is in it
            told.append((fate.cell, place))
            said.append(ExportNote(fate.cell.note, place))
    if target not in _COPYING:
        found += [
            Loss(f"{e.place}.rollout", "copies no requests to a shadow", "wait until it is over")
            for e in facts.endpoints
            if e.mirror
        ]
    left_out = accepted(target.value, [*found, *losses], facts.allowed)
    said += [loss.left_out(target.value) for loss in left_out]
    return Export(target=target, documents=tuple(documents), notes=told_once(said))


def implied_access(facts: ExportFacts, why: str, way_out: str) -> list[Loss]:
    """Endpoints that say nothing of access: beyond loopback Headrace asks who calls.

    A target that cannot ask would open them, and nobody said that it may.
    """
    return [
        Loss(
            f"{endpoint.place}.access",
            f"is not set, so that Headrace asks who calls beyond loopback, and {why}",
            way_out,
        )
        for endpoint in facts.endpoints
        if endpoint.spec.access is None
    ]


ASKS_NOBODY: Final = ("this asks nobody", "say `access: public`, or have something else ask")


def addresses_of(
    facts: ExportFacts, given: Mapping[tuple[str, str], Sequence[str]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """The addresses of each version's replicas, as `--replica` names them.

    Raises:
        InvalidArgumentError: A version has none, or one is for a version that is not there.
    """
    known = {(e.name, v.number): v for e in facts.endpoints for v in e.versions}
    mistakes = [
        f"--replica {name}:{number}: there is no such version; there are "
        + ", ".join(f"{e}:{v}" for e, v in known)
        for name, number in given
        if (name, number) not in known
    ]
    mistakes += [
        f"{version.place}: no address is known of version {number} of {name!r}: "
        f"--replica {name}:{number}=HOST:PORT"
        for (name, number), version in known.items()
        if version.upstream is None and not given.get((name, number))
    ]
    if mistakes:
        raise InvalidArgumentError("addresses are missing:\n  " + "\n  ".join(mistakes))
    return {key: tuple(dict.fromkeys(given.get(key, ()))) for key in known}


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
