"""Headers between the gateway, the replicas and the control plane.

Clients may send `TIMEOUT_HEADER`; the gateway removes their `INTERNAL_HEADERS`.
"""

from typing import Final

TIMEOUT_HEADER: Final = "x-headrace-timeout-s"
"""Time that the caller waits for the response, in seconds."""

SPLIT_HEADER: Final = "x-headrace-split"
"""Id of the rollout or experiment whose split routed the request."""
WEIGHTS_HEADER: Final = "x-headrace-weights"
"""Weights of the split, if the gateway logs the arm of each request."""
UNIT_HEADER: Final = "x-headrace-unit"
"""Value of the caller's key in a sticky split."""
SHADOW_HEADER: Final = "x-headrace-shadow"
"""`1` on the copies of mirrored requests, whose responses are dropped."""
PAIR_HEADER: Final = "x-headrace-pair"
"""UUID that only a mirrored request and its copy share."""
NAMED_HEADER: Final = "x-headrace-named"
"""Model, and its version after a tilde, by which the gateway routed a compressed gRPC call."""
HOSTED_VERSION_HEADER: Final = "x-headrace-version"
"""Version of the model that a request is for, to replicas that host several."""
CALLER_HEADER: Final = "x-headrace-caller"
"""Caller's identity for the replica: a key's name, a token's subject, or a certificate's name."""
CREDENTIAL_HEADER: Final = "x-headrace-credential"
"""Method by which the caller was authenticated: one of few values, fit for a metric's label."""
TIER_HEADER: Final = "x-headrace-tier"
"""The caller's tier, if it has one."""
ISSUER_HEADER: Final = "x-headrace-issuer"
"""Issuer of the token that the gateway verified, within the gateway."""
PRIORITY_HEADER: Final = "x-headrace-priority"
"""Highest level that the caller may have in a replica's queue: 1 to 9."""
SLO_HEADER: Final = "x-headrace-slo-s"
"""Target response time of the endpoint in seconds, for a replica that has to shed load."""
WANT_HEADER: Final = "x-headrace-want"
"""`rows` requests the number of answered rows from a replica."""
LEASE_HEADER: Final = "x-headrace-lease"
"""Rate limit decision to which a request's rows are charged."""
INTERNAL_HEADERS: Final = (
    SPLIT_HEADER,
    WEIGHTS_HEADER,
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
"""Request headers that replicas trust; callers must not be able to set them."""

ROWS_HEADER: Final = "x-headrace-rows"
"""Number of rows that a replica answered, in its response."""
TARGET_HEADER: Final = "x-headrace-target"
"""Cluster that the gateway sends a request with fallbacks to; it sets and removes this header."""
KEY_HEADER: Final = "x-headrace-key"
"""Prefix, before a number, of headers with the keys of upstreams; the gateway sets and removes them
before it sends a request with fallbacks."""
ENDPOINT_HEADER: Final = "x-headrace-endpoint"
"""Endpoint that answered, in responses of an endpoint with a fallback."""
NOT_STARTED_HEADER: Final = "x-headrace-not-started"
"""`1` on a replica's 503 for a request that it did not start: another replica may take it."""
CONTROL_HEADER: Final = "x-headrace-internal"
"""Token by which a replica on another host authenticates the control plane."""
