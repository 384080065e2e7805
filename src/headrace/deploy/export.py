"""What comes out of an export: documents, and what has to be said beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from headrace.control.kubernetes.names import revision_name
from headrace.core import InvalidArgumentError
from headrace.deploy.facts import Endpoint, Facts, Version
from headrace.deploy.features import Cell, Fate, Outcome, Target, fates
from headrace.deploy.losses import Loss, accepted
from headrace.deploy.names import INSTANCE, object_name
from headrace.deploy.notes import Note, told_once
from headrace.deploy.table import TABLE
from headrace.deploy.written import is_within

Body: TypeAlias = dict[str, Any]
"""A document of another system's, as JSON has it."""


Services: TypeAlias = Mapping[tuple[str, str], tuple[str, int | None]]
"""Names and ports of Services, by endpoint and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document. `name`: what its file is called, without an ending."""

    name: str
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What a target gets. `notes`: what is only about the same, or left out by leave."""

    target: Target
    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
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


_COPYING: Final = (Target.GATEWAY_API, Target.ENVOY, Target.AWS_APIGATEWAY)
"""Targets that copy requests, or have a gateway behind them that does."""


def finish(
    target: Target,
    facts: Facts,
    documents: Iterable[Document],
    *,
    losses: Iterable[Loss] = (),
    notes: Iterable[Note] = (),
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
    told: list[tuple[Cell, str]] = []
    for fate in fates(TABLE, target, facts.spec):
        place = fate.setting.place
        if place.startswith("endpoints[") and place.partition("]")[0] + "]" not in mine:
            continue
        if fate.is_lost:
            found.append(fate.loss())
        elif fate.cell.outcome is Outcome.APPROXIMATED and not _is_said(fate, told):
            told.append((fate.cell, place))
            said.append(Note(fate.cell.note, place))
    if target not in _COPYING:
        found += [
            Loss(f"{e.place}.rollout", "copies no requests to a shadow", "wait until it is over")
            for e in facts.endpoints
            if e.mirror
        ]
    left_out = accepted(target.value, [*found, *losses], facts.allowed)
    said += [loss.left_out(target.value) for loss in left_out]
    return Export(target=target, documents=tuple(documents), notes=told_once(said))


def _is_said(fate: Fate, told: Iterable[tuple[Cell, str]]) -> bool:
    """Whether the same was said of a part that this setting is in."""
    return any(cell == fate.cell and is_within(fate.setting.place, place) for cell, place in told)


def implied_access(facts: Facts, why: str, way_out: str) -> list[Loss]:
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
    facts: Facts, given: Mapping[tuple[str, str], Sequence[str]]
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
