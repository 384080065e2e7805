"""Headers between the gateway, the replicas and the control plane.

Clients may send `TIMEOUT_HEADER`; the gateway removes the `INTERNAL_HEADERS` that they send.
"""

from typing import Final

TIMEOUT_HEADER: Final = "x-headrace-timeout-s"
"""How long the caller waits for the answer, in seconds."""

SPLIT_HEADER: Final = "x-headrace-split"
"""The id of the rollout or experiment whose split the request came by."""
UNIT_HEADER: Final = "x-headrace-unit"
"""The value of the caller's key in a sticky split."""
SHADOW_HEADER: Final = "x-headrace-shadow"
"""`1` on the copies of mirrored requests, whose answers are dropped."""
PAIR_HEADER: Final = "x-headrace-pair"
"""A UUID that a mirrored request and its copy share and no other request has."""
NAMED_HEADER: Final = "x-headrace-named"
"""The model, and its version after a tilde, by which the gateway routed a compressed gRPC call."""
HOSTED_VERSION_HEADER: Final = "x-headrace-version"
"""Which version of a model a request is for, to replicas that host several."""
CALLER_HEADER: Final = "x-headrace-caller"
"""Who calls, to the replica: a key's name, a token's subject, a certificate's name."""
CREDENTIAL_HEADER: Final = "x-headrace-credential"
"""By what the caller was recognised: one of few values, fit for a metric's label."""
TIER_HEADER: Final = "x-headrace-tier"
"""The caller's tier, if it has one."""
ISSUER_HEADER: Final = "x-headrace-issuer"
"""Whose token the gateway verified, within the gateway."""
PRIORITY_HEADER: Final = "x-headrace-priority"
"""The highest level that the caller may have in a replica's queue: 1 to 9."""
SLO_HEADER: Final = "x-headrace-slo-s"
"""How soon the endpoint promises to answer, in seconds, to a replica that has to shed."""
WANT_HEADER: Final = "x-headrace-want"
"""`rows` asks a replica how many rows it answered."""
LEASE_HEADER: Final = "x-headrace-lease"
"""Which decision of the rate limits a request's rows are charged to."""
INTERNAL_HEADERS: Final = (
    SPLIT_HEADER,
    UNIT_HEADER,
    SHADOW_HEADER,
    PAIR_HEADER,
    NAMED_HEADER,
    HOSTED_VERSION_HEADER,
    CALLER_HEADER,
    CREDENTIAL_HEADER,
    TIER_HEADER,
    ISSUER_HEADER,
    PRIORITY_HEADER,
    SLO_HEADER,
    WANT_HEADER,
    LEASE_HEADER,
)
"""Request headers that replicas trust, so that no caller may set them."""

ROWS_HEADER: Final = "x-headrace-rows"
"""How many rows a replica answered, in its response."""
NOT_STARTED_HEADER: Final = "x-headrace-not-started"
"""`1` on a replica's 503 for a request that it did not begin: another replica may take it."""
CONTROL_HEADER: Final = "x-headrace-internal"
"""The token by which a replica on another host recognises the control plane."""
