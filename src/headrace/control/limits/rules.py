"""Which limits hold for a request? Those of its endpoint and of its caller's tier."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from headrace.core.spec_access import AccessSettings, EndpointLimitsSpec, LimitSpec

ANONYMOUS: Final = "address:"
"""What the name of a caller begins with who showed nothing: its address follows."""
UNKNOWN: Final = f"{ANONYMOUS}unknown"
"""A caller of whom not even the address is known."""


class Scope(StrEnum):
    """Whose limit it is."""

    ENDPOINT = "endpoint"
    """All callers of an endpoint together."""
    CALLER = "caller"
    """Each caller of an endpoint."""
    TIER = "tier"
    """Each caller of a tier, over all endpoints."""


class Subject(NamedTuple):
    """Who is counted: an endpoint (`caller` is empty), or a caller in an endpoint or a tier."""

    scope: Scope
    name: str
    caller: str = ""

    @property
    def is_anonymous(self) -> bool:
        """Whether only an address names the caller."""
        return self.caller.startswith(ANONYMOUS)

    def text(self) -> str:
        """As the state stores it."""
        return f"{self.scope}:{self.name}:{self.caller}"

    @classmethod
    def parse(cls, text: str) -> "Subject | None":
        """What `text` made; None if it is something else. No endpoint or tier has a colon."""
        scope, _, rest = text.partition(":")
        name, colon, caller = rest.partition(":")
        return cls(Scope(scope), name, caller) if scope in set(Scope) and colon else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that may pass or not. `tier` is empty for none."""

    endpoint: str
    caller: str
    tier: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All limits that the service counts.

    `longest_s`: how long an endpoint's requests may take, of those that have such a limit.
    """

    endpoints: Mapping[str, EndpointLimitsSpec] = field(default_factory=dict)
    tiers: Mapping[str, LimitSpec] = field(default_factory=dict)
    longest_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to count."""
        return not self.endpoints and not self.tiers

    def of(self, ask: Ask) -> list[tuple[Subject, LimitSpec]]:
        """The limits that hold for a request, and whose they are."""
        found = []
        endpoint = self.endpoints.get(ask.endpoint)
        if endpoint is not None:
            found.append((Subject(Scope.ENDPOINT, ask.endpoint), endpoint.total))
            caller = Subject(Scope.CALLER, ask.endpoint, ask.caller)
            found.append((caller, endpoint.per_caller))
        tier = self.tiers.get(ask.tier)
        if tier is not None:
            found.append((Subject(Scope.TIER, ask.tier, ask.caller), tier))
        return [(subject, limits) for subject, limits in found if not limits.is_unlimited]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedEndpoint:
    """What the rules have to know of an endpoint."""

    name: str
    limits: EndpointLimitsSpec
    timeout_s: float | None = None


def make_rules(access: AccessSettings, endpoints: Iterable[LimitedEndpoint]) -> Rules:
    """What the service counts; the rest is counted by each gateway for itself."""
    shared = access.shared_limits
    known = list(endpoints)
    counted = [e for e in known if e.limits.is_counted_by_service(shared=shared)]
    tiers = access.tiers if access.are_tiers_counted_by_service else ()
    return Rules(
        endpoints={endpoint.name: endpoint.limits for endpoint in counted},
        tiers={tier.name: tier.limits for tier in tiers},
        longest_s={e.name: e.timeout_s for e in known if e.timeout_s is not None},
    )
