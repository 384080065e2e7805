"""Authorization of changes of the desired state and of every object that a change refers to.

`authorize` is pure, and every operation that changes the desired state calls it: apply, put,
delete, undo, load and rollouts, over the API and on a home. Errors name no object that the caller
may not see.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, assert_never

from headrace.control.auth.roles import Caller, ObjectKind, Role
from headrace.control.model.desired import DesiredState, same_endpoint
from headrace.core import PermissionDeniedError
from headrace.core.spec.parse import EndpointSpec, is_model_path, parse_spec
from headrace.core.spec.upstream import upstream_problem

OPERATOR_SECTIONS: Final = frozenset(
    {"version", "endpoints", "pools", "streams", "budget", "tiers"}
)
"""Sections of the spec that an operator of the whole system may change; others need an admin."""
OPERATOR_GATEWAY: Final = frozenset(
    {"max_body_bytes", "connections", "access_log", "request_log", "shared_limits"}
)
"""Fields of `gateway` that an operator of the whole system may change."""
_INERT: Final = frozenset({"labels", "health_path", "model", "fallback"})
"""Fields whose text names no file or variable, or is a separate kind of reference."""
_OF_FILE: Final = re.compile(r"(_file|\.location|\.keytab|\.config)=", re.IGNORECASE)
"""Options in a broker's URL that name files: the broker's client sends their content, or a proof of
it."""
_FILE_SCHEMES: Final = ("/", "~", "file:", "sqlite:", "feast:", "log:/")


class ReferenceKind(StrEnum):
    """Kind of object that an entry of the spec refers to."""

    MODEL = ObjectKind.MODEL.value
    FEATURES = ObjectKind.FEATURES.value
    STORE = ObjectKind.STORE.value
    PUSH = "push"
    """The model name under which a path is stored."""
    POOL = "pool"
    ENDPOINT = "endpoint"
    """Another endpoint, which callers of this one reach."""
    UPSTREAM = "upstream"
    FILE = "file"
    VARIABLE = "variable"
    ADDRESS = "address"
    SETTING = "setting"
    """A sandbox limit."""


_ADMIN_ONLY: Final = {
    ReferenceKind.FILE: "only an admin names files of the control plane; upload a model with "
    "`headrace models push`, and name it as NAME:VERSION",
    ReferenceKind.VARIABLE: "only an admin names variables of the environment",
    ReferenceKind.ADDRESS: "only an admin names addresses there",
    ReferenceKind.SETTING: "only an admin sets bounds of the sandbox: `network`, `isolation`, "
    "`memory_bytes`",
}


@dataclass(frozen=True, slots=True)
class SpecReference:
    """An object that an entry refers to; a file or variable includes the settings beside it."""

    kind: ReferenceKind
    name: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The endpoints that use a model, and the principals who pushed its versions."""

    users: frozenset[str] = frozenset()
    owners: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationFacts:
    """Facts that the decision depends on besides the two states."""

    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    paths: frozenset[str] = frozenset()
    """Model paths that lie below a configured root."""


def may_read_model(caller: Caller, model: str, facts: ModelFacts) -> bool:
    """Whether a caller may see the versions of a model."""
    endpoints = caller.endpoints(Role.VIEWER)
    return (
        endpoints is None
        or model in endpoints
        or bool(endpoints & facts.users)
        or caller.may(Role.VIEWER, model, ObjectKind.MODEL)
        or facts.owners == {caller.name}
    )


def may_change_model(caller: Caller, model: str, facts: ModelFacts) -> bool:
    """Whether a caller may push, sign and remove versions of a model."""
    endpoints = caller.endpoints(Role.OPERATOR)
    return (
        endpoints is None
        or caller.may(Role.OPERATOR, model, ObjectKind.MODEL)
        or (caller.may_somewhere(Role.OPERATOR) and facts.owners == {caller.name})
        or (model in endpoints and facts.users <= endpoints)
    )


def references_of(endpoint: EndpointSpec) -> frozenset[SpecReference]:
    """Return every object that an endpoint of the spec refers to."""
    return frozenset(_references_of(endpoint))


