"""What may stand under `features` of an endpoint."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict

from headrace.core.feature_settings import FeatureSettings, FeatureWatch
from headrace.core.spec_base import SpecModel
from headrace.core.spec_yaml import SpecMistake

_DEFAULTS: Final = FeatureSettings(service="", online_store="")

_Column = Annotated[str, Field(min_length=1, max_length=300)]


class FeaturesSpec(SpecModel):
    """Callers name entities; their features come from the online store.

    The service is the one that `headrace features apply` put in force.
    """

    service: str = Field(
        min_length=1, max_length=128, description="The feature service whose columns it takes."
    )
    online_store: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Its URL; `${NAME}` is a variable of the environment. Null: the home's own.",
    )
    inputs: dict[_Column, Annotated[tuple[_Column, ...], Strict(strict=False)]] = Field(
        default_factory=dict,
        description="For an input of the model its columns in order; what is no feature comes with "
        "the request. Empty: by name, else all columns to the input that is a matrix.",
    )
    timeout_s: float = Field(
        default=_DEFAULTS.timeout_s,
        gt=0.0,
        le=60.0,
        description="How long a request may wait for the store. Unit: seconds.",
    )
    cache_ttl_s: float = Field(
        default=_DEFAULTS.cache_ttl_s,
        ge=0.0,
        le=86_400.0,
        description="How long each replica takes what it read to be still so. Unit: seconds.",
    )
    on_unavailable: Literal["reject", "defaults"] = Field(
        default="reject",
        description="While the store cannot be read in time: `reject` fails at once, `defaults` "
        "goes on as if nothing were known.",
    )
    sample_ratio: float = Field(
        default=0.01,
        ge=0.0,
        le=1.0,
        description="Of how many look-ups what they gave is kept in the home, so that skew can be "
        "found: keys of entities and values. 0 keeps nothing.",
    )
    skew_every_s: float = Field(
        default=900.0,
        ge=1.0,
        le=604_800.0,
        description="How often what was kept is compared with what training will see. Unit: "
        "seconds.",
    )
    show_status: bool = Field(
        default=False,
        description="Answers have `VIEW__status` too: `PRESENT`, `STALE` or `MISSING`.",
    )

    def watch(self) -> FeatureWatch | None:
        """How skew is looked for; None where nothing is kept to look at."""
        if not self.sample_ratio:
            return None
        return FeatureWatch(
            service=self.service,
            sample_ratio=self.sample_ratio,
            skew_every_s=self.skew_every_s,
        )


def feature_disagreements(endpoint: Mapping[Any, Any], place: str) -> list[SpecMistake]:
    """What is wrong between `features` and the rest of an endpoint."""
    features = endpoint.get("features")
    if features is None:
        return []
    found = []
    if endpoint.get("upstream") is not None:
        message = "stands beside 'upstream': only replicas of ours look features up"
        found.append(SpecMistake(place=f"{place}.features", message=message))
    if endpoint.get("pool") is not None:
        message = "stands beside 'pool', whose processes see no online store; take one of the two"
        found.append(SpecMistake(place=f"{place}.features", message=message))
    url = features.get("online_store") if isinstance(features, Mapping) else None
    if isinstance(url, str) and _is_tcp(url) and endpoint.get("network") is not True:
        message = "is reached over the network, which replicas may not use; add `network: true`"
        found.append(SpecMistake(place=f"{place}.features.online_store", message=message))
    return found


def _is_tcp(url: str) -> bool:
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    # What a repository of Feast's names is not known here; whoever reads it says so.
    return scheme not in {"", "sqlite", "unix", "feast"}
