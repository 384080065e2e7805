"""Where a replica gets the features of its requests: the message from the control plane."""

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
    """How an endpoint's features are watched for skew.

    `sample_ratio`: of how many look-ups what they gave is kept. `skew_every_s`: how often that is
    compared with what training will see.
    """

    service: str
    sample_ratio: float = 0.01
    skew_every_s: float = 900.0


class FeatureLookup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which features, and from where.

    `service`: the feature service, as `headrace.features.encode_service` writes it. `online_store`:
    its URL; `${NAME}` in it stands for a variable of the environment. `inputs`: for an input of the
    model the columns that it is made of, in its order; what is no feature comes with the request.
    `timeout_s`: how long a run waits for the store. `cache_ttl_s`: how long what was read is taken
    to be still so. `show_status`: answers tell for each view whether its values were found.
    """

    service: str
    online_store: str
    inputs: dict[str, list[str]] = {}
    timeout_s: float = 0.05
    cache_ttl_s: float = 0.0
    on_unavailable: OnUnavailable = OnUnavailable.REJECT
    show_status: bool = False
