"""What may an operator order, and what does it mean for the desired state?"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from headrace.control.aims import Aims
from headrace.control.at_home import bring_home
from headrace.control.desired import DesiredEndpoint, DesiredState
from headrace.control.differences import Diff, diff_between
from headrace.control.former import check_there, former
from headrace.control.former_ids import with_known_ids
from headrace.control.limited import check_document, check_endpoints
from headrace.control.order_documents import (
    entry_of_source,
    only_entry,
    pools_of,
    reloads_of,
    with_entry,
)
from headrace.control.resolve import Resolved, Resolver, check_still_trusted
from headrace.control.store import EndpointGeneration, RolloutRecord
from headrace.control.store_thread import StoreThread
from headrace.control.streams.asked import endpoints_of
from headrace.control.wishes import Applied, Fulfiller, Wish
from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    Inspect,
    InvalidArgumentError,
    ModelNotFoundError,
)
from headrace.core.rollout_settings import RolloutSettings
from headrace.core.spec import SystemSpec, parse_spec
from headrace.registry import Registry

_SOURCES: Final = ("model", "versions", "upstream", "version")
_OF_OUR_COPIES: Final = ("replicas", "pool", "autoscale")


@dataclass(slots=True, kw_only=True)
class Orders:
    """Takes orders that change the desired state, one at a time."""

    store: StoreThread
    registry: Registry
    inspect: Inspect
    aims: Aims
    fulfiller: Fulfiller
    max_body_bytes: int
    allow_code: bool = False
    """Whether every endpoint may have models that run their authors' code."""

    async def apply(
        self,
        document: Mapping[str, Any],
        *,
        actor: str = "",
        expected: Mapping[str, int] | None = None,
        only: frozenset[str] | None = None,
    ) -> Applied:
        """Want what `document` says, and nothing else.

        Args:
            only: The endpoints that may change by it; None for all, and the whole system.

        Raises:
            SpecError: With all mistakes; nothing was changed.
            ConflictError: An endpoint is not at the generation that `expected` names for it.
            PermissionDeniedError: Something else than `only` would change.
        """
        spec = parse_spec(document)
        async with self.aims.lock:
            for name, generation in (expected or {}).items():
                self._expect(name, generation)
            check_document(self.aims.desired.spec, spec.document(), only)
            found = await self._resolve_all(spec)
            check_endpoints(self.aims.desired, found.endpoints, only)
            wish = Wish(
                document=spec.document(),
                endpoints=found.endpoints,
                pools=pools_of(spec),
                streams=found.streams,
                reason="applied",
                action="apply",
                actor=actor,
            )
            return await self.fulfiller.fulfil(wish)

    async def diff(
        self, document: Mapping[str, Any], *, only: frozenset[str] | None = None
    ) -> Diff:
        """What `apply` would change; models that lie in files are stored as versions, else nothing.

        Args:
            only: The endpoints that may change by it; None for all, and the whole system.

        Raises:
            SpecError: With all mistakes.
            PermissionDeniedError: Something else than `only` would change.
        """
        spec = parse_spec(document)
        old = self.aims.desired
        check_document(old.spec, spec.document(), only)
        resolved = await self._resolve_all(spec)
        new = DesiredState(
            generation=old.generation,
            spec=spec.document(),
            endpoints=resolved.endpoints,
            pools=pools_of(spec),
            streams=resolved.streams,
        )
        return diff_between(old, new)

    async def put_endpoint(
        self,
        name: str,
        entry: Mapping[str, Any],
        *,
        expected: int | None = None,
        actor: str = "",
    ) -> Applied:
        """Want one endpoint as `entry` says; all others stay pinned as they are.

        Args:
            expected: The generation that the caller read; 0 for an endpoint that is new.

        Raises:
            SpecError: With all mistakes.
            ConflictError: The endpoint is at another generation than `expected`.
        """
        if entry.get("name", name) != name:
            raise InvalidArgumentError(
                f"the body names endpoint {entry['name']!r}, the path {name!r}"
            )
        async with self.aims.lock:
            self._expect(name, expected)
            document = with_entry(self.aims.desired.spec, name, {"name": name, **entry})
            endpoint = await self._resolve_one(document, name)
            return await self.fulfiller.fulfil(
                self._wish(document, endpoint, reason="put", action="endpoint.put", actor=actor)
            )

    async def remove_endpoint(
        self, name: str, *, expected: int | None = None, actor: str = ""
    ) -> Applied:
        """Stop serving `name`; all else stays pinned as it is.

        Raises:
            ModelNotFoundError: There is no such endpoint.
            FailedPreconditionError: It is one of a repository's models, which come and go together.
            ConflictError: The endpoint is at another generation than `expected`.
        """
        async with self.aims.lock:
            self._expect(name, expected)
            self._own(name)
            self._check_unused(name)
            desired = self.aims.desired
            rest = tuple(e for e in desired.endpoints if e.name != name)
            wish = Wish(
                document=with_entry(desired.spec, name, None),
                endpoints=rest,
                pools=desired.pools,
                streams=desired.streams,
                reason="removed",
                action="endpoint.remove",
                actor=actor,
            )
            return await self.fulfiller.fulfil(wish)

    async def load(self, name: str, *, actor: str = "") -> Applied:
        """Serve the registry's newest version of `name`, or load a served endpoint anew, at once.

        Raises:
            SpecError: The registry has no such model, or it cannot be served.
        """
        async with self.aims.lock:
            desired = self.aims.desired
            served = desired.endpoint(name)
            document = desired.spec
            if served is None:
                document = with_entry(document, name, {"name": name, "model": name})
            endpoint = await self._resolve_one(document, name, reload=served is not None)
            wish = self._wish(
                document,
                endpoint,
                reason="loaded",
                action="endpoint.load",
                actor=actor,
                takes_over={name: None},
            )
            return await self.fulfiller.fulfil(wish)

    async def undo(self, name: str, *, generation: int | None = None, actor: str = "") -> Applied:
        """Want an endpoint as it was in `generation`, at once and without a rollout.

        Args:
            generation: None for the newest that served something else than what is asked for now.

        Raises:
            NotFoundError: There is no such generation.
            FailedPreconditionError: A model of it is gone from the registry.
        """
        async with self.aims.lock:
            found = await former(self.store, name, generation)
            found = await asyncio.to_thread(bring_home, found, self.registry)
            desired = self.aims.desired
            document = with_entry(desired.spec, name, found.document)
            reason = f"undone to generation {found.generation}"
            if found.endpoint is None:
                self._check_unused(name)
                rest = tuple(e for e in desired.endpoints if e.name != name)
                wish = Wish(
                    document=document,
                    endpoints=rest,
                    pools=desired.pools,
                    streams=desired.streams,
                    reason=reason,
                    action="endpoint.undo",
                    actor=actor,
                )
            else:
                await asyncio.to_thread(check_there, found.endpoint)
                security = parse_spec(document).security
                await asyncio.to_thread(check_still_trusted, found.endpoint, security)
                wish = self._wish(
                    document,
                    found.endpoint,
                    reason=reason,
                    action="endpoint.undo",
                    actor=actor,
                    takes_over={name: None},
                    anew=self.aims.rollout(name) is not None,
                )
            return await self.fulfiller.fulfil(wish)

    async def start_rollout(
        self,
        name: str,
        *,
        model: str = "",
        version: str = "",
        upstream: Mapping[str, Any] | None = None,
        rollout: Mapping[str, Any] | None = None,
        allow_code: bool = False,
        actor: str = "",
    ) -> RolloutRecord:
        """Let another version take over endpoint `name`, step by step.

        Args:
            model: A registry reference or an absolute path; or else:
            version: Of the model that is served now; beside `upstream`: what to call that.
            upstream: Somebody else's server, as in the spec.
            rollout: As in the spec; None takes the endpoint's own, or a canary.
            allow_code: From now on the endpoint may have models that run their authors' code.

        Raises:
            ModelNotFoundError: There is no such endpoint.
            SpecError: What is to be served, or `rollout`, is wrong.
            FailedPreconditionError: A rollout is under way.
            InvalidArgumentError: It is served already.
        """
        async with self.aims.lock:
            served = self._own(name)
            self._check_idle(name)
            entry = self.aims.desired.entry(name)
            assert entry is not None, "checked by _own"
            left_out = _SOURCES if upstream is None else (*_SOURCES, *_OF_OUR_COPIES)
            new = {key: value for key, value in entry.items() if key not in left_out}
            new |= entry_of_source(served, model=model, version=version, upstream=upstream)
            if allow_code:
                new["allow_code"] = True
            plan = rollout or entry.get("rollout") or {"strategy": "canary"}
            document = with_entry(self.aims.desired.spec, name, new)
            found = await self._resolve_one(
                with_entry(document, name, {**new, "rollout": dict(plan)}), name
            )
            settings = found.rollout
            assert settings is not None, "was given"
            target = msgspec.structs.replace(found, rollout=served.rollout)
            self._check_new(name, target)
            wish = self._wish(
                document,
                target,
                reason="rollout started",
                action="rollout.start",
                actor=actor,
                takes_over={name: settings},
                anew=True,
            )
            await self.fulfiller.fulfil(wish)
            record = self.aims.rollout(name)
            assert record is not None, "was just begun"
            return record

    async def history(self, name: str, limit: int = 100) -> list[EndpointGeneration]:
        """An endpoint's generations, the newest first."""
        return await self.store.run(self.store.store.history, name, limit=limit)

    def _expect(self, name: str, generation: int | None) -> None:
        if generation is None:
            return
        endpoint = self.aims.desired.endpoint(name)
        found = 0 if endpoint is None else endpoint.generation
        if found != generation:
            message = (
                f"endpoint '{name}' is at generation {found}, not {generation}: somebody changed "
                "it meanwhile; read it again"
            )
            raise ConflictError(message)

    def _own(self, name: str) -> DesiredEndpoint:
        """The endpoint of this name, which has a line of its own in the spec."""
        found = self.aims.desired.endpoint(name)
        if found is None:
            raise ModelNotFoundError(name)
        if self.aims.desired.entry(name) is None:
            message = f"'{name}' comes from a model repository; take that out of the spec"
            raise FailedPreconditionError(message)
        return found

    def _check_unused(self, name: str) -> None:
        """Refuse to take away what a stream asks."""
        for stream in self.aims.desired.streams:
            if any(endpoint.name == name for endpoint in endpoints_of(stream.settings)):
                message = (
                    f"stream '{stream.name}' asks endpoint '{name}'; take the stream out first"
                )
                raise FailedPreconditionError(message)

    def _check_idle(self, name: str) -> None:
        record = self.aims.rollout(name)
        if record is not None and not record.state.phase.is_over:
            message = (
                f"rollout {record.id} of endpoint '{name}' is under way ({record.state.phase}); "
                "promote or abort it first"
            )
            raise FailedPreconditionError(message)

    def _check_new(self, name: str, target: DesiredEndpoint) -> None:
        serving = self.aims.serving(name)
        keys = [] if serving is None else [arm.key for arm in serving.arms]
        if target.arms[0].key in keys:
            message = f"endpoint '{name}' serves version {target.arms[0].key} already"
            raise InvalidArgumentError(message)

    def _wish(
        self,
        document: dict[str, Any],
        endpoint: DesiredEndpoint,
        *,
        reason: str,
        action: str,
        actor: str,
        takes_over: Mapping[str, RolloutSettings | None] | None = None,
        anew: bool = False,
    ) -> Wish:
        """One endpoint changed or added, all others as they are and where they are."""
        desired = self.aims.desired
        name = endpoint.name
        if desired.endpoint(name) is None:
            endpoints = (*desired.endpoints, endpoint)
        else:
            endpoints = tuple(endpoint if e.name == name else e for e in desired.endpoints)
        return Wish(
            document=document,
            endpoints=endpoints,
            pools=desired.pools,
            streams=desired.streams,
            reason=reason,
            action=action,
            actor=actor,
            takes_over=takes_over or {},
            anew=frozenset({name} if anew else ()),
        )

    async def _resolve_one(
        self, document: Mapping[str, Any], name: str, *, reload: bool = False
    ) -> DesiredEndpoint:
        spec = only_entry(parse_spec(document), name)
        found = await self._resolve(spec, reload=name if reload else "")
        endpoint = next((e for e in found if e.name == name), None)
        if endpoint is None:
            raise ModelNotFoundError(name)
        return endpoint

    async def _resolve(self, spec: SystemSpec, *, reload: str = "") -> tuple[DesiredEndpoint, ...]:
        return self._known(await asyncio.to_thread(self._resolver(spec, reload=reload).resolve))

    async def _resolve_all(self, spec: SystemSpec) -> Resolved:
        found = await asyncio.to_thread(self._resolver(spec).resolve_all)
        return replace(found, endpoints=self._known(found.endpoints))

    def _known(self, endpoints: tuple[DesiredEndpoint, ...]) -> tuple[DesiredEndpoint, ...]:
        return with_known_ids(endpoints, self.aims.desired, self.aims.rollouts.values())

    def _resolver(self, spec: SystemSpec, *, reload: str = "") -> Resolver:
        reloads = reloads_of(self.aims.desired)
        if reload:
            reloads[reload] = reloads.get(reload, 0) + 1
        return Resolver(
            registry=self.registry,
            inspect=self.inspect,
            spec=spec,
            reloads=reloads,
            max_body_bytes=self.max_body_bytes,
            allow_code=self.allow_code,
        )
