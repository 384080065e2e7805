"""Endpoints over HTTP: read, write, delete, history, undo and conditions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final

from fastapi import Body, Depends, FastAPI, Header, Path, Query, Response
from pydantic import Field

from headrace.control.api import answers as examples
from headrace.control.api.answers import (
    AppliedView,
    Left,
    Name,
    RequestBody,
    WaitS,
    WhoAsks,
    answer,
    applied_answer,
    etag,
    route,
    view_of,
)
from headrace.control.api.rollouts import status_of
from headrace.control.asgi.guards import StaleError
from headrace.control.auth.roles import Role
from headrace.control.model.records import EndpointGeneration
from headrace.control.model.rollout_events import RolloutEnd, ends_of
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.conditions import EndpointCondition, conditions_of
from headrace.control.reconcile.status import EndpointStatus
from headrace.control.rollouts.status import RolloutStatus
from headrace.core import ConflictError, EndpointNotFoundError, InvalidArgumentError, NotFoundError
from headrace.core.redact import redact


@dataclass(slots=True)
class ConditionLog:
    """Remembers since when the conditions of recently read endpoints have been unchanged."""

    _known: dict[str, dict[str, EndpointCondition]] = field(default_factory=dict)

    def noted(
        self, endpoint: str, conditions: Sequence[EndpointCondition]
    ) -> tuple[EndpointCondition, ...]:
        """Return `conditions`; unchanged ones keep the time at which they were first observed."""
        before: Mapping[str, EndpointCondition] = self._known.get(endpoint, {})
        merged = tuple(
            replace(condition, since=min(previous.since, condition.since))
            if (previous := before.get(condition.type)) is not None
            and (previous.status, previous.reason) == (condition.status, condition.reason)
            else condition
            for condition in conditions
        )
        self._known[endpoint] = {condition.type: condition for condition in merged}
        return merged

    def keep_only(self, endpoints: Sequence[str]) -> None:
        """Forget all endpoints except these."""
        names = set(endpoints)
        self._known = {
            name: conditions for name, conditions in self._known.items() if name in names
        }


_MAX_GENERATION: Final = 10**15
_MAX_LISTED: Final = 1000
_MAX_REPLICAS: Final = 1024
_CREATED: Final = 201
_EVENTS: Final = 1000
"""Number of rollout events that are searched for ends of rollouts."""
_TAGS: Final = re.compile(r'\s*"(\d{1,18})"\s*')
_MAX_HEADER: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """Precondition of a change, which prevents lost updates between writers.

    RFC 9110, section 13: `If-Match: "3"` changes generation 3 only, `If-Match: *` any existing
    endpoint, `If-None-Match: *` only an endpoint that does not exist.
    """

    generations: tuple[int, ...] | None = None
    """Generations that the caller agrees to change; None for any."""
    must_exist: bool = False
    must_not_exist: bool = False

    def expected(self, name: str, current: int) -> int | None:
        """Return the generation that the change requires; None for any.

        Args:
            current: The endpoint's generation; 0 if the endpoint does not exist.

        Raises:
            StaleError: The endpoint already contradicts the precondition.
        """
        if self.must_not_exist:
            if current:
                raise StaleError(f"endpoint '{name}' exists already, at generation {current}")
            return 0
        if self.must_exist and not current:
            raise StaleError(f"endpoint '{name}' does not exist")
        if self.generations is None:
            return None
        if current not in self.generations:
            expected = ", ".join(map(str, self.generations))
            message = (
                f"endpoint '{name}' is at generation {current}, not {expected}: it was changed "
                "meanwhile; read it again"
            )
            raise StaleError(message)
        return current

    @contextmanager
    def held(self) -> Iterator[None]:
        """Report a concurrent change in the block as a failure of the precondition."""
        try:
            yield
        except ConflictError as error:
            if self == Precondition():
                raise
            raise StaleError(str(error)) from error


def _precondition(
    if_match: Annotated[
        str | None,
        Header(max_length=_MAX_HEADER, description='The generation that was read, as `"3"`.'),
    ] = None,
    if_none_match: Annotated[
        str | None,
        Header(max_length=_MAX_HEADER, description="`*`: only if the endpoint does not exist."),
    ] = None,
) -> Precondition:
    if if_none_match is not None and (if_none_match.strip() != "*" or if_match is not None):
        raise InvalidArgumentError("If-None-Match accepts * only, and not together with If-Match")
    if if_none_match is not None:
        return Precondition(must_not_exist=True)
    if if_match is None:
        return Precondition()
    if if_match.strip() == "*":
        return Precondition(must_exist=True)
    matches = [_TAGS.fullmatch(tag) for tag in if_match.split(",")]
    numbers = [int(match[1]) for match in matches if match is not None]
    if len(numbers) != len(matches):
        message = f'If-Match accepts generations as "3", or *, not {if_match[:100]!r}'
        raise InvalidArgumentError(message)
    return Precondition(generations=tuple(numbers), must_exist=True)


IfMatch = Annotated[Precondition, Depends(_precondition)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """An endpoint: its spec and its status.

    `spec` is null for an endpoint from a model repository; `rollout` is the newest one.
    """

    name: str
    generation: int
    spec: dict[str, Any] | None
    status: EndpointStatus
    conditions: tuple[EndpointCondition, ...]
    rollout: RolloutStatus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointList:
    """All endpoints, in the order of the spec."""

    endpoints: list[EndpointView]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedVersion:
    """Model version that a generation pinned."""

    version: str
    model: str
    weight: int
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationView:
    """One entry of a history; `spec` is null where the endpoint was removed."""

    generation: int
    at: float
    reason: str
    actor: str
    current: bool
    spec: dict[str, Any] | None
    versions: list[PinnedVersion]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationHistory:
    """An endpoint's generations, the newest first."""

    endpoint: str
    generations: list[GenerationView]
    rollouts: list[RolloutEnd]


