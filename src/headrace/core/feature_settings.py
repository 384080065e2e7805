"""Message with which the control plane configures a replica's feature look-ups."""

from enum import StrEnum
from typing import Final

import msgspec

SQLITE: Final = "sqlite:///"
FEAST: Final = "feast://"
"""How the URLs of online stores in files begin."""


class OnUnavailable(StrEnum):
    """What becomes of requests while the online store cannot be read in time."""

    REJECT = "reject"
    """They fail at once as UNAVAILABLE, so that their callers may do something else."""
    DEFAULTS = "defaults"
    """Each feature takes its default, as if nothing were known."""


class FeatureWatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an endpoint's features are watched for skew."""

    service: str
    sample_ratio: float = 0.01
    """Of how many look-ups what they gave is kept."""
    skew_every_s: float = 900.0
    """How often that is compared with what training will see."""


class FeatureLookup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Features to look up for requests, and the store that holds them."""

    service: str
    """Feature service, encoded by `headrace.features.encode_service`."""
    online_store: str
    """URL of the online store; `${NAME}` is an environment variable."""
    inputs: dict[str, list[str]] = {}
    """Per model input, the columns that form it, in order; columns that are not features come
    with the request."""
    timeout_s: float = 0.05
    """How long a run waits for the store."""
    cache_ttl_s: float = 0.0
    """How long a read value is cached."""
    on_unavailable: OnUnavailable = OnUnavailable.REJECT
    show_status: bool = False
    """Whether responses report the status of each view."""
