"""Which role does each route of the management API need? One table; what is not in it is refused.

A test holds it against the routes that there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from starlette.routing import compile_path

from headrace.control.access.roles import Role


class Extent(Enum):
    """For what the role is needed."""

    SYSTEM = auto()
    """For the whole system."""
    ENDPOINT = auto()
    """For the endpoint that the path names as `{name}`."""
    MODEL = auto()
    """For the model that the path names as `{name}`."""
    OWN = auto()
    """For anything: the route shows and changes only what the caller has the role for."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route needs. `role` None: nothing but to be known; `is_public`: not even that."""

    role: Role | None
    extent: Extent = Extent.OWN
    is_public: bool = False


_PUBLIC: Final = Rule(None, is_public=True)
_KNOWN: Final = Rule(None)
_VIEW_SYSTEM: Final = Rule(Role.VIEWER, Extent.SYSTEM)
_VIEW_OWN: Final = Rule(Role.VIEWER, Extent.OWN)
_VIEW_ENDPOINT: Final = Rule(Role.VIEWER, Extent.ENDPOINT)
_VIEW_MODEL: Final = Rule(Role.VIEWER, Extent.MODEL)
_OPERATE_SYSTEM: Final = Rule(Role.OPERATOR, Extent.SYSTEM)
_OPERATE_OWN: Final = Rule(Role.OPERATOR, Extent.OWN)
_OPERATE_ENDPOINT: Final = Rule(Role.OPERATOR, Extent.ENDPOINT)
_OPERATE_MODEL: Final = Rule(Role.OPERATOR, Extent.MODEL)
_ADMIN: Final = Rule(Role.ADMIN, Extent.SYSTEM)

