"""Service for changes of the desired state: authorize, resolve, apply.

Models are read, hashed and inspected outside the lock that serializes changes. The result is valid
if the endpoint and the settings of the whole system have not changed meanwhile; else the change is
resolved again.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.control.auth.home_token import HOME_OWNER
from headrace.control.auth.references import (
    AuthorizationFacts,
    ModelFacts,
    authorize,
    may_read_model,
    models_of,
)
from headrace.control.auth.roles import Caller, Role
from headrace.control.base.journal import EventJournal
from headrace.control.desired.applier import (
    APPLY,
    Applied,
    DesiredStateDraft,
    Diff,
    apply_draft,
    diff_of,
)
from headrace.control.desired.documents import (
    check_there,
    entry_of_source,
    former,
    only_entry,
    reloads_of,
    relocate_and_fetch,
    with_entry,
    with_known_ids,
)
from headrace.control.desired.models import ModelWork, paths_below
from headrace.control.desired.resolve import (
    Resolved,
    Resolver,
    check_still_trusted,
    with_replicas,
)
from headrace.control.desired.target import TargetState
from headrace.control.model.desired import DesiredEndpoint, DesiredState
from headrace.control.model.records import Event, RolloutRecord
from headrace.control.state.store import Store
from headrace.core import (
    Clock,
    ConflictError,
    EndpointNotFoundError,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotFoundError,
    PermissionDeniedError,
)
from headrace.core.spec.models import disagreements
from headrace.core.spec.parse import SystemSpec, is_model_path, parse_spec
from headrace.core.spec.rollout import RolloutSpec, judged_by
from headrace.registry import Registry, is_repository

_LOG: Final = logging.getLogger("headrace.control")
_SOURCES: Final = ("model", "versions", "upstream", "version")
_OF_OUR_COPIES: Final = ("replicas", "pool", "autoscale")
PATCH: Final = "endpoint.patch"
_ATTEMPTS: Final = 5
"""How often a change is resolved again after concurrent changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointChange:
    """A change of one endpoint."""

    entry: Mapping[str, Any] | None
    """The endpoint's entry in the spec; None removes the endpoint."""
    action: str
    reason: str
    endpoint: DesiredEndpoint | None = None
    """An endpoint that was resolved before, such as a former generation."""
    plan: Mapping[str, Any] | None = None
    """The rollout that the change starts, as in the spec."""
    reload: bool = False
    """Whether models are loaded again."""
    at_once: bool = False
    """Whether the change takes effect without a rollout."""
    restart: bool = False
    """Whether the endpoint gets a new generation even if nothing differs."""
    carry: Callable[[DesiredEndpoint], DesiredEndpoint] | None = None
    """Change that keeps the versions, by which `endpoint` was made: it also applies to both ends of
    the endpoint's rollout, which continues.
    """


