"""Settings of the listener for gateways on other hosts."""

from enum import StrEnum

import msgspec

from headrace.core import FailedPreconditionError
from headrace.core.gateways import MAX_BEHIND_S
from headrace.core.spec.access import TlsSpec


class GatewayMode(StrEnum):
    """Where requests come in."""

    LOCAL = "local"
    """By an Envoy on this host, and by others where agents are listened for."""
    REMOTE = "remote"
    """By Envoys on other hosts only."""
    NONE = "none"
    """By nothing of ours: replicas are reached in another way."""


class AgentsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where agents of gateways are listened for; `tls` has to name who signs for them."""

    tls: TlsSpec
    host: str = "127.0.0.1"
    port: int = 8443
    limits_port: int = 8444
    """Where gateways have shared limits counted; 0 picks a free one."""
    allow: tuple[str, ...] = ()
    """Names of gateways, where `*` at the end stands for anything; empty for all that `tls` has
    signed for.
    """
    revoked_file: str = ""
    """Fingerprints of certificates that are believed no more; empty for none."""
    max_behind_s: float = MAX_BEHIND_S
    """How long replicas are kept for a gateway that does not take new routes."""
    lost_after_s: float = 30.0
    """How long a gateway may be silent."""
    gateway_url: str = ""
    """How callers reach the gateways."""

    def allows(self, name: str) -> bool:
        """Whether a gateway of this name may come."""
        return not self.allow or any(
            name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
            for pattern in self.allow
        )


def check_mode(mode: str, agents: AgentsSettings | None) -> GatewayMode:
    """The mode, if what it needs is there.

    Raises:
        FailedPreconditionError: It is not.
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
