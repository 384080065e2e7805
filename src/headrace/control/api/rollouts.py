"""Rollouts over HTTP: start, read and command."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import Body, FastAPI, Path, Query, Response
from pydantic import Field, model_validator

from headrace.control.api import answers as examples
from headrace.control.api.answers import Actor, Left, Name, RequestBody, WhoAsks, answer, route
from headrace.control.api.history import counted_until
from headrace.control.auth.roles import Caller, Role
from headrace.control.model.records import RolloutRecord
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.rollouts.status import (
    OutlookStatus,
    RolloutEvidence,
    RolloutStatus,
    outlook_status,
    rollout_evidence,
    rollout_status,
)
from headrace.core import (
    DeadlineExceededError,
    EndpointNotFoundError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from headrace.core.names import NAME_PATTERN, VERSION_PATTERN
from headrace.core.processes import python_module, run
from headrace.core.spec.rollout import BlueGreenSpec, RolloutSpec
from headrace.rollout.outlook import USUAL_MEDIAN_S, EndpointLoad, Outlook, observed_load, outlook
from headrace.rollout.plan_simulation import (
    PlanSimulation,
    SimulationRequest,
    why_not_simulated,
)
from headrace.rollout.stages import judgement_text, plan_of
from headrace.rollout.state import Verb

_CREATED: Final = 201
_MAX_LISTED: Final = 1000
_MAX_TEXT: Final = 1000
_RATE_WINDOW_S: Final = 300.0
_MIN_WINDOW_S: Final = 5.0
"""Shorter windows give no usable rate."""
_SIMULATION_S: Final = 120.0
_SIMULATION_BYTES: Final = 1 << 30
_SIMULATION_RETRY_S: Final = 10.0

RolloutId = Annotated[str, Path(pattern=r"^r[0-9]{1,15}$")]


class StartRollout(RequestBody):
    """Request to start a rollout: the new version and the plan.

    Exactly one is set: a `version` of the current model, a `model`, or an `upstream`.
    """

    model: str = Field(
        default="",
        max_length=4096,
        description="A registry reference NAME[:VERSION], or a path where the control plane runs.",
    )
    version: str = Field(
        default="",
        pattern=f"^$|{VERSION_PATTERN}",
        description="The version of the served model; with `upstream`, its name here.",
    )
    upstream: dict[str, Any] | None = Field(
        default=None, description="A server that someone else runs, as in the spec."
    )
    rollout: dict[str, Any] | None = Field(
        default=None,
        description="Rollout settings, as `rollout` in the spec; null selects the "
        "endpoint's own settings, or a canary.",
    )
    allow_code: bool = Field(
        default=False,
        description="From now on the endpoint may have models of formats that run code of their "
        "authors' (`allow_code` in the spec).",
    )

    @model_validator(mode="after")
    def _names_something(self) -> "StartRollout":
        if self.model and self.upstream is not None:
            msg = "'model' and 'upstream' exclude each other"
            raise ValueError(msg)
        if not self.model and not self.version and self.upstream is None:
            msg = "needs a 'version' of the model that is served, a 'model' or an 'upstream'"
            raise ValueError(msg)
        return self


class Command(RequestBody):
    """Reason for a manual command."""

    reason: str = Field(default="", max_length=_MAX_TEXT, description="For the history.")


class PreviewRollout(RequestBody):
    """Plan to preview, and whether it is simulated."""

    rollout: dict[str, Any] | None = Field(
        default=None,
        description="Rollout settings, as `rollout` in the spec; null selects the endpoint's own "
        "settings, or a canary.",
    )
    simulate: bool = Field(
        default=False,
        description="Whether rollouts are simulated at the endpoint's present load, which takes "
        "some seconds.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One stage of a plan: the new version's share in percent, and when the stage ends."""

    name: str
    weight: int
    baseline_weight: int
    mirror_percent: int
    pause_s: float
    until: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPreview:
    """A plan, with the expected time to a verdict at the endpoint's present load.

    `outlook` and `simulation` are null if they cannot be computed; `notes` says why.
    """

    strategy: str
    stages: tuple[StageView, ...]
    max_duration_s: float | None
    keep_s: float | None
    outlook: OutlookStatus | None
    simulation: PlanSimulation | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutList:
    """Rollouts, the newest first."""

    rollouts: list[RolloutStatus]


def status_of(plane: ControlPlane, record: RolloutRecord) -> RolloutStatus:
    """Return the document of a rollout with its counts and its outlook."""
    counted = plane.rollouts.counted(record)
    expected = None if record.state.phase.is_over else _expected(plane, record, counted)
    problem = plane.rollouts.problem(record)
    return rollout_status(record, counted=counted, expected=expected, problem=problem)


