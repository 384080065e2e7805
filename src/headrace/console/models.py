"""Which models are there, whence do they come, and who serves them?

Where the API has a type for its answer, that is the message; `msgspec` reads it from JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import msgspec

from headrace.console.view import Question, View
from headrace.control.reconcile.status import Status
from headrace.observe.row_checks import report_of
from headrace.registry import ModelVersion, VersionSignature

_MOST_TEXT: Final = 100
_MOST_LISTED: Final = 200


class KnownVersion(ModelVersion, frozen=True, kw_only=True):
    """A model version with its signatures."""

    signatures: tuple[VersionSignature, ...] = ()


class VersionList(msgspec.Struct, frozen=True, kw_only=True):
    """Model versions, and the index files that cannot be read."""

    models: tuple[KnownVersion, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """An endpoint that serves a version, with its share of that endpoint's requests in percent."""

    endpoint: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A model: all its versions, the newest first, and who serves any of them."""

    name: str
    versions: tuple[KnownVersion, ...]
    uses: tuple[str, ...]


async def models(question: Question) -> View:
    """All models."""
    search = question.query.get("search", "").strip()[:_MOST_TEXT]
    found = await question.visitor.get("/api/v1/models", VersionList)
    uses = await _uses(question)
    lines = [line for line in lines_of(found, uses) if search.lower() in line.name.lower()]
    return View(
        template="models.html",
        title="Models",
        section="models",
        values={
            "lines": lines[:_MOST_LISTED],
            "total": len(lines),
            "search": search,
            "problems": found.problems,
            "now": question.now,
        },
    )


async def model(question: Question) -> View:
    """One model: each version from its source to who serves it."""
    name = question.names["name"]
    found = await question.visitor.get(f"/api/v1/models/{name}", VersionList)
    uses = await _uses(question)
    return View(
        template="model.html",
        title=f"Model {name}",
        section="models",
        values={
            "name": name,
            "versions": [
                (version, uses.get(version.reference, ()), report_of(version.signature).text)
                for version in _newest_first(found)
            ],
            "now": question.now,
        },
    )


def lines_of(found: VersionList, uses: Mapping[str, tuple[Use, ...]]) -> list[Line]:
    """The models of a list of versions, by name."""
    by_name: dict[str, list[KnownVersion]] = {}
    for version in _newest_first(found):
        by_name.setdefault(version.name, []).append(version)
    return [
        Line(
            name=name,
            versions=tuple(versions),
            uses=tuple(
                sorted({use.endpoint for one in versions for use in uses.get(one.reference, ())})
            ),
        )
        for name, versions in sorted(by_name.items())
    ]


def _newest_first(found: VersionList) -> list[KnownVersion]:
    return sorted(found.models, key=attrgetter("created_at"), reverse=True)


async def _uses(question: Question) -> dict[str, tuple[Use, ...]]:
    """Who serves what, by the version's reference."""
    status = await question.visitor.get("/api/v1/status", Status)
    found: dict[str, tuple[Use, ...]] = {}
    for endpoint in status.endpoints:
        for revision in endpoint.revisions:
            use = Use(endpoint=endpoint.name, weight=revision.weight)
            if revision.model:
                found[revision.model] = (*found.get(revision.model, ()), use)
    return found