@dataclass(slots=True, kw_only=True)
class DesiredStateService:
    """Authorizes, resolves and applies changes of the desired state."""

    store: Store
    registry: Registry
    target_state: TargetState
    journal: EventJournal
    clock: Clock
    work: ModelWork
    max_body_bytes: int
    allow_code: bool = False
    """Whether every endpoint may have models that run their authors' code."""
    model_roots: tuple[Path, ...] = ()
    """Below these directories every caller may name model paths; elsewhere only admins may."""

    async def start(
        self, document: Mapping[str, Any] | None, endpoint: Mapping[str, Any] | None = None
    ) -> None:
        """Apply the spec that this control plane got at its start; None keeps the stored one.

        Args:
            endpoint: An entry that is added to the stored spec, or changes it.

        A stored spec from an earlier release that `apply` rejects today stays in force, with an
        event.
        """
        if document is not None:
            # The user who starts a control plane owns its home, as the holder of the home's token
            # does.
            applied = await self.apply(document, caller=HOME_OWNER)
            _LOG.info("applied spec", extra={"generation": applied.generation})
            return
        events = []
        for mistake in disagreements(self.target_state.desired.spec):
            message = f"the stored spec stays in force, but `headrace apply` refuses it: {mistake}"
            _LOG.warning("%s", message)
            event = Event(
                at=self.clock.now(), endpoint="", kind="spec", reason="Disagrees", message=message
            )
            events.append(event)
        await self.journal.write(events)
        if endpoint is not None:
            await self.patch_endpoint(str(endpoint["name"]), endpoint, caller=HOME_OWNER)

    async def apply(
        self,
        document: Mapping[str, Any],
        *,
        caller: Caller,
        expected: Mapping[str, int] | None = None,
        cancel: threading.Event | None = None,
    ) -> Applied:
        """Replace the desired state with `document`.

        Args:
            cancel: Set when the caller disconnects; ends the inspection of models.

        Raises:
            SpecError: With all mistakes; nothing was changed.
            ConflictError: The generation of an endpoint differs from `expected`.
            PermissionDeniedError: The change affects or refers to an object beyond the caller's
                grants.
        """
        endpoints = caller.endpoints(Role.OPERATOR)
        if endpoints is not None and not endpoints >= (expected or {}).keys():
            message = "generations are expected of your own endpoints only"
            raise PermissionDeniedError(message)
        spec = parse_spec(document)
        for _ in range(_ATTEMPTS):
            before = self.target_state.desired
            for name, generation in (expected or {}).items():
                self._expect(name, generation)
            draft, facts = await self._resolved_all(caller, spec, cancel)
            async with self.target_state.lock:
                now = self.target_state.desired
                if now is not before and (
                    expected
                    or reloads_of(now) != reloads_of(before)
                    or {e.name: e.source for e in now.endpoints}
                    != {e.name: e.source for e in before.endpoints}
                ):
                    continue
                state = draft.state
                state = msgspec.structs.replace(state, endpoints=self._known(state.endpoints))
                authorize(caller, now, state, facts)
                return await self._apply_draft(replace(draft, state=state))
        raise _overtaken("the system")

    async def diff(
        self,
        document: Mapping[str, Any],
        *,
        caller: Caller,
        cancel: threading.Event | None = None,
    ) -> Diff:
        """Return what `apply` would change; only models in files are stored, as versions.

        Raises:
            SpecError: With all mistakes.
            PermissionDeniedError: See `apply`.
        """
        before = self.target_state.desired
        draft, facts = await self._resolved_all(caller, parse_spec(document), cancel)
        authorize(caller, before, draft.state, facts)
        return diff_of(draft, self.target_state)

    async def put_endpoint(
        self,
        name: str,
        entry: Mapping[str, Any],
        *,
        caller: Caller,
        expected: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Applied:
        """Create or replace one endpoint from `entry`; all others keep their pinned versions.

        Args:
            expected: The generation that the caller read; 0 for a new endpoint.
            cancel: See `apply`.

        Raises:
            SpecError: With all mistakes.
            ConflictError: The endpoint's generation differs from `expected`.
            PermissionDeniedError: The entry refers to an object that the caller may not use.
        """
        if entry.get("name", name) != name:
            raise InvalidArgumentError(
                f"the body names endpoint {entry['name']!r}, the path {name!r}"
            )
        change = EndpointChange(entry={"name": name, **entry}, action="endpoint.put", reason="put")
        return await self._carry_out(
            caller, name, lambda _: change, expected=expected, cancel=cancel
        )

    async def patch_endpoint(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        caller: Caller,
        cancel: threading.Event | None = None,
    ) -> Applied:
        """Create one endpoint, or replace the given fields of its entry; null removes a field.

        All others keep their pinned versions. If `model` is a model repository, its endpoints are
        added, or replaced.

        Args:
            cancel: See `apply`.

        Raises:
            SpecError: With all mistakes.
            PermissionDeniedError: The entry refers to an object that the caller may not use.
        """
        if changes.get("name", name) != name:
            raise InvalidArgumentError(
                f"the body names endpoint {changes['name']!r}, the path {name!r}"
            )

        model = changes.get("model")
        # Others are refused as by `put_endpoint`: the check reads the path.
        may_read = isinstance(model, str) and is_model_path(model) and caller.may(Role.ADMIN)
        if may_read and await asyncio.to_thread(is_repository, Path(str(model))):
            return await self._put_repository(name, changes, caller=caller, cancel=cancel)

        def change(before: DesiredState) -> EndpointChange:
            former = before.entry(name) or {"name": name}
            if any(key in changes for key in _SOURCES):
                left_out = {*_SOURCES, *(_OF_OUR_COPIES if "upstream" in changes else ())}
                former = {key: value for key, value in former.items() if key not in left_out}
            entry = {**former, **changes}
            return EndpointChange(
                entry={key: value for key, value in entry.items() if value is not None},
                action=PATCH,
                reason="changed" if before.endpoint(name) else "added",
            )

        return await self._carry_out(caller, name, change, cancel=cancel)

    async def remove_endpoint(
        self, name: str, *, caller: Caller, expected: int | None = None
    ) -> Applied:
        """Remove endpoint `name`; all others keep their pinned versions.

        Raises:
            EndpointNotFoundError: The endpoint does not exist.
            FailedPreconditionError: The endpoint comes from a model repository, whose models are
                removed together.
            ConflictError: The endpoint's generation differs from `expected`.
        """

        def change(_: DesiredState) -> EndpointChange:
            self._own(name)
            self._check_unused(name)
            return EndpointChange(entry=None, action="endpoint.remove", reason="removed")

        return await self._carry_out(caller, name, change, expected=expected)

    async def load(
        self, name: str, *, caller: Caller, cancel: threading.Event | None = None
    ) -> Applied:
        """Serve the newest version of model `name`, or reload a served endpoint, without a rollout.

        Raises:
            SpecError: The model does not exist in the registry, or cannot be served.
            PermissionDeniedError: The caller may not use the model.
        """

        def change(before: DesiredState) -> EndpointChange:
            is_served = before.endpoint(name) is not None
            entry = before.entry(name) if is_served else {"name": name, "model": name}
            return EndpointChange(
                # A model of a repository has no spec entry.
                entry=entry,
                action="endpoint.load",
                reason="loaded",
                reload=is_served,
                at_once=True,
            )

        return await self._carry_out(caller, name, change, cancel=cancel)

    async def undo(self, name: str, *, caller: Caller, generation: int | None = None) -> Applied:
        """Restore an endpoint to `generation`, immediately and without a rollout.

        Args:
            generation: None for the newest that served something different from the desired
                endpoint.

        Raises:
            NotFoundError: The generation does not exist.
            FailedPreconditionError: The registry no longer has a model of the generation.
            ConflictError: The endpoint changed meanwhile, and `generation` is None.
            PermissionDeniedError: The generation refers to an object that the caller may not use.
        """
        served = self.target_state.desired.endpoint(name)
        # A concurrent change makes the previous generation another one.
        newest = None if generation is not None else (served.generation if served else 0)
        past = await former(self.store, name, generation)
        past = await asyncio.to_thread(relocate_and_fetch, past, self.registry)
        if past.endpoint is not None:
            await asyncio.to_thread(check_there, past.endpoint)

        def change(_: DesiredState) -> EndpointChange:
            if past.endpoint is None:
                self._check_unused(name)
            return EndpointChange(
                entry=past.document,
                endpoint=past.endpoint,
                action="endpoint.undo",
                reason=f"undone to generation {past.generation}",
                at_once=True,
                restart=past.endpoint is not None and self.target_state.rollout(name) is not None,
            )

        return await self._carry_out(caller, name, change, expected=newest)

    async def start_rollout(
        self,
        name: str,
        *,
        caller: Caller,
        model: str = "",
        version: str = "",
        upstream: Mapping[str, Any] | None = None,
        rollout: Mapping[str, Any] | None = None,
        allow_code: bool = False,
        cancel: threading.Event | None = None,
    ) -> RolloutRecord:
        """Start a stepwise rollout of endpoint `name` to another version.

        Args:
            model: A registry reference or an absolute path; alternatively `version` or `upstream`.
            version: A version of the current model; with `upstream`, the name of the upstream's
                version.
            upstream: An external server, as in the spec.
            rollout: The plan, as in the spec; None for the endpoint's own, or a canary.
            allow_code: Whether the endpoint may from now on have models that run their authors'
                code.
            cancel: See `apply`.

        Raises:
            EndpointNotFoundError: The endpoint does not exist.
            SpecError: The new version or `rollout` is invalid.
            FailedPreconditionError: A rollout is in progress.
            InvalidArgumentError: The version is already served.
            PermissionDeniedError: The caller may not use the new version.
        """

        def change(before: DesiredState) -> EndpointChange:
            served = self._own(name)
            self._check_idle(name)
            entry = before.entry(name)
            assert entry is not None, "checked by _own"
            left_out = _SOURCES if upstream is None else (*_SOURCES, *_OF_OUR_COPIES)
            new = {key: value for key, value in entry.items() if key not in left_out}
            new |= entry_of_source(served, model=model, version=version, upstream=upstream)
            if allow_code:
                new["allow_code"] = True
            return EndpointChange(
                entry=new,
                plan=rollout_or_default(entry, rollout),
                action="rollout.start",
                reason="rollout started",
                restart=True,
            )

        await self._carry_out(caller, name, change, cancel=cancel)
        record = self.target_state.rollout(name)
        assert record is not None, "was just begun"
        return record

    def rollout_settings(self, name: str, rollout: Mapping[str, Any] | None) -> RolloutSpec:
        """Return the plan that `start_rollout` would follow.

        Args:
            rollout: See `start_rollout`.

        Raises:
            ModelNotFoundError: The endpoint does not exist.
            SpecError: `rollout` is invalid.
        """
        spec = self.target_state.desired.spec
        entry = self._entry(self.target_state.desired, name)
        plan = rollout_or_default(entry, rollout)
        parsed = parse_spec(with_entry(spec, name, {**entry, "rollout": plan}), in_force=spec)
        (line,) = (line for line in parsed.endpoints if line.name == name)
        assert line.rollout is not None, "was just set"
        return judged_by(line.rollout, line.slo)

    async def pause(self, name: str, *, paused: bool, caller: Caller) -> Applied:
        """Make the gateway refuse the requests of an endpoint, or accept them again.

        Replicas keep running, and a rollout continues.

        Raises:
            ModelNotFoundError: The endpoint does not exist.
            FailedPreconditionError: The endpoint comes from a model repository.
        """

        def change(before: DesiredState) -> EndpointChange:
            entry, served = self._entry(before, name), self._own(name)
            entry.pop("paused", None)

            def carry(endpoint: DesiredEndpoint) -> DesiredEndpoint:
                return msgspec.structs.replace(endpoint, paused=paused)

            return EndpointChange(
                entry=entry | ({"paused": True} if paused else {}),
                endpoint=carry(served),
                carry=carry,
                action="endpoint.pause" if paused else "endpoint.resume",
                reason="paused" if paused else "resumed",
            )

        return await self._carry_out(caller, name, change)

    async def scale(
        self,
        name: str,
        *,
        caller: Caller,
        replicas: int | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
    ) -> Applied:
        """Change the replicas of each version of an endpoint; a rollout continues.

        Args:
            replicas: Number of replicas of an endpoint without `autoscale`.
            min_replicas: Lower bound of an endpoint with `autoscale`; None keeps it.
            max_replicas: Upper bound of an endpoint with `autoscale`; None keeps it.

        Raises:
            ModelNotFoundError: The endpoint does not exist.
            SpecError: A number is out of range.
            FailedPreconditionError: The endpoint has no replicas of its own, or its number of
                replicas is set otherwise.
        """

        def change(before: DesiredState) -> EndpointChange:
            entry, served = self._entry(before, name), self._own(name)
            if served.pooled or any(arm.revision.upstream is not None for arm in served.arms):
                what = "a pool" if served.pooled else "an upstream"
                raise FailedPreconditionError(f"endpoint '{name}' is served by {what}")
            if (replicas is None) is (served.autoscale is None):
                remedy = "set replicas" if served.autoscale is None else "set its bounds"
                rule = "no autoscale" if served.autoscale is None else "autoscale"
                raise FailedPreconditionError(f"endpoint '{name}' has {rule}; {remedy}")
            if replicas is None:
                bounds = {"min_replicas": min_replicas, "max_replicas": max_replicas}
                changed = {key: value for key, value in bounds.items() if value is not None}
                entry = {**entry, "autoscale": {**entry["autoscale"], **changed}}
            elif "versions" in entry:
                versions = [{**version, "replicas": replicas} for version in entry["versions"]]
                entry = {**entry, "versions": versions}
            else:
                entry = {**entry, "replicas": replicas}
            # Checks the numbers.
            spec = parse_spec(with_entry(before.spec, name, entry), in_force=before.spec)
            (line,) = (line for line in spec.endpoints if line.name == name)

            def carry(endpoint: DesiredEndpoint) -> DesiredEndpoint:
                return with_replicas(endpoint, line)

            return EndpointChange(
                entry=entry,
                endpoint=carry(served),
                carry=carry,
                action="endpoint.scale",
                reason="scaled",
            )

        return await self._carry_out(caller, name, change)

    def in_use(self) -> set[str]:
        """Return each `NAME:VERSION` that is served, will be served, or may be rolled back to."""
        served = {
            arm.revision.model for endpoint in self.target_state.served() for arm in endpoint.arms
        }
        return served.union(stream.model for stream in self.target_state.desired.streams)

    def model_facts(self, model: str) -> ModelFacts:
        """Return what decides who may read and change a model. Blocking: reads the registry."""
        return ModelFacts(
            users=self.target_state.users_of(model), owners=self.registry.owners(model)
        )

    def readable_models(self, caller: Caller, names: Collection[str]) -> set[str]:
        """Return the models that a caller may read. Blocking."""
        if caller.may(Role.VIEWER):
            return set(names)
        return {name for name in names if may_read_model(caller, name, self.model_facts(name))}

    async def _apply_draft(self, draft: DesiredStateDraft) -> Applied:
        now = self.clock.now()
        return await apply_draft(
            draft, target_state=self.target_state, store=self.store, journal=self.journal, now=now
        )

    def _expect(self, name: str, generation: int | None) -> None:
        if generation is None:
            return
        endpoint = self.target_state.desired.endpoint(name)
        current = 0 if endpoint is None else endpoint.generation
        if current != generation:
            message = (
                f"endpoint '{name}' is at generation {current}, not {generation}: it was changed "
                "concurrently; read it again"
            )
            raise ConflictError(message)

    def _own(self, name: str) -> DesiredEndpoint:
        """Return the endpoint `name`, which must have its own entry in the spec."""
        endpoint = self.target_state.desired.endpoint(name)
        if endpoint is None:
            raise EndpointNotFoundError(name)
        if self.target_state.desired.entry(name) is None:
            message = f"'{name}' comes from a model repository; remove the repository from the spec"
            raise FailedPreconditionError(message)
        return endpoint

    def _entry(self, before: DesiredState, name: str) -> dict[str, Any]:
        """Return the spec entry of the endpoint `name`, which must have its own."""
        self._own(name)
        entry = before.entry(name)
        assert entry is not None, "checked by _own"
        return dict(entry)

    def _check_unused(self, name: str) -> None:
        """Refuse to remove an endpoint that a stream calls."""
        for stream in self.target_state.desired.streams:
            endpoint = stream.settings.endpoint
            if endpoint is not None and endpoint.name == name:
                message = f"stream '{stream.name}' uses endpoint '{name}'; remove the stream first"
                raise FailedPreconditionError(message)

    def _check_idle(self, name: str) -> None:
        record = self.target_state.rollout(name)
        if record is not None and not record.state.phase.is_over:
            message = (
                f"rollout {record.id} of endpoint '{name}' is under way ({record.state.phase}); "
                "promote or abort it first"
            )
            raise FailedPreconditionError(message)

    def _check_new(self, name: str, target: DesiredEndpoint) -> None:
        serving = self.target_state.serving(name)
        keys = [] if serving is None else [arm.key for arm in serving.arms]
        if target.arms[0].key in keys:
            message = f"endpoint '{name}' serves version {target.arms[0].key} already"
            raise InvalidArgumentError(message)

    async def _carry_out(
        self,
        caller: Caller,
        name: str,
        make: Callable[[DesiredState], EndpointChange],
        *,
        expected: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Applied:
        """Change one endpoint; all others are unchanged."""
        for _ in range(_ATTEMPTS):
            before = self.target_state.desired
            self._expect(name, expected)
            change = make(before)
            entry, endpoint = change.entry, change.endpoint
            spec, document = SystemSpec(), with_entry(before.spec, name, entry)
            if entry is not None or change.reload:
                spec = parse_spec(document, in_force=before.spec)
            if entry is not None:
                (line,) = (line for line in spec.endpoints if line.name == name)
                entry = line.model_dump(mode="json", exclude_unset=True)
                document = with_entry(before.spec, name, entry)
            facts = await self._facts(caller, document, name)
            authorize(caller, before, msgspec.structs.replace(before, spec=document), facts)
            settings = None
            if endpoint is not None and change.carry is None:
                await asyncio.to_thread(check_still_trusted, endpoint, spec.security)
            elif endpoint is None and (entry is not None or change.reload):
                if change.plan is not None:
                    planned = with_entry(document, name, {**(entry or {}), "rollout": change.plan})
                    spec = parse_spec(planned, in_force=before.spec)
                endpoint = await self._resolve_one(caller, spec, name, change, cancel)
                if change.plan is not None:
                    served = before.endpoint(name)
                    settings, plan = endpoint.rollout, None if served is None else served.rollout
                    endpoint = msgspec.structs.replace(endpoint, rollout=plan)
            async with self.target_state.lock:
                now = self.target_state.desired
                if not _is_same_for(name, before, now):
                    continue
                if change.plan is not None:
                    assert endpoint is not None, "a rollout has a target"
                    self._check_idle(name)
                    self._check_new(name, endpoint)
                after = _with_endpoint(now, name, entry, endpoint)
                authorize(caller, now, after, facts)
                is_rollout_set = (
                    change.at_once or change.plan is not None or change.carry is not None
                )
                draft = DesiredStateDraft(
                    state=after,
                    reason=change.reason,
                    action=change.action,
                    actor=caller.name,
                    rollout_specs={name: settings} if is_rollout_set else {},
                    restart=frozenset({name} if change.restart else ()),
                    carry=change.carry,
                )
                return await self._apply_draft(draft)
        raise _overtaken(f"endpoint '{name}'")

    async def _put_repository(
        self,
        name: str,
        entry: Mapping[str, Any],
        *,
        caller: Caller,
        cancel: threading.Event | None,
    ) -> Applied:
        """Add the endpoints of the model repository that `entry` names, or replace them."""
        for _ in range(_ATTEMPTS):
            before = self.target_state.desired
            document = with_entry(before.spec, name, {"name": name, **entry})
            spec = parse_spec(document, in_force=before.spec)
            resolver = self._resolver(caller, only_entry(spec, name), cancel)
            added = self._known(await self.work.run(caller.name, resolver.resolve))
            names = {endpoint.name for endpoint in added}
            if taken := sorted(n for n in names if before.entry(n) is not None and n != name):
                raise FailedPreconditionError(
                    f"the repository {entry['model']} has a model '{taken[0]}', which an endpoint "
                    "of the spec is called, too; rename one of them"
                )
            async with self.target_state.lock:
                if self.target_state.desired is not before:
                    continue
                former = f"{entry['model']}/"
                rest = tuple(
                    e
                    for e in before.endpoints
                    if e.name not in names | {name}
                    and not (
                        before.entry(e.name) is None
                        and all(arm.revision.model.startswith(former) for arm in e.arms)
                    )
                )
                state = msgspec.structs.replace(
                    before, spec=spec.document(), endpoints=(*rest, *added)
                )
                draft = DesiredStateDraft(
                    state=state, reason="added", action=PATCH, actor=caller.name
                )
                return await self._apply_draft(draft)
        raise _overtaken("the system")

    async def _facts(
        self, caller: Caller, document: Mapping[str, Any], name: str | None = None
    ) -> AuthorizationFacts:
        """Return what decides whether a caller may use the objects of a document."""
        if caller.may(Role.ADMIN):
            return AuthorizationFacts()
        models = models_of(document, name)
        return AuthorizationFacts(
            models=await asyncio.to_thread(lambda: {m: self.model_facts(m) for m in models}),
            paths=await asyncio.to_thread(paths_below, self.model_roots, document),
        )

    async def _resolved_all(
        self, caller: Caller, spec: SystemSpec, cancel: threading.Event | None
    ) -> tuple[DesiredStateDraft, AuthorizationFacts]:
        """Authorize a spec as written, then return its resolved state, to be applied."""
        before, document = self.target_state.desired, spec.document()
        facts = await self._facts(caller, document)
        authorize(caller, before, msgspec.structs.replace(before, spec=document), facts)
        resolved: Resolved = await self.work.run(
            caller.name, self._resolver(caller, spec, cancel).resolve_all
        )
        rolled_out = {
            endpoint.name: served
            for endpoint in resolved.endpoints
            if (served := self._rolled_out(endpoint)) is not None
        }
        for name in rolled_out:
            stored = before.entry(name) or {}
            (written,) = (entry for entry in document["endpoints"] if entry["name"] == name)
            left_out = {*_SOURCES, *(_OF_OUR_COPIES if "upstream" in stored else ())}
            entry = {key: value for key, value in written.items() if key not in left_out}
            entry |= {key: stored[key] for key in _SOURCES if key in stored}
            document = with_entry(document, name, entry)
        if rolled_out:
            spec = parse_spec(document)
            resolved = await self.work.run(
                caller.name, self._resolver(caller, spec, cancel).resolve_all
            )
        endpoints = tuple(
            msgspec.structs.replace(endpoint, spec_source=rolled_out[endpoint.name].spec_source)
            if endpoint.name in rolled_out
            else endpoint
            for endpoint in self._known(resolved.endpoints)
        )
        draft = DesiredStateDraft(
            state=DesiredState(
                generation=before.generation,
                spec=document,
                endpoints=endpoints,
                pools=spec.pools,
                streams=resolved.streams,
            ),
            reason="applied",
            action=APPLY,
            actor=caller.name,
            notes=tuple(_kept_note(endpoint) for endpoint in rolled_out.values()),
        )
        return draft, facts

    def _rolled_out(self, endpoint: DesiredEndpoint) -> DesiredEndpoint | None:
        """Return the desired endpoint that an apply of `endpoint` must not revert, or None.

        The spec names the versions that the last applied spec named, and a rollout that was not
        started by an apply has replaced them, or is doing so.
        """
        desired = self.target_state.desired.endpoint(endpoint.name)
        if desired is None or not desired.spec_source or desired.spec_source != endpoint.source:
            return None
        record = self.target_state.rollout(endpoint.name)
        is_held_back = record is not None and record.state.phase.is_reverted
        return None if is_held_back else desired

    async def _resolve_one(
        self,
        caller: Caller,
        spec: SystemSpec,
        name: str,
        change: EndpointChange,
        cancel: threading.Event | None,
    ) -> DesiredEndpoint:
        reload = name if change.reload else ""
        resolver = self._resolver(caller, only_entry(spec, name), cancel, reload=reload)
        resolved = self._known(await self.work.run(caller.name, resolver.resolve))
        endpoint = next((e for e in resolved if e.name == name), None)
        if endpoint is None:
            raise ModelNotFoundError(name)
        return endpoint

    def _known(self, endpoints: tuple[DesiredEndpoint, ...]) -> tuple[DesiredEndpoint, ...]:
        return with_known_ids(
            endpoints, self.target_state.desired, self.target_state.rollouts.values()
        )

    def _resolver(
        self,
        caller: Caller,
        spec: SystemSpec,
        cancel: threading.Event | None,
        *,
        reload: str = "",
    ) -> Resolver:
        reloads = reloads_of(self.target_state.desired)
        if reload:
            reloads[reload] = reloads.get(reload, 0) + 1
        return Resolver(
            registry=self.registry,
            inspect=self.work.inspect_for(caller.name, cancel),
            spec=spec,
            reloads=reloads,
            max_body_bytes=self.max_body_bytes,
            allow_code=self.allow_code,
            owner=caller.name,
            model_roots=() if caller.may(Role.ADMIN) else self.model_roots,
        )


def rollout_or_default(
    entry: Mapping[str, Any], rollout: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the plan of a rollout: the given one, the endpoint's own, or a canary."""
    return dict(rollout or entry.get("rollout") or {"strategy": "canary"})


def _is_same_for(name: str, before: DesiredState, now: DesiredState) -> bool:
    """Whether a change of one endpoint that was resolved against `before` is still valid."""
    if before is now:
        return True
    rest = [{**state.spec, "endpoints": None} for state in (before, now)]
    return before.endpoint(name) == now.endpoint(name) and rest[0] == rest[1]


def _with_endpoint(
    state: DesiredState,
    name: str,
    entry: Mapping[str, Any] | None,
    endpoint: DesiredEndpoint | None,
) -> DesiredState:
    """Return `state` with one endpoint changed, added or removed."""
    endpoints = list(state.endpoints)
    index = next((i for i, e in enumerate(endpoints) if e.name == name), len(endpoints))
    endpoints[index : index + 1] = [] if endpoint is None else [endpoint]
    is_in_spec = entry is not None or endpoint is None
    return msgspec.structs.replace(
        state,
        spec=with_entry(state.spec, name, entry) if is_in_spec else state.spec,
        endpoints=tuple(endpoints),
    )


def _kept_note(endpoint: DesiredEndpoint) -> str:
    """Return the note about an endpoint whose rolled out version an apply keeps."""
    versions, models = (
        " and ".join(getattr(arm.revision, field) for arm in endpoint.arms)
        for field in ("version", "model")
    )
    former = " and ".join(model for _, model, _, _ in endpoint.spec_source)
    return (
        f"endpoint '{endpoint.name}' keeps version {versions} ({models}) of a later rollout, as "
        f"the spec still names {former}; `headrace rollout start {endpoint.name}` or another "
        "`model` in the spec changes it"
    )


def _overtaken(description: str) -> ConflictError:
    return ConflictError(
        f"{description} was changed {_ATTEMPTS} times meanwhile; send the change again"
    )
