"""What does a process that looks for skew tell whoever started it? A line of JSON."""

import msgspec


class SkewedFeature(msgspec.Struct, frozen=True, kw_only=True):
    """A column that was served other than training will see it; as `FeatureSkew`."""

    feature: str
    view: str
    differing: int
    rows: int
    causes: dict[str, int]
    looks_like: str = ""


class SkewSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `rows` served rows came to; `message`: why they could not be compared."""

    service: str
    rows: int
    skewed: list[SkewedFeature] = []
    message: str = ""