RULES: Final[Mapping[tuple[str, str], Rule]] = {
    ("GET", "/api/v1/health"): _PUBLIC,
    ("GET", "/auth/login"): _PUBLIC,
    ("GET", "/auth/callback"): _PUBLIC,
    ("POST", "/auth/token"): _PUBLIC,
    ("POST", "/auth/logout"): _KNOWN,
    ("GET", "/api/v1/whoami"): _KNOWN,
    # The whole system.
    ("GET", "/api/v1/openapi.json"): _VIEW_OWN,
    ("GET", "/api/v1/schema"): _VIEW_OWN,
    ("GET", "/api/v1/status"): _VIEW_OWN,
    ("GET", "/api/v1/spec"): _VIEW_OWN,
    ("POST", "/api/v1/apply"): _OPERATE_OWN,
    ("POST", "/api/v1/diff"): _OPERATE_OWN,
    ("POST", "/api/v1/stop"): _ADMIN,
    ("GET", "/api/v1/logs"): _VIEW_OWN,
    ("GET", "/metrics"): _VIEW_SYSTEM,
    # Endpoints and rollouts.
    ("GET", "/api/v1/endpoints"): _VIEW_OWN,
    ("GET", "/api/v1/endpoints/{name}"): _VIEW_ENDPOINT,
    ("PUT", "/api/v1/endpoints/{name}"): _OPERATE_ENDPOINT,
    ("DELETE", "/api/v1/endpoints/{name}"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/history"): _VIEW_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/history/{generation}"): _VIEW_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/undo"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/rollout"): _VIEW_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/rollout"): _OPERATE_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/rollout/{verb}"): _OPERATE_ENDPOINT,
    # What callers sent is for those who answer for the endpoint, not for everybody who looks on.
    ("GET", "/api/v1/endpoints/{name}/payloads"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/payloads/rows"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/drift"): _VIEW_ENDPOINT,
    ("PUT", "/api/v1/endpoints/{name}/drift/reference"): _OPERATE_ENDPOINT,
    ("DELETE", "/api/v1/endpoints/{name}/drift/reference"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/rollouts"): _VIEW_OWN,
    ("GET", "/api/v1/rollouts/{rollout_id}"): _VIEW_OWN,
    ("GET", "/api/v1/rollouts/{rollout_id}/evidence"): _VIEW_OWN,
    # Events and rewards.
    ("GET", "/api/v1/events"): _VIEW_OWN,
    ("GET", "/api/v1/watch"): _VIEW_OWN,
    ("GET", "/api/v1/alerts"): _VIEW_OWN,
    ("POST", "/api/v1/alerts/test"): _OPERATE_SYSTEM,
    ("GET", "/api/v1/silences"): _VIEW_OWN,
    ("POST", "/api/v1/silences"): _OPERATE_OWN,
    ("DELETE", "/api/v1/silences/{silence}"): _OPERATE_OWN,
    ("POST", "/api/v1/feedback"): _OPERATE_OWN,
    # What the last day was like.
    ("GET", "/api/v1/history"): _VIEW_OWN,
    ("GET", "/api/v1/overview"): _VIEW_OWN,
    # Models.
    ("GET", "/api/v1/models"): _VIEW_OWN,
    ("GET", "/api/v1/models/{name}"): _VIEW_MODEL,
    ("POST", "/api/v1/models/{name}"): _OPERATE_MODEL,
    ("GET", "/api/v1/models/{name}/versions/{version}"): _VIEW_MODEL,
    ("DELETE", "/api/v1/models/{name}/versions/{version}"): _OPERATE_MODEL,
    ("POST", "/api/v1/models/{name}/versions/{version}/signatures"): _OPERATE_MODEL,
    ("PUT", "/api/v1/models/{name}/versions/{version}/reference"): _OPERATE_MODEL,
    ("POST", "/api/v1/gc"): _OPERATE_SYSTEM,
    # Features, which no endpoint owns.
    ("GET", "/api/v1/features"): _VIEW_SYSTEM,
    # Jobs, which read and write files as the control plane does.
    ("GET", "/api/v1/jobs"): _VIEW_SYSTEM,
    ("GET", "/api/v1/jobs/{name}/runs"): _VIEW_SYSTEM,
    ("GET", "/api/v1/jobs/{name}/runs/{run_id}"): _VIEW_SYSTEM,
    ("POST", "/api/v1/jobs/{name}/run"): _OPERATE_SYSTEM,
    ("POST", "/api/v1/jobs/{name}/cancel"): _OPERATE_SYSTEM,
    # Streams, which no endpoint owns.
    ("GET", "/api/v1/streams"): _VIEW_SYSTEM,
    ("GET", "/api/v1/streams/{stream}"): _VIEW_SYSTEM,
    ("GET", "/api/v1/streams/{stream}/history"): _VIEW_SYSTEM,
    ("POST", "/api/v1/streams/{stream}/pause"): _OPERATE_SYSTEM,
    ("POST", "/api/v1/streams/{stream}/resume"): _OPERATE_SYSTEM,
    # API keys.
    ("GET", "/api/v1/keys"): _VIEW_OWN,
    ("POST", "/api/v1/keys"): _OPERATE_OWN,
    ("DELETE", "/api/v1/keys/{key}"): _OPERATE_OWN,
    # As Triton's clients ask it.
    ("GET", "/v2/models/stats"): _VIEW_OWN,
    ("GET", "/v2/models/{name}/stats"): _VIEW_ENDPOINT,
    ("GET", "/v2/models/{name}/versions/{version}/stats"): _VIEW_ENDPOINT,
    ("POST", "/v2/repository/index"): _VIEW_OWN,
    ("POST", "/v2/repository/models/{name}/load"): _OPERATE_ENDPOINT,
    ("POST", "/v2/repository/models/{name}/unload"): _OPERATE_ENDPOINT,
    # Access.
    ("GET", "/api/v1/users"): _ADMIN,
    ("POST", "/api/v1/users"): _ADMIN,
    ("POST", "/api/v1/users/change"): _ADMIN,
    ("GET", "/api/v1/tokens"): _ADMIN,
    ("POST", "/api/v1/tokens"): _ADMIN,
    ("DELETE", "/api/v1/tokens/{token_id}"): _ADMIN,
    ("GET", "/api/v1/trail"): _ADMIN,
    ("GET", "/api/v1/trail/head"): _ADMIN,
}


def told(rule: Rule) -> str:
    """What a rule needs, in words for the API's description; empty for nothing."""
    if rule.role is None:
        return "" if rule.is_public else "any"
    match rule.extent:
        case Extent.SYSTEM:
            return rule.role
        case Extent.ENDPOINT:
            return f"{rule.role} of the endpoint"
        case Extent.MODEL:
            return f"{rule.role} of the model"
        case Extent.OWN:
            return f"{rule.role}, also of some endpoints only"


@dataclass(frozen=True, slots=True)
class Found:
    """The rule for a request, and the `{name}` of its path."""

    rule: Rule
    name: str = ""


class RuleBook:
    """Finds rules by method and path, as the web framework finds routes."""

    def __init__(self, rules: Mapping[tuple[str, str], Rule] = RULES) -> None:
        # The framework takes the first route that matches; here a path without parameters wins,
        # and a route is added in that order too (a test asks every route for its rule).
        ordered = sorted(rules.items(), key=lambda item: item[0][1].count("{"))
        self._rules = [(method, compile_path(path)[0], rule) for (method, path), rule in ordered]

    def find(self, method: str, path: str) -> Found | None:
        """The rule of a request; None if no route is meant by it."""
        for wanted, pattern, rule in self._rules:
            match = pattern.fullmatch(path) if wanted == method else None
            if match is not None:
                return Found(rule, match.groupdict().get("name", ""))
        return None

    def methods(self, path: str) -> list[str]:
        """The methods that a path knows."""
        return sorted({method for method, pattern, _ in self._rules if pattern.fullmatch(path)})
