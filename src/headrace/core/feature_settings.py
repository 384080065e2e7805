"""Message with which the control plane configures a replica's feature look-ups."""

from enum import StrEnum
from typing import Final

import msgspec

SQLITE: Final = "sqlite:///"
FEAST: Final = "feast://"
"""Prefix of URLs that name online stores in files."""


class OnUnavailable(StrEnum):
    """Treatment of requests while the online store cannot be read in time."""

    REJECT = "reject"
    """The requests fail at once as UNAVAILABLE, so that their callers can react."""
    DEFAULTS = "defaults"
    """Each feature takes its default value, as for an unknown entity."""


class FeatureWatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Skew detection for an endpoint's features."""

    service: str
    sample_ratio: float = 0.01
    """Share of look-ups whose features are kept."""
    skew_every_s: float = 900.0
    """Interval of the comparison with what training will read."""


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