def _expected(
    plane: ControlPlane, record: RolloutRecord, counted: Mapping[str, float]
) -> Outlook | None:
    """Return the outlook at the endpoint's request rate of the last minutes."""
    before = observed_load(record.state, counted) if counted else None
    load = _load(plane, record.endpoint, before)
    return None if load is None else outlook(record.state.settings, load)


def _load(
    plane: ControlPlane, endpoint: str, before: EndpointLoad | None = None
) -> EndpointLoad | None:
    """Return the endpoint's load of the last minutes; None if it was not counted for long enough.

    Args:
        before: The load that the endpoint's rollout has counted.
    """
    until = counted_until(plane.telemetry.history, plane.clock.now())
    began_at = (
        until if plane.telemetry.history.began_at is None else plane.telemetry.history.began_at
    )
    seconds = min(_RATE_WINDOW_S, until - began_at)
    if seconds < _MIN_WINDOW_S:
        return None
    window = plane.telemetry.history.window(endpoint, until=until, seconds=seconds)
    requests, median_s = max(window.requests, 1), window.quantile(0.5)
    return EndpointLoad(
        requests_per_s=window.requests_per_s,
        error_ratio=window.errors / requests,
        rejection_ratio=window.rejections / requests,
        median_s=USUAL_MEDIAN_S if median_s is None else median_s,
        independent_ratio=1.0 if before is None else before.independent_ratio,
    )


async def _preview(
    plane: ControlPlane, name: str, settings: RolloutSpec, *, simulate: bool
) -> RolloutPreview:
    load, plan = _load(plane, name), plan_of(settings)
    expected = None if load is None else outlook(settings, load)
    notes: list[str] = [] if expected is None else [expected.text]
    if isinstance(settings, BlueGreenSpec):
        notes.append(judgement_text(settings))
    if load is None:
        notes.append("no outlook: requests were not counted for long enough yet")
    simulation = None
    if simulate and load is not None:
        why = why_not_simulated(settings, load)
        if why:
            notes.append(f"no simulation: {why}")
        else:
            simulation = await _simulated(SimulationRequest(settings=settings, load=load))
    return RolloutPreview(
        strategy=settings.strategy,
        stages=tuple(
            StageView(
                name=stage.name,
                weight=stage.traffic.candidate,
                baseline_weight=stage.traffic.baseline,
                mirror_percent=stage.traffic.mirror_percent,
                pause_s=stage.pause_s,
                until=stage.until,
            )
            for stage in plan.stages
        ),
        max_duration_s=plan.max_duration_s,
        keep_s=plan.keep_s,
        outlook=None if expected is None else outlook_status(expected),
        simulation=simulation,
        notes=tuple(notes),
    )


async def _simulated(request: SimulationRequest) -> PlanSimulation:
    """Return the result of a simulation in a process of its own.

    Raises:
        DeadlineExceededError: It takes too long.
        UnavailableError: Its process failed.
    """
    output: list[bytes] = []

    def keep(line: bytes) -> bool:
        output.append(line)
        return True

    argument = msgspec.json.encode(request).decode()
    command = python_module("headrace.rollout.plan_simulation", argument)
    ended = await run(
        command, timeout_s=_SIMULATION_S, memory_bytes=_SIMULATION_BYTES, on_line=keep
    )
    if ended.exceeded is not None:
        raise DeadlineExceededError(f"the simulation exceeded its limit: {ended.exceeded}")
    if not output:
        raise UnavailableError(f"the simulation failed: {ended.error[-200:]}")
    return msgspec.json.decode(output[0], type=PlanSimulation)


