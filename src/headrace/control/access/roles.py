"""What may somebody do? Roles, each for all endpoints or for one, and the question whether."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.core.names import NAME_PATTERN

_NAME: Final = re.compile(NAME_PATTERN)


class Role(StrEnum):
    """Each may do what the ones before it may."""

    VIEWER = "viewer"
    """Reads."""
    OPERATOR = "operator"
    """Changes what is served: applies, rollouts, models, API keys."""
    ADMIN = "admin"
    """Decides who may do what, reads the trail, and stops everything."""

    @property
    def rank(self) -> int:
        """How much it may do."""
        return tuple(Role).index(self)


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, for one endpoint or, if that is None, for the whole system."""

    role: Role
    endpoint: str | None = None

    def __str__(self) -> str:
        return self.role if self.endpoint is None else f"{self.role}:{self.endpoint}"

    def includes(self, role: Role) -> bool:
        """Whether it is this role or one that may do more."""
        return self.role.rank >= role.rank


def parse_grant(text: str) -> Grant:
    """The grant that `viewer`, `operator:fraud` and the like mean.

    Raises:
        InvalidArgumentError: There is no such role, or it cannot be limited so.
    """
    word, colon, endpoint = text.partition(":")
    try:
        role = Role(word)
    except ValueError:
        known = ", ".join(Role)
        raise InvalidArgumentError(f"there is no role {word[:100]!r}; there are: {known}") from None
    if not colon:
        return Grant(role)
    if role is Role.ADMIN:
        raise InvalidArgumentError("an admin is one of the whole system; leave the endpoint out")
    if _NAME.fullmatch(endpoint) is None:
        raise InvalidArgumentError(f"{endpoint[:100]!r} cannot be an endpoint's name")
    return Grant(role, endpoint)


def parse_grants(texts: Iterable[str]) -> tuple[Grant, ...]:
    """Each grant once, in the order in which they were given."""
    return tuple(dict.fromkeys(parse_grant(text) for text in texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and what that one may do.

    `kind`: `user`, `service` or `system`. `credential`: the id of what was shown. `csrf_token`:
    what a page of the console has to repeat; empty for whoever has no session.
    """

    name: str
    kind: str
    grants: tuple[Grant, ...]
    credential: str = ""
    csrf_token: str = ""

    def may(self, role: Role, endpoint: str | None = None) -> bool:
        """Whether the caller has a role for an endpoint; for the whole system if that is None."""
        return any(
            grant.includes(role) and grant.endpoint in {None, endpoint} for grant in self.grants
        )

    def may_somewhere(self, role: Role) -> bool:
        """Whether the caller has a role for anything at all."""
        return any(grant.includes(role) for grant in self.grants)

    def endpoints(self, role: Role) -> frozenset[str] | None:
        """The endpoints that the caller has a role for; None for all of them."""
        mine = [grant.endpoint for grant in self.grants if grant.includes(role)]
        return None if None in mine else frozenset(name for name in mine if name is not None)

    def may_read_model(self, model: str, users: frozenset[str]) -> bool:
        """Whether the caller sees the versions of a model that the endpoints `users` serve."""
        mine = self.endpoints(Role.VIEWER)
        return mine is None or model in mine or bool(mine & users)

    def may_change_model(self, model: str, users: frozenset[str]) -> bool:
        """Whether the caller adds and removes versions of it: if it concerns nobody else's."""
        mine = self.endpoints(Role.OPERATOR)
        return mine is None or (users <= mine if users else model in mine)


SYSTEM: Final = Caller(name="", kind="system", grants=(Grant(Role.ADMIN),))
"""The gateway, which asks over a socket that only this user can open."""