class Undo(RequestBody):
    """The generation to go back to."""

    generation: int | None = Field(
        default=None, ge=1, le=_MAX_GENERATION, description="Null for the one before the newest."
    )


class Scale(RequestBody):
    """Number of replicas of each version, or the bounds of the autoscaler."""

    replicas: int | None = Field(
        default=None, ge=1, le=_MAX_REPLICAS, description="For an endpoint without `autoscale`."
    )
    min_replicas: int | None = Field(
        default=None, ge=0, le=_MAX_REPLICAS, description="With `autoscale`; null keeps it."
    )
    max_replicas: int | None = Field(
        default=None, ge=1, le=_MAX_REPLICAS, description="With `autoscale`; null keeps it."
    )


def add_endpoints(api: FastAPI, plane: ControlPlane) -> None:
    """Add the routes of endpoints."""
    log = ConditionLog()

    @route(api, "GET /api/v1/endpoints", EndpointList, {"endpoints": [examples.ENDPOINT]})
    async def list_endpoints(caller: WhoAsks) -> Response:
        """List all endpoints: spec and status."""
        statuses = plane.status().endpoints
        log.keep_only([status.name for status in statuses])
        visible = [status for status in statuses if caller.may(Role.VIEWER, status.name)]
        return answer(EndpointList(endpoints=[_view(plane, log, status) for status in visible]))

    @route(api, "GET /api/v1/endpoints/{name}", EndpointView, examples.ENDPOINT)
    async def get_endpoint(name: Name) -> Response:
        """Return one endpoint; its generation is the ETag."""
        status = next((status for status in plane.status().endpoints if status.name == name), None)
        if status is None:
            raise EndpointNotFoundError(name)
        view = _view(plane, log, status)
        return answer(view, headers={"etag": etag(view.generation)})

    @route(api, "PUT /api/v1/endpoints/{name}", AppliedView, examples.APPLIED)
    async def put_endpoint(
        *,
        name: Name,
        entry: Annotated[dict[str, Any], Body(examples=[examples.ENTRY])],
        caller: WhoAsks,
        precondition: IfMatch,
        left: Left,
        wait_s: WaitS = 0.0,
    ) -> Response:
        """Create or replace one endpoint; all others are unchanged."""
        current = plane.target_state.generation(name)
        expected = precondition.expected(name, current)
        with precondition.held():
            applied = await plane.desired_state.put_endpoint(
                name, entry, expected=expected, caller=caller, cancel=left
            )
        status = 200 if current else _CREATED
        return await applied_answer(
            plane, applied, caller=caller, wait_s=wait_s, name=name, status=status
        )

    @route(api, "PATCH /api/v1/endpoints/{name}", AppliedView, examples.APPLIED)
    async def patch_endpoint(
        *,
        name: Name,
        changes: Annotated[dict[str, Any], Body(examples=[{"model": "fraud:4"}])],
        caller: WhoAsks,
        left: Left,
        wait_s: WaitS = 0.0,
    ) -> Response:
        """Create an endpoint, or replace the given fields of its entry; null removes a field.

        A new `model`, `versions` or `upstream` replaces the former source. If `model` is a model
        repository, its endpoints are added, or replaced.
        """
        status = 200 if plane.target_state.generation(name) else _CREATED
        applied = await plane.desired_state.patch_endpoint(
            name, changes, caller=caller, cancel=left
        )
        name = name if plane.target_state.generation(name) else ""
        return await applied_answer(
            plane, applied, caller=caller, wait_s=wait_s, name=name, status=status
        )

    @route(
        api,
        "DELETE /api/v1/endpoints/{name}",
        AppliedView,
        {"changes": ["endpoint 'fraud' removed"], "generation": 13},
    )
    async def delete_endpoint(name: Name, caller: WhoAsks, precondition: IfMatch) -> Response:
        """Stop serving an endpoint."""
        expected = precondition.expected(name, plane.target_state.generation(name))
        with precondition.held():
            applied = await plane.desired_state.remove_endpoint(
                name, expected=expected, caller=caller
            )
        return await applied_answer(plane, applied, caller=caller)

    @route(api, "POST /api/v1/endpoints/{name}/scale", AppliedView, examples.APPLIED)
    async def scale(
        name: Name,
        caller: WhoAsks,
        body: Annotated[Scale, Body(examples=[{"replicas": 3}, {"max_replicas": 8}])],
        wait_s: WaitS = 0.0,
    ) -> Response:
        """Change the number of replicas; versions and a rollout are unchanged."""
        applied = await plane.desired_state.scale(name, caller=caller, **body.model_dump())
        return await applied_answer(plane, applied, caller=caller, wait_s=wait_s, name=name)

    @route(api, "POST /api/v1/endpoints/{name}/pause", AppliedView, examples.APPLIED)
    async def pause(name: Name, caller: WhoAsks) -> Response:
        """Refuse the endpoint's requests with 503; replicas and a rollout continue."""
        applied = await plane.desired_state.pause(name, paused=True, caller=caller)
        return await applied_answer(plane, applied, caller=caller, name=name)

    @route(api, "POST /api/v1/endpoints/{name}/resume", AppliedView, examples.APPLIED)
    async def resume(name: Name, caller: WhoAsks) -> Response:
        """Accept the requests of a paused endpoint again."""
        applied = await plane.desired_state.pause(name, paused=False, caller=caller)
        return await applied_answer(plane, applied, caller=caller, name=name)

    _add_history(api, plane)


