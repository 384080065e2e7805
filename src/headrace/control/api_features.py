"""Features over HTTP: which there are, and how far each view is materialized."""

from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Response

from headrace.control.api_answers import answer, shown
from headrace.control.materialize_status import FeatureViewStatus
from headrace.control.plane import ControlPlane
from headrace.features import FeatureService

_VIEW: Final[dict[str, Any]] = {
    "name": "customer_stats",
    "state": "waiting",
    "every_s": 300.0,
    "cron": "",
    "timezone": "",
    "ttl_s": 86400.0,
    "next_run_at": 1764000300.0,
    "last_run_at": 1764000000.0,
    "last_success_at": 1764000001.2,
    "duration_s": 1.2,
    "entities": 40,
    "written": 40,
    "newest_at": 1763999990.0,
    "age_s": 41.0,
    "failures": 0,
    "message": "",
    "done": 0,
    "of": 0,
}
_EXAMPLE: Final[dict[str, Any]] = {
    "views": [_VIEW],
    "services": [{"name": "fraud", "schema_hash": "5c0e7a1f09b2d344", "columns": ["age", "spend"]}],
    "problem": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureServiceView:
    """What a model takes: columns in order, and the hash that stands for all of it."""

    name: str
    schema_hash: str
    columns: list[str]

    @classmethod
    def of(cls, service: FeatureService) -> "FeatureServiceView":
        """What is told of a service."""
        names = [column.name for column in service.columns]
        return cls(name=service.name, schema_hash=service.schema_hash, columns=names)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureList:
    """What is applied in the home; `problem`: why a newer file of it cannot be read."""

    views: list[FeatureViewStatus]
    services: list[FeatureServiceView]
    problem: str


def add_features(api: FastAPI, plane: ControlPlane) -> None:
    """Add the route of features."""

    @api.get(
        "/api/v1/features",
        summary="Which features there are, and how far each view is materialized",
        response_model=FeatureList,
        responses=shown(_EXAMPLE),
    )
    async def features() -> Response:
        definitions = plane.materializer.definitions
        services = () if definitions is None else definitions.services.values()
        found = FeatureList(
            views=list(plane.materializer.statuses()),
            services=[FeatureServiceView.of(one) for one in services],
            problem=plane.materializer.problem,
        )
        return answer(found)
