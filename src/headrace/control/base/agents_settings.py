"""Settings of the listener for gateways on other hosts."""

from enum import StrEnum

import msgspec

from headrace.core import FailedPreconditionError
from headrace.core.gateways import MAX_BEHIND_S
from headrace.core.spec.access import TlsSpec


class GatewayMode(StrEnum):
    """Where Envoy gateways run."""

    LOCAL = "local"
    """An Envoy on this host, and gateways on other hosts if agents are configured."""
    REMOTE = "remote"
    """Envoys on other hosts only."""
    NONE = "none"
    """No gateway of Headrace: replicas are reached in another way."""


class AgentsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Listener for gateway agents; `tls` must name the authority that signs their certificates."""

    tls: TlsSpec
    host: str = "127.0.0.1"
    port: int = 8443
    limits_port: int = 8444
    """Port of the shared rate limit service for gateways; 0 picks a free one."""
    allow: tuple[str, ...] = ()
    """Allowed gateway names, where a trailing `*` matches any suffix; empty for all with a
    certificate that `tls` trusts.
    """
    revoked_file: str = ""
    """File of the fingerprints of revoked certificates; empty for none."""
    max_behind_s: float = MAX_BEHIND_S
    """How long old replicas are kept for a gateway that does not apply new routes."""
    lost_after_s: float = 30.0
    """Silence after which a gateway counts as lost."""
    gateway_url: str = ""
    """URL at which callers reach the gateways."""

    def allows(self, name: str) -> bool:
        """Whether a gateway with this name may connect."""
        return not self.allow or any(
            name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
            for pattern in self.allow
        )


def check_mode(mode: str, agents: AgentsSettings | None) -> GatewayMode:
    """Return the gateway mode, if its requirements are met.

    Raises:
        FailedPreconditionError: A requirement is not met.
    """
    try:
        parsed = GatewayMode(mode)
    except ValueError:
        names = ", ".join(GatewayMode)
        raise FailedPreconditionError(f"--gateway {mode}: it is one of {names}") from None
    if parsed is GatewayMode.REMOTE and agents is None:
        raise FailedPreconditionError(
            "--gateway remote needs a listener for gateways on other hosts: set "
            "--agents-tls-cert, --agents-tls-key and --agents-tls-client-ca"
        )
    if agents is not None and not agents.tls.client_ca_file:
        raise FailedPreconditionError(
            "gateways on other hosts need certificates: "
            "set the authority that signs them (--agents-tls-client-ca)"
        )
    return parsed
