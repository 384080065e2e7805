"""What does a process that looks for skew tell whoever started it? A line of JSON."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewedFeature:
    """A column that was served other than training will see it; as `FeatureSkew`."""

    feature: str
    view: str
    differing: int
    rows: int
    causes: Mapping[str, int]
    looks_like: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewSummary:
    """What `rows` served rows came to; `message`: why they could not be compared."""

    service: str
    rows: int
    skewed: tuple[SkewedFeature, ...] = ()
    message: str = ""
