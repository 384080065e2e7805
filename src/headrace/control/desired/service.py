"""Service for changes of the desired state: authorize, resolve, apply.

Models are read, hashed and inspected outside the lock that serializes changes. The result is valid
if the endpoint and the settings of the whole system have not changed meanwhile; else the change is
resolved again.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from headrace.control.auth.home_token import HOME_OWNER
from headrace.control.auth.references import (
    AuthorizationFacts,
    ModelFacts,
    authorize,
    may_read_model,
    models_of,
)
from headrace.control.auth.roles import Caller, Grant, Role
from headrace.control.base.faults import LOOP, Faults
from headrace.control.base.journal import EventJournal
from headrace.control.desired.applier import (
    APPLY,
    APPLY_RESOURCES,
    Applied,
    Carry,
    DesiredStateDraft,
    Diff,
    apply_draft,
    diff_of,
)
from headrace.control.desired.documents import (
    check_there,
    entry_of_source,
    former,
    mistakes_by_endpoint,
    only_entry,
    pods_entry,
    reloads_of,
    relocate_and_fetch,
    with_entries,
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
from headrace.control.model.desired import (
    DesiredEndpoint,
    DesiredState,
    ResourceOrigin,
    SpecFile,
    digest_of,
)
from headrace.control.model.records import Event, RolloutRecord
from headrace.control.state.store import Store
from headrace.core import (
    Clock,
    ConflictError,
    EndpointNotFoundError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelNotFoundError,
    PermissionDeniedError,
)
from headrace.core.spec.models import disagreements
from headrace.core.spec.parse import (
    SpecError,
    SpecMistake,
    SystemSpec,
    is_model_path,
    parse_spec,
    read_document,
)
from headrace.core.spec.rollout import RolloutSpec, judged_by
from headrace.registry import Registry, is_repository

_LOG: Final = logging.getLogger("headrace.control")
_SOURCES: Final = ("model", "versions", "upstream", "version")
_OF_OUR_COPIES: Final = ("replicas", "pool", "autoscale")
_REPLICAS: Final = frozenset({"replicas", "autoscale"})
PATCH: Final = "endpoint.patch"
_CLUSTER: Final = Caller(name="kubernetes", kind="service", grants=(Grant(Role.ADMIN),))
"""The caller of changes by resources, each of which `_RESOURCE` was allowed to make."""
_RESOURCE: Final = Caller(name="kubernetes", kind="service", grants=(Grant(Role.OPERATOR),))
"""Who writes a resource is no admin: it names no files, variables and bounds of the sandbox."""
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
    carry: Carry | None = None
    """Change that keeps the versions, by which `endpoint` was made: it also applies to both ends of
    the endpoint's rollout, which continues.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceEndpoint:
    """An endpoint as a resource of a cluster defines it."""

    entry: Mapping[str, Any]
    """Its entry in a spec."""
    pods: Mapping[str, Any] | None
    """Its entry in `kubernetes.endpoints`."""
    origin: ResourceOrigin | None
    """None for an entry of the spec file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A spec document to apply, and what of the desired state stays as it is stored."""

    document: Mapping[str, Any]
    file: SpecFile
    kept: frozenset[str] = frozenset()
    """Endpoints and entries of the spec that stay."""
    scaled: frozenset[str] = frozenset()
    """Those of `kept` of which only the number of replicas changes."""
    action: str = APPLY
    resources: Mapping[str, ResourceOrigin] = field(default_factory=dict)


