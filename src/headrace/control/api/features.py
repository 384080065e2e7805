"""Features, their materialization and drift over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response

from headrace.control.api.answers import Actor, ModelName, Name, Version, answer, route, view_of
from headrace.control.features.materialize_plan import FeatureViewStatus
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.telemetry.drift_files import MAX_REFERENCE_BYTES, decode_reference
from headrace.control.telemetry.labels import LiveScore
from headrace.core import InvalidArgumentError
from headrace.core.names import VERSION_PATTERN
from headrace.monitor.drift import FeatureReport, FeatureState
from headrace.monitor.drift_reference import DriftReference
from headrace.monitor.drift_version import VersionDrift

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
_FEATURES_EXAMPLE: Final[dict[str, Any]] = {
    "views": [_VIEW],
    "services": [{"name": "fraud", "schema_hash": "5c0e7a1f09b2d344", "columns": ["age", "spend"]}],
    "problem": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureServiceView:
    """Inputs of a model: columns in order, and a hash over them."""

    name: str
    schema_hash: str
    columns: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureList:
    """Feature definitions that are applied in the home."""

    views: list[FeatureViewStatus]
    services: list[FeatureServiceView]
    problem: str
    """Why a newer definition file cannot be read."""


def add_features(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of features."""

    @route(api, "GET /api/v1/features", FeatureList, _FEATURES_EXAMPLE)
    async def features() -> Response:
        """List feature definitions, and how far each view is materialized."""
        definitions = plane.workloads.materializer.definitions
        services = () if definitions is None else definitions.services.values()
        feature_list = FeatureList(
            views=list(plane.workloads.materializer.statuses()),
            services=[
                view_of(
                    FeatureServiceView, service, columns=[column.name for column in service.columns]
                )
                for service in services
            ],
            problem=plane.workloads.materializer.problem,
        )
        return answer(feature_list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceView:
    """Reference for drift: uploaded `data`, the first `window` of requests, or nothing yet.

    While the window is being collected, `collected_rows` of `window_rows` are present.
    """

    source: str
    rows: int
    at: float | None
    collected_rows: int
    window_rows: int
    covers_s: float | None
    """Time from the first row to the last; null if the rows have no times."""
    is_hourly: bool
    """Whether requests are compared with rows of the same hour of the day (UTC); this needs two
    days of rows.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftView:
    """`state`: `off`, `collecting`, `ok` or `drifted`; drifted features come first.

    `live`: quality of predictions over the last hour, day, week and month, from labels that
    arrived.
    """

    endpoint: str
    version: str
    state: str
    reference: ReferenceView | None
    features: list[FeatureReport]
    live: list[LiveScore]


_REFERENCE: Final[dict[str, Any]] = {
    "source": "data",
    "rows": 50_000,
    "at": 1_790_000_000.0,
    "collected_rows": 0,
    "window_rows": 2000,
    "covers_s": 604_800.0,
    "is_hourly": True,
}
_EXAMPLE: Final[dict[str, Any]] = {
    "endpoint": "fraud",
    "version": "3",
    "state": "drifted",
    "reference": _REFERENCE,
    "features": [
        {
            "name": "x[3]",
            "role": "input",
            "state": "drifted",
            "rows": 450,
            "psi": 1.09,
            "js": 0.18,
            "ks": 0.41,
            "ks_low": 0.18,
            "ks_high": 0.64,
            "evidence": 9.2,
            "needed": 3.6,
            "missing_ratio": 0.0,
            "out_of_range_ratio": 0.01,
            "type_violation_ratio": 0.0,
            "design_effect": 1.3,
            "since": 1_790_003_600.0,
            "label": "amount",
            "why": "24.0% below 0.3715, 65.0% in the reference",
        }
    ],
    "live": [{"seconds": 3600, "rows": 210, "accuracy": 0.94, "mean_error": None}],
}


def add_drift(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of drift."""

    @route(api, "GET /api/v1/endpoints/{name}/drift", DriftView, _EXAMPLE)
    async def drift(
        name: Name,
        version: Annotated[
            str,
            Query(
                pattern=f"^$|{VERSION_PATTERN}",
                description="The version; empty selects the one with the most requests.",
            ),
        ] = "",
    ) -> Response:
        """Report which inputs and outputs of an endpoint have drifted."""
        return answer(_view(plane, name, version))

    @route(
        api,
        "PUT /api/v1/endpoints/{name}/drift/reference",
        DriftView,
        _EXAMPLE,
        openapi_extra=_BODY,
    )
    async def set_reference(name: Name, request: Request, actor: Actor) -> Response:
        """Set the reference that an endpoint's requests are compared with."""
        reference = await _reference(request)
        plane.telemetry.drift.set_reference(name, reference)
        facts = {"rows": reference.rows, "features": len(reference.features)}
        await plane.note("drift.reference", name, after=facts, actor=actor)
        return answer(_view(plane, name, ""))

    @route(api, "DELETE /api/v1/endpoints/{name}/drift/reference", DriftView, _EXAMPLE)
    async def reset(name: Name, actor: Actor) -> Response:
        """Delete the reference; the next requests become the new one."""
        plane.telemetry.drift.reset(name)
        await plane.note("drift.reset", name, actor=actor)
        return answer(_view(plane, name, ""))

    @route(
        api,
        "PUT /api/v1/models/{name}/versions/{version}/reference",
        ReferenceView,
        _REFERENCE,
        openapi_extra=_BODY,
    )
    async def version_reference(
        name: ModelName, version: Version, request: Request, actor: Actor
    ) -> Response:
        """Store a reference with a model version."""
        reference = await _reference(request)
        stored = plane.registry.get(f"{name}:{version}")
        plane.telemetry.drift.files.write_reference(stored.reference, reference)
        facts = {"rows": reference.rows, "features": len(reference.features)}
        await plane.note("model.reference", stored.reference, after=facts, actor=actor)
        return answer(_reference_view(reference))


_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "A summary of the data, from `headrace drift reference`.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


async def _reference(request: Request) -> DriftReference:
    body = await request.body()
    if len(body) > MAX_REFERENCE_BYTES:
        limit = MAX_REFERENCE_BYTES >> 20
        raise InvalidArgumentError(f"a reference has at most {limit} MiB")
    return decode_reference(body)


_BY_WEIGHT: Final = (FeatureState.DRIFTED, FeatureState.OK)


def _view(plane: ControlPlane, name: str, version: str) -> DriftView:
    settings = plane.telemetry.drift.settings(name)
    version, drift = plane.telemetry.drift.version(name, version)
    if settings is None or drift is None:
        state = "off" if settings is None else "collecting"
        return DriftView(
            endpoint=name, version=version, state=state, reference=None, features=[], live=[]
        )
    # Drifted features first, those without a reference last, the rest by evidence.
    features = sorted(
        drift.reports(),
        key=lambda report: (
            report.state is not FeatureState.DRIFTED,
            not report.needed,
            -report.evidence,
        ),
    )
    states = {report.state for report in features}
    return DriftView(
        endpoint=name,
        version=version,
        state=next((state for state in _BY_WEIGHT if state in states), FeatureState.COLLECTING),
        reference=_reference_view(drift.reference, drift),
        features=features,
        live=plane.telemetry.drift.labels.scores(name, version, now=plane.clock.now()),
    )


def _reference_view(reference: DriftReference, drift: VersionDrift | None = None) -> ReferenceView:
    return ReferenceView(
        source=reference.source,
        rows=reference.rows,
        at=reference.created_at or None,
        collected_rows=0 if drift is None else drift.collected_rows,
        window_rows=0 if drift is None else drift.settings.window_rows,
        covers_s=reference.covers_s or None,
        is_hourly=reference.is_hourly,
    )
