"""Roles, grants of roles, and callers of the management API."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.core.names import NAME_PATTERN

_NAME: Final = re.compile(NAME_PATTERN)


class Role(StrEnum):
    """Each role includes the roles before it."""

    VIEWER = "viewer"
    """Reads, and changes nothing."""
    OPERATOR = "operator"
    """Changes what is served: applies, rollouts, models, API keys."""
    ADMIN = "admin"
    """Manages access, settings that name secrets and files, and the audit log; stops the system."""

    @property
    def rank(self) -> int:
        """Position in the order of roles."""
        return tuple(Role).index(self)


class ObjectKind(StrEnum):
    """Kind of object that a grant can be limited to."""

    ENDPOINT = "endpoint"
    MODEL = "model"
    """A viewer may serve its versions; an operator may also push and remove versions."""
    FEATURES = "features"
    """A feature service: a viewer may serve its features."""
    STORE = "store"
    """An online store of the spec: a viewer may read it in an endpoint."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, for one object or, if `name` is None, for the whole system."""

    role: Role
    name: str | None = None
    resource: ObjectKind = ObjectKind.ENDPOINT

    def __str__(self) -> str:
        if self.name is None:
            return self.role
        prefix = "" if self.resource is ObjectKind.ENDPOINT else f"{self.resource}/"
        return f"{self.role}:{prefix}{self.name}"

    def includes(self, role: Role) -> bool:
        """Whether this grant's role is `role` or a higher one."""
        return self.role.rank >= role.rank


def parse_grant(text: str) -> Grant:
    """Return the grant that `viewer`, `operator:fraud`, `viewer:model/fraud` and the like name.

    Raises:
        InvalidArgumentError: There is no such role, or it cannot be limited so.
    """
    word, colon, target = text.partition(":")
    try:
        role = Role(word)
    except ValueError:
        roles = ", ".join(Role)
        raise InvalidArgumentError(f"unknown role {word[:100]!r}; roles are: {roles}") from None
    if not colon:
        return Grant(role)
    if role is Role.ADMIN:
        raise InvalidArgumentError("an admin is one of the whole system; leave the endpoint out")
    kind, slash, name = target.rpartition("/")
    try:
        resource = ObjectKind(kind) if slash else ObjectKind.ENDPOINT
    except ValueError:
        kinds = ", ".join(f"{resource}/NAME" for resource in ObjectKind)
        message = f"{target[:100]!r} is neither an endpoint nor one of: {kinds}"
        raise InvalidArgumentError(message) from None
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(f"{target[:100]!r} cannot name an object ({resource})")
    return Grant(role, name, resource)


def parse_grants(texts: Iterable[str]) -> tuple[Grant, ...]:
    """Return each grant once, in the order of `texts`."""
    return tuple(dict.fromkeys(parse_grant(text) for text in texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A principal with its grants."""

    name: str
    kind: str
    """`user`, `service` or `system`."""
    grants: tuple[Grant, ...]
    credential: str = ""
    """The id of the presented credential."""
    csrf_token: str = ""
    """Token that a console page must send back; empty without a session."""

    def may(
        self, role: Role, name: str | None = None, resource: ObjectKind = ObjectKind.ENDPOINT
    ) -> bool:
        """Whether the caller has `role` for an object; for the whole system if `name` is None."""
        return any(
            grant.includes(role)
            and (grant.name is None or (grant.resource, grant.name) == (resource, name))
            for grant in self.grants
        )

    def may_somewhere(self, role: Role) -> bool:
        """Whether the caller has `role` for any object."""
        return any(grant.includes(role) for grant in self.grants)

    def endpoints(self, role: Role) -> frozenset[str] | None:
        """Return the endpoints for which the caller has `role`; None for all."""
        if self.may(role):
            return None
        return frozenset(
            grant.name
            for grant in self.grants
            if grant.name is not None
            and grant.resource is ObjectKind.ENDPOINT
            and grant.includes(role)
        )


SYSTEM: Final = Caller(name="", kind="system", grants=(Grant(Role.ADMIN),))
"""The control plane itself and the gateway, whose socket only this user can open."""
