"""Which request headers mean something to replicas, so that no caller may set them?

Headrace's own gateway removes them from what callers send; whoever stands in its place has to.
"""

from typing import Final

from headrace.gateway.callers import ISSUER_HEADER
from headrace.gateway.filters import (
    HOSTED_VERSION_HEADER,
    SHADOW_HEADER,
    SPLIT_HEADER,
    UNIT_HEADER,
)
from headrace.gateway.guards import CALLER_HEADER, CREDENTIAL_HEADER, TIER_HEADER
from headrace.gateway.limits import OURS as LIMIT_HEADERS

OURS: Final = (
    SPLIT_HEADER,
    UNIT_HEADER,
    SHADOW_HEADER,
    HOSTED_VERSION_HEADER,
    CALLER_HEADER,
    CREDENTIAL_HEADER,
    TIER_HEADER,
    ISSUER_HEADER,
    *LIMIT_HEADERS,
)