def _add_history(api: FastAPI, plane: ControlPlane) -> None:
    @route(
        api,
        "GET /api/v1/endpoints/{name}/history",
        GenerationHistory,
        {
            "endpoint": "fraud",
            "generations": [examples.GENERATION],
            "rollouts": [examples.ROLLOUT_END],
        },
    )
    async def history(
        name: Name, limit: Annotated[int, Query(ge=1, le=_MAX_LISTED)] = 100
    ) -> Response:
        """List an endpoint's generations and ends of rollouts, the newest first."""
        entries = await plane.store.history(name, limit=limit)
        if not entries:
            raise EndpointNotFoundError(name)
        current = plane.target_state.generation(name)
        events = await plane.store.events(endpoint=name, kind="rollout", limit=_EVENTS, newest=True)
        ends = ends_of(events)[::-1][:limit]
        generations = [_entry(e, current) for e in entries]
        return answer(GenerationHistory(endpoint=name, generations=generations, rollouts=ends))

    @route(
        api,
        "GET /api/v1/endpoints/{name}/history/{generation}",
        GenerationView,
        examples.GENERATION,
    )
    async def generation(
        name: Name, generation: Annotated[int, Path(ge=1, le=_MAX_GENERATION)]
    ) -> Response:
        """Return one generation of an endpoint."""
        entry = await plane.store.generation(name, generation)
        if entry is None:
            raise NotFoundError(f"endpoint '{name}' has no generation {generation}")
        return answer(_entry(entry, plane.target_state.generation(name)))

    @route(api, "POST /api/v1/endpoints/{name}/undo", AppliedView, examples.APPLIED)
    async def undo(
        name: Name,
        caller: WhoAsks,
        body: Annotated[Undo, Body(examples=[{}, {"generation": 2}])] = Undo(),  # noqa: B008  # frozen
        wait_s: WaitS = 0.0,
    ) -> Response:
        """Restore a previous generation of an endpoint, without a rollout."""
        applied = await plane.desired_state.undo(name, generation=body.generation, caller=caller)
        return await applied_answer(plane, applied, caller=caller, wait_s=wait_s, name=name)


def _view(plane: ControlPlane, log: ConditionLog, status: EndpointStatus) -> EndpointView:
    record, now = plane.target_state.rollouts.get(status.name), plane.clock.now()
    return EndpointView(
        name=status.name,
        generation=plane.target_state.generation(status.name),
        spec=redact(plane.target_state.desired.entry(status.name)),
        status=status,
        conditions=log.noted(status.name, conditions_of(status, record, now=now)),
        rollout=None if record is None else status_of(plane, record),
    )


def _entry(entry: EndpointGeneration, current: int) -> GenerationView:
    arms = entry.endpoint.arms if entry.endpoint is not None else ()
    return view_of(
        GenerationView,
        entry,
        current=entry.generation == current,
        spec=redact(entry.document),
        versions=[
            view_of(PinnedVersion, arm, version=arm.revision.version, model=arm.revision.model)
            for arm in arms
        ],
    )