def authorize(
    caller: Caller, before: DesiredState, after: DesiredState, facts: AuthorizationFacts
) -> None:
    """Reject a change that exceeds the caller's grants.

    References that an endpoint already had need no grant. Called twice: before any model is read,
    with the endpoints of `before` as those of `after`, and then with the resolved endpoints.

    Raises:
        PermissionDeniedError: The change, or an object that it newly refers to, needs a role that
            the caller lacks.
    """
    if caller.may(Role.ADMIN):
        return
    endpoints = caller.endpoints(Role.OPERATOR)
    _check_sections(before.spec, after.spec, is_scoped=endpoints is not None)
    old, new = _entries(before.spec, "endpoints"), _entries(after.spec, "endpoints")
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    if endpoints is not None and (changed | _resolved_changes(before, after)) - endpoints:
        message = (
            "this would change endpoints of others, or serve other versions there; change your own "
            "by `PUT /api/v1/endpoints/NAME`, or ask an operator of the whole system"
        )
        raise PermissionDeniedError(message)
    allowed_hosts = (after.spec.get("security") or {}).get("upstream_hosts") or ()
    for name in sorted(changed & new.keys()):
        previous = _endpoint(old[name]) if name in old else None
        added = references_of(_endpoint(new[name])) - (
            references_of(previous) if previous else set()
        )
        for reference in sorted(added, key=lambda reference: (reference.kind, reference.name)):
            if problem := _problem(caller, reference, before, facts, allowed_hosts):
                raise PermissionDeniedError(f"endpoint '{name}': {problem}")
    _check_streams(before.spec, after.spec)


def models_of(document: Mapping[str, Any], name: str | None = None) -> frozenset[str]:
    """Return the registry models that one endpoint or all endpoints of a spec name or push to."""
    entries = _entries(document, "endpoints")
    return frozenset(
        reference.name
        for entry_name, entry in entries.items()
        if name in {None, entry_name}
        for reference in references_of(_endpoint(entry))
        if reference.kind in {ReferenceKind.MODEL, ReferenceKind.PUSH}
    )


def _references_of(endpoint: EndpointSpec) -> Iterator[SpecReference]:
    models = [version.model for version in endpoint.split() if version.model is not None]
    upstreams = [version.upstream for version in endpoint.split() if version.upstream]
    urls = {upstream.url for upstream in upstreams}
    for model in models:
        if is_model_path(model):
            yield from (
                SpecReference(ReferenceKind.FILE, model),
                SpecReference(ReferenceKind.PUSH, endpoint.name),
            )
        else:
            yield SpecReference(ReferenceKind.MODEL, model.partition(":")[0])
    for upstream in upstreams:
        # With the settings that decide which paths are reached there; no URL contains a space.
        parts = (upstream.url, upstream.protocol, upstream.model, upstream.health_path or "")
        yield SpecReference(ReferenceKind.UPSTREAM, " ".join(parts))
    others = {ReferenceKind.POOL: endpoint.pool, ReferenceKind.ENDPOINT: endpoint.fallback}
    yield from (SpecReference(kind, name) for kind, name in others.items() if name is not None)
    if endpoint.features is not None:
        yield SpecReference(ReferenceKind.FEATURES, endpoint.features.service)
        if endpoint.features.online_store is not None:
            yield SpecReference(ReferenceKind.STORE, endpoint.features.online_store)
    relaxed = {
        "network": endpoint.network,
        "isolation": endpoint.isolation != "required",
        f"memory_bytes: {endpoint.memory_bytes}": endpoint.memory_bytes is not None,
    }
    yield from (
        SpecReference(ReferenceKind.SETTING, name) for name, is_set in relaxed.items() if is_set
    )
    for reference, text in _texts(endpoint.model_dump(mode="json", exclude_unset=True)):
        if reference is not None:
            yield reference
        elif "://" in text and text not in urls:
            yield SpecReference(ReferenceKind.ADDRESS, text)


def _texts(
    value: Mapping[str, Any], *, is_entry: bool = True
) -> Iterator[tuple[SpecReference | None, str]]:
    """Yield each text below a mapping, with the file or variable that it refers to.

    A reference to a file or variable includes all settings beside it, or its URL: with other
    settings, another server would get its content.
    """
    scalars = {key: item for key, item in value.items() if not isinstance(item, Mapping)}
    for key, item in value.items():
        if key in _INERT:
            continue
        items = item if isinstance(item, list | tuple) else [item]
        for part in items:
            if isinstance(part, Mapping):
                yield from _texts(part, is_entry=False)
            elif isinstance(part, str):
                bound = {key: part} if is_entry or "://" in part else scalars
                kind = _kind_of(key, part)
                name = json.dumps(bound, sort_keys=True, default=str)
                yield (None if kind is None else SpecReference(kind, name)), part


def _kind_of(key: str, text: str) -> ReferenceKind | None:
    if "${" in text:
        return ReferenceKind.VARIABLE
    is_file = key.endswith("_file") or text.startswith(_FILE_SCHEMES) or _OF_FILE.search(text)
    return ReferenceKind.FILE if is_file else None