def add_rollouts(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of rollouts."""

    @route(
        api,
        "POST /api/v1/endpoints/{name}/rollout",
        RolloutStatus,
        examples.ROLLOUT,
        status=_CREATED,
    )
    async def start(
        name: Name,
        body: Annotated[StartRollout, Body(openapi_examples=examples.START)],
        caller: WhoAsks,
        left: Left,
    ) -> Response:
        """Start a stepwise rollout to another version."""
        record = await plane.desired_state.start_rollout(
            name,
            model=body.model,
            version=body.version,
            upstream=body.upstream,
            rollout=body.rollout,
            allow_code=body.allow_code,
            caller=caller,
            cancel=left,
        )
        headers = {"location": f"/api/v1/rollouts/{record.id}"}
        return answer(status_of(plane, record), status=_CREATED, headers=headers)

    @route(api, "GET /api/v1/endpoints/{name}/rollout", RolloutStatus, examples.ROLLOUT)
    async def newest(name: Name) -> Response:
        """Return the newest rollout of an endpoint."""
        record = plane.target_state.rollouts.get(name)
        if record is None and plane.target_state.desired.endpoint(name) is None:
            raise EndpointNotFoundError(name)
        if record is None:
            message = (
                f"endpoint '{name}' has no rollout; start one with `headrace rollout start {name}`"
            )
            raise NotFoundError(message)
        return answer(status_of(plane, record))

    _add_preview(api, plane)  # before the route of commands, which matches its path

    @route(api, "POST /api/v1/endpoints/{name}/rollout/{verb}", RolloutStatus, examples.ROLLOUT)
    async def command(
        name: Name,
        verb: Verb,
        actor: Actor,
        body: Annotated[
            Command, Body(examples=[{"reason": "latency on the dashboard"}])
        ] = Command(),  # noqa: B008  # frozen
    ) -> Response:
        """Promote, pause, resume, abort or roll back manually."""
        record = await plane.rollouts.command(name, verb, actor=actor, reason=body.reason)
        return answer(status_of(plane, record))

    @route(api, "GET /api/v1/rollouts", RolloutList, {"rollouts": [examples.ROLLOUT]})
    async def rollouts(
        *,
        caller: WhoAsks,
        endpoint: Annotated[str, Query(pattern=f"^$|{NAME_PATTERN}")] = "",
        limit: Annotated[int, Query(ge=1, le=_MAX_LISTED)] = 100,
        active: Annotated[bool, Query(description="Only those that are under way.")] = False,
    ) -> Response:
        """List rollouts, the newest first."""
        if active:
            under_way = plane.target_state.active()
            records = [record for record in under_way if endpoint in {"", record.endpoint}][:limit]
        else:
            records = await _stored(plane, caller, endpoint, limit)
        records = [record for record in records if caller.may(Role.VIEWER, record.endpoint)]
        problem = plane.rollouts.problem
        rows = [rollout_status(record, problem=problem(record)) for record in records]
        return answer(RolloutList(rollouts=rows))

    @route(api, "GET /api/v1/rollouts/{rollout_id}", RolloutStatus, examples.ROLLOUT)
    async def rollout(rollout_id: RolloutId, caller: WhoAsks) -> Response:
        """Return one rollout."""
        return answer(status_of(plane, await _shown_to(caller, plane, rollout_id)))

    @route(api, "GET /api/v1/rollouts/{rollout_id}/evidence", RolloutEvidence, examples.EVIDENCE)
    async def evidence(rollout_id: RolloutId, caller: WhoAsks) -> Response:
        """Return how a rollout's evidence developed: each metric's interval over time."""
        record = await _shown_to(caller, plane, rollout_id)
        return answer(rollout_evidence(record, plane.rollouts.sequences(record)))


def _add_preview(api: FastAPI, plane: ControlPlane) -> None:
    simulating = asyncio.Lock()

    @route(
        api,
        "POST /api/v1/endpoints/{name}/rollout/preview",
        RolloutPreview,
        examples.ROLLOUT_PREVIEW,
    )
    async def preview(
        name: Name,
        body: Annotated[PreviewRollout, Body(examples=[{"simulate": True}])] = PreviewRollout(),  # noqa: B008  # frozen
    ) -> Response:
        """Return the plan of a rollout and the expected time to a verdict; changes nothing."""
        settings = plane.desired_state.rollout_settings(name, body.rollout)
        if not body.simulate:
            return answer(await _preview(plane, name, settings, simulate=False))
        if simulating.locked():
            message = "another simulation is in progress"
            raise OverloadedError(message, retry_after_s=_SIMULATION_RETRY_S)
        async with simulating:
            return answer(await _preview(plane, name, settings, simulate=True))


async def _stored(
    plane: ControlPlane, caller: Caller, endpoint: str, limit: int
) -> list[RolloutRecord]:
    """Return the newest `limit` rollouts that the caller may see."""
    visible = caller.endpoints(Role.VIEWER)
    if endpoint or visible is None:
        return await plane.rollouts.records(endpoint, limit)
    records = [record for name in visible for record in await plane.rollouts.records(name, limit)]
    return sorted(records, key=lambda record: int(record.id[1:]), reverse=True)[:limit]


async def _shown_to(caller: Caller, plane: ControlPlane, rollout_id: str) -> RolloutRecord:
    """Return the rollout with this id, if the caller may see it."""
    # Clients that wait for a rollout poll every second, so memory is read first.
    newest = plane.target_state.rollouts.values()
    record = next((record for record in newest if record.id == rollout_id), None)
    record = record or await plane.store.rollout(rollout_id)
    if record is None or not caller.may(Role.VIEWER, record.endpoint):
        raise NotFoundError(f"unknown rollout {rollout_id}")
    return record