Refused = dict[str, HeadraceError]
"""Why endpoints of a proposal are left out."""


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
    faults: Faults = field(default_factory=Faults)

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

        def propose(before: DesiredState, _: Refused) -> Proposal:
            file = msgspec.structs.replace(before.file, refused=())
            return Proposal(document=document, file=file)

        applied, _ = await self._apply_proposed(
            propose, caller=caller, expected=expected or {}, cancel=cancel
        )
        return applied

    async def apply_file(self, document: Mapping[str, Any]) -> None:
        """Apply the spec file of a control plane that must run whatever the file contains.

        An endpoint with a mistake is a fault, and stays as it is stored; all others are applied. A
        mistake elsewhere is a fault of the file, and nothing changes. A file that was applied
        before is not applied again, so that rollouts and `undo` outlast restarts; only its
        endpoints with mistakes are tried again.
        """
        with self.faults.contain(LOOP, "spec file"):
            digest, file = digest_of([document]), self.target_state.desired.file
            if digest != file.digest:
                refused = await self._apply_whole(document, digest)
                _LOG.info("applied the spec file", extra={"refused": sorted(refused)})
            elif file.refused:
                entries = {entry["name"]: entry for entry in document["endpoints"]}
                again = {
                    name: ResourceEndpoint(
                        entry=entries[name], pods=pods_entry(document, name), origin=None
                    )
                    for name in file.refused
                }
                refused = await self.apply_endpoints(again)
            else:
                return
            for name in {*file.refused, *refused}:
                with self.faults.contain(_ENDPOINT, name):
                    if name in refused:
                        raise refused[name]
            self.faults.keep_only(_ENDPOINT, refused)

    async def follow_file(self, path: Path, *, interval_s: float = 10.0) -> None:
        """Apply the spec file at `path` when it changes, until cancelled.

        A kubelet changes the files of a mounted ConfigMap about a minute after the ConfigMap.
        """
        while True:
            await asyncio.sleep(interval_s)
            with self.faults.contain(LOOP, f"file {path.name}"):
                text = await asyncio.to_thread(path.read_text, "utf-8")
                await self.apply_file(read_document(text, base_dir=path.parent))

    async def _apply_whole(self, document: Mapping[str, Any], digest: str) -> Refused:
        def propose(before: DesiredState, refused: Refused) -> Proposal:
            entries = {name: before.entry(name) for name in refused}
            pods = {name: pods_entry(before.spec, name) for name in refused}
            return Proposal(
                document=with_entries(document, entries, pods) if refused else document,
                file=SpecFile(digest=digest, refused=tuple(sorted(refused))),
                kept=frozenset(name for name, entry in entries.items() if entry is not None),
            )

        _, refused = await self._apply_proposed(propose, caller=HOME_OWNER, leaves_out=True)
        return refused

    async def apply_endpoints(self, resources: Mapping[str, ResourceEndpoint]) -> Refused:
        """Create or replace endpoints of resources, or of the spec file; return those refused.

        All other endpoints keep their pinned versions. A change of replicas only keeps them too,
        and a rollout continues.
        """
        denied: Refused = {}
        for name, resource in resources.items():
            with _noted(denied, name):
                self._check_allowed(name, resource)

        def propose(before: DesiredState, refused: Refused) -> Proposal:
            for name, resource in resources.items():
                served = before.endpoint(name)
                if served is not None and (served.resource is None) != (resource.origin is None):
                    other = "a resource" if served.resource else "the spec or the management API"
                    message = f"endpoint '{name}' is defined by {other}; remove it there first"
                    refused[name] = FailedPreconditionError(message)
            changed = {name: item for name, item in resources.items() if name not in refused}
            document = with_entries(
                before.spec,
                {name: item.entry for name, item in changed.items()},
                {name: item.pods for name, item in changed.items()},
            )
            scaled = frozenset(name for name in changed if _is_scaling(before, document, name))
            names = {str(endpoint.name) for endpoint in before.endpoints}
            names |= {entry["name"] for entry in before.spec.get("endpoints", ())}
            return Proposal(
                document=document,
                kept=frozenset(names - changed.keys()) | scaled,
                scaled=scaled,
                action=APPLY_RESOURCES,
                resources={n: item.origin for n, item in changed.items() if item.origin},
                file=msgspec.structs.replace(
                    before.file,
                    refused=tuple(n for n in before.file.refused if n not in changed),
                ),
            )

        if len(denied) == len(resources):
            return denied
        _, refused = await self._apply_proposed(
            propose, caller=_CLUSTER, leaves_out=True, refused=denied
        )
        return refused

    def _check_allowed(self, name: str, resource: ResourceEndpoint) -> None:
        """Authorize one endpoint of a resource alone."""
        if resource.origin is None:
            return
        stored = self.target_state.desired
        rest = {key: value for key, value in stored.spec.items() if key != "endpoints"}
        former = [entry] if (entry := stored.entry(name)) is not None else []
        before = DesiredState(spec={**rest, "endpoints": former})
        document = {"version": 1, **rest, "endpoints": [dict(resource.entry)]}
        with suppress(ValidationError):  # applying it finds the mistakes
            authorize(_RESOURCE, before, DesiredState(spec=document), AuthorizationFacts())

    async def _apply_proposed(
        self,
        propose: Callable[[DesiredState, Refused], Proposal],
        *,
        caller: Caller,
        expected: Mapping[str, int] | None = None,
        cancel: threading.Event | None = None,
        leaves_out: bool = False,
        refused: Mapping[str, HeadraceError] | None = None,
    ) -> tuple[Applied, Refused]:
        """Resolve and apply a proposal; return the endpoints that were left out, too.

        Args:
            leaves_out: Whether endpoints with mistakes are left out. Otherwise they are errors.
            refused: Endpoints that are left out already.
        """
        for _ in range(_ATTEMPTS):
            before, out = self.target_state.desired, dict(refused or {})
            for name, generation in (expected or {}).items():
                self._expect(name, generation)
            resolved: tuple[DesiredStateDraft, AuthorizationFacts] | None = None
            while resolved is None:
                proposal = propose(before, out)
                try:
                    resolved = await self._resolved_all(caller, proposal, cancel)
                except SpecError as error:
                    wrong = mistakes_by_endpoint(error.mistakes, proposal.document)
                    stays = proposal.kept - proposal.scaled
                    if not leaves_out or not wrong or wrong.keys() & stays:
                        raise
                    out |= {name: SpecError(mistakes) for name, mistakes in wrong.items()}
            draft, facts = resolved
            async with self.target_state.lock:
                now = self.target_state.desired
                if now is not before and (
                    expected
                    or leaves_out
                    or any(e.resource is not None for e in before.endpoints)
                    or reloads_of(now) != reloads_of(before)
                    or {e.name: e.source for e in now.endpoints}
                    != {e.name: e.source for e in before.endpoints}
                ):
                    continue
                state = draft.state
                state = msgspec.structs.replace(state, endpoints=self._known(state.endpoints))
                authorize(caller, now, state, facts)
                return await self._apply_draft(replace(draft, state=state)), out
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
        proposal = Proposal(document=document, file=before.file)
        draft, facts = await self._resolved_all(caller, proposal, cancel)
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
        self,
        name: str,
        *,
        caller: Caller,
        expected: int | None = None,
        with_resource: bool = False,
    ) -> Applied:
        """Remove endpoint `name`; all others keep their pinned versions.

        Args:
            with_resource: Whether the resource that defines the endpoint was removed.

        Raises:
            EndpointNotFoundError: The endpoint does not exist.
            FailedPreconditionError: The endpoint comes from a model repository, whose models are
                removed together, or from a resource.
            ConflictError: The endpoint's generation differs from `expected`.
        """

        def change(_: DesiredState) -> EndpointChange:
            if self._own(name).resource is not None and not with_resource:
                raise _of_resource(name)
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
                if served is not None and served.resource is not None:
                    raise _of_resource(name)
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
        served = self.target_state.desired.endpoint(name)
        arms = served.arms if served is not None else ()
        generates = any(arm.revision.generates for arm in arms)
        return judged_by(line.rollout, line.slo, generates=generates)

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
        """Refuse to remove an endpoint that a stream calls, or that is another's fallback."""
        for other in self.target_state.desired.endpoints:
            if other.fallback == name:
                message = (
                    f"endpoint '{name}' is the fallback of endpoint '{other.name}'; remove "
                    "`fallback` there first"
                )
                raise FailedPreconditionError(message)
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
                    carry={} if change.carry is None else {name: change.carry},
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
        self, caller: Caller, proposal: Proposal, cancel: threading.Event | None
    ) -> tuple[DesiredStateDraft, AuthorizationFacts]:
        """Authorize a proposed spec as written, then return its resolved state, to be applied."""
        before = self.target_state.desired
        is_whole = proposal.action == APPLY
        if is_whole:
            proposal = _with_resources(proposal, before)
        in_force = _part_in_force(before.spec, proposal.kept)
        spec = parse_spec(proposal.document, in_force=in_force)
        document = spec.document()
        facts = await self._facts(caller, document)
        authorize(caller, before, msgspec.structs.replace(before, spec=document), facts)

        async def resolve(spec: SystemSpec) -> Resolved:
            resolver = self._resolver(caller, spec, cancel, kept=proposal.kept)
            if is_whole:
                return await self.work.run(caller.name, resolver.resolve_all)
            endpoints = await self.work.run(caller.name, resolver.resolve)
            return Resolved(endpoints=endpoints, streams=before.streams)

        resolved = await resolve(spec)
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
            spec = parse_spec(document, in_force=in_force)
            resolved = await resolve(spec)
        lines = {line.name: line for line in spec.endpoints}
        carry: dict[str, Carry] = {
            name: partial(with_replicas, entry=lines[name]) for name in proposal.scaled
        }
        endpoints = [
            msgspec.structs.replace(endpoint, spec_source=rolled_out[endpoint.name].spec_source)
            if endpoint.name in rolled_out
            else endpoint
            for endpoint in self._known(resolved.endpoints)
            if endpoint.name not in proposal.kept
        ]
        if proposal.kept:
            endpoints += [
                carry[endpoint.name](endpoint) if endpoint.name in carry else endpoint
                for endpoint in before.endpoints
                if endpoint.name in proposal.kept
            ]
            order = {endpoint.name: i for i, endpoint in enumerate(before.endpoints)}
            endpoints.sort(key=lambda endpoint: order.get(endpoint.name, len(order)))
        draft = DesiredStateDraft(
            state=DesiredState(
                generation=before.generation,
                spec=document,
                endpoints=tuple(endpoints),
                pools=spec.pools,
                streams=resolved.streams,
                file=proposal.file,
            ),
            reason="applied",
            action=proposal.action,
            actor=caller.name,
            notes=tuple(_kept_note(endpoint) for endpoint in rolled_out.values()),
            rollout_specs=dict.fromkeys(carry),
            carry=carry,
            resources=proposal.resources,
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
        kept: Collection[str] = (),
    ) -> Resolver:
        reloads = reloads_of(self.target_state.desired)
        if reload:
            reloads[reload] = reloads.get(reload, 0) + 1
        return Resolver(
            registry=self.registry,
            inspect=self.work.inspect_for(caller.name, cancel),
            spec=spec,
            kept=kept,
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


_ENDPOINT: Final = "endpoint spec"
"""Kind of the fault of an endpoint that was left out."""


@contextmanager
def _noted(refused: Refused, name: str) -> Iterator[None]:
    """Turn an error of one endpoint into its refusal."""
    try:
        yield
    except HeadraceError as error:
        refused[name] = error


def _with_resources(proposal: Proposal, before: DesiredState) -> Proposal:
    """Return a proposal of a whole spec, with the endpoints of resources kept.

    Raises:
        SpecError: The document defines one of them otherwise.
    """
    kept = frozenset(str(e.name) for e in before.endpoints if e.resource is not None)
    if not kept:
        return proposal
    listed = proposal.document.get("endpoints")
    mistakes = [
        SpecMistake(place=f"endpoints[{i}]", message=str(_of_resource(entry["name"])))
        for i, entry in enumerate(listed if isinstance(listed, list | tuple) else ())
        if isinstance(entry, Mapping)
        and entry.get("name") in kept
        and entry != before.entry(entry["name"])
    ]
    if mistakes:
        raise SpecError(mistakes)
    entries = {name: before.entry(name) for name in kept}
    pods = {name: pods_entry(before.spec, name) for name in kept}
    document = with_entries(proposal.document, entries, pods)
    return replace(proposal, document=document, kept=proposal.kept | kept)


def _part_in_force(stored: Mapping[str, Any], kept: Collection[str]) -> dict[str, Any] | None:
    """Return the part of the stored spec that stays in force; None for nothing."""
    entries = [entry for entry in stored.get("endpoints", ()) if entry["name"] in kept]
    return {**stored, "endpoints": entries} if entries else None


def _is_scaling(before: DesiredState, document: Mapping[str, Any], name: str) -> bool:
    """Whether a document changes only how many replicas an endpoint has."""
    served, old = before.endpoint(name), before.entry(name)
    if served is None or old is None or served.resource is None:
        return False
    if served.pooled or any(arm.revision.upstream is not None for arm in served.arms):
        return False
    (new,) = (entry for entry in document["endpoints"] if entry["name"] == name)
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    is_bound = all(isinstance(entry.get("autoscale", {}), dict) for entry in (old, new))
    return (
        changed <= _REPLICAS
        and is_bound
        and ("autoscale" in old) == ("autoscale" in new)
        and pods_entry(before.spec, name) == pods_entry(document, name)
    )


def _of_resource(name: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the resource Endpoint '{name}' of the cluster defines this endpoint: change it there"
    )


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
        file=msgspec.structs.replace(
            state.file, refused=tuple(other for other in state.file.refused if other != name)
        ),
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