def _problem(
    caller: Caller,
    reference: SpecReference,
    before: DesiredState,
    facts: AuthorizationFacts,
    allowed_hosts: Sequence[str],
) -> str:
    """Return why a caller without the role admin may not refer to an object; empty if allowed."""
    name, endpoints = reference.name, caller.endpoints(Role.OPERATOR)
    model = facts.models.get(name, ModelFacts())
    match reference.kind:
        case (
            ReferenceKind.FILE
            | ReferenceKind.VARIABLE
            | ReferenceKind.ADDRESS
            | ReferenceKind.SETTING
        ):
            problem = "" if name in facts.paths else _ADMIN_ONLY[reference.kind]
        case ReferenceKind.UPSTREAM:
            problem = upstream_problem(name.partition(" ")[0], allowed_hosts)
        case ReferenceKind.POOL:
            entries = _entries(before.spec, "endpoints").items()
            members = {member for member, entry in entries if entry.get("pool") == name}
            is_open = endpoints is None or members <= endpoints
            problem = "" if is_open else "a pool is joined by operators of all its endpoints only"
        case ReferenceKind.ENDPOINT:
            is_open = endpoints is None or name in endpoints
            problem = "" if is_open else "a fallback is named by an operator of both endpoints only"
        case ReferenceKind.PUSH:
            is_open = may_change_model(caller, name, model)
            problem = "" if is_open else _grant(caller, Role.OPERATOR, ObjectKind.MODEL, name)
        case ReferenceKind.MODEL | ReferenceKind.FEATURES | ReferenceKind.STORE:
            resource = ObjectKind(reference.kind)
            is_own = resource is ObjectKind.MODEL and may_change_model(caller, name, model)
            # Viewing the whole system does not imply the right to serve from it.
            is_granted = any(g.resource is resource and g.name == name for g in caller.grants)
            is_open = endpoints is None or is_own or is_granted
            problem = "" if is_open else _grant(caller, Role.VIEWER, resource, name)
        case _:
            assert_never(reference.kind)
    return problem


def _grant(caller: Caller, role: Role, resource: ObjectKind, name: str) -> str:
    return (
        f"{caller.name} may not use {resource} '{name}'; an admin can allow it with "
        f"`headrace users grant {caller.name} {role}:{resource}/{name}`"
    )


def _check_sections(
    before: Mapping[str, Any], after: Mapping[str, Any], *, is_scoped: bool
) -> None:
    """Reject changes to settings of the whole system."""
    open_ = {"endpoints", "version"} if is_scoped else OPERATOR_SECTIONS
    written = [
        key
        for key in sorted((before.keys() | after.keys()) - open_)
        if before.get(key) != after.get(key)
    ]
    if not written:
        return
    # Writing down a default is no change.
    old, new = (parse_spec(document, in_force=before) for document in (before, after))
    differing = [key for key in written if getattr(old, key, None) != getattr(new, key, None)]
    if is_scoped and differing:
        message = (
            "this would change settings of the whole system; change your own endpoints by "
            "`PUT /api/v1/endpoints/NAME`, or ask an operator of the whole system"
        )
        raise PermissionDeniedError(message)
    for key in differing:
        names = type(new.gateway).model_fields.keys() - OPERATOR_GATEWAY
        fields = [n for n in names if getattr(old.gateway, n) != getattr(new.gateway, n)]
        if key != "gateway" or fields:
            location = f"gateway.{min(fields)}" if key == "gateway" else key
            raise PermissionDeniedError(f"only an admin changes `{location}`")


def _check_streams(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Reject streams that newly send the content of a file or variable to a server."""
    old, new = _entries(before, "streams"), _entries(after, "streams")
    for name, entry in new.items():
        if entry == old.get(name):
            continue
        previous = old.get(name, {})
        added = {reference for reference, _ in _texts(entry)} - {None}
        added -= {reference for reference, _ in _texts(previous)}
        if added or _model_paths(entry) - _model_paths(previous):
            message = (
                f"stream '{name}' names secrets or files of the control plane, and where they are "
                "sent: only an admin changes that"
            )
            raise PermissionDeniedError(message)


def _model_paths(stream: Mapping[str, Any]) -> set[str]:
    versions = (stream, *(value for value in stream.values() if isinstance(value, Mapping)))
    models = (version.get("model") or "" for version in versions)
    return {model for model in models if is_model_path(model)}


def _resolved_changes(before: DesiredState, after: DesiredState) -> set[str]:
    """Return the endpoints that would serve something different."""
    old = {str(endpoint.name): endpoint for endpoint in before.endpoints}
    new = {str(endpoint.name): endpoint for endpoint in after.endpoints}
    names = old.keys() | new.keys()
    return {name for name in names if not same_endpoint(old.get(name), new.get(name))}


def _entries(document: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    return {entry["name"]: entry for entry in document.get(key) or ()}


def _endpoint(entry: Mapping[str, Any]) -> EndpointSpec:
    return EndpointSpec.model_validate(entry)
