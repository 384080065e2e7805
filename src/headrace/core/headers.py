"""Request headers by which the gateway tells replicas about a split, and what a call names.

Callers cannot set them: the gateway removes what they send. A module of its own because the gateway
and the replicas, which cannot import each other, must spell them alike.
"""

from typing import Final

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
SPLIT_HEADERS: Final = (SPLIT_HEADER, UNIT_HEADER, SHADOW_HEADER, PAIR_HEADER)
