"""What may stand under `gateway.connections`: what one caller's connection may cost."""

from pydantic import Field

from headrace.core.spec_base import SpecModel

_DAY_S = 86_400.0


class ConnectionsSpec(SpecModel):
    """How many connections the gateway keeps, and how long it waits for what comes over them."""

    max: int = Field(
        default=10_000, ge=16, le=1_000_000, description="Open at once; more are closed at once."
    )
    idle_timeout_s: float = Field(
        default=300.0,
        ge=0.1,
        le=_DAY_S,
        description="A connection without a request is closed after it. Unit: seconds.",
    )
    headers_timeout_s: float = Field(
        default=10.0,
        ge=0.1,
        le=_DAY_S,
        description="A request's headers have to be there by then, else 408. Unit: seconds.",
    )
    request_timeout_s: float = Field(
        default=60.0,
        ge=0.1,
        le=_DAY_S,
        description="The whole request has to be there by then, else 408. Unit: seconds.",
    )
    max_memory_bytes: int = Field(
        default=2 << 30,
        ge=128 << 20,
        le=1 << 40,
        description="What the gateway may hold; near it, it refuses requests. Unit: bytes.",
    )
