"""What do control plane and replica say to each other about drift? Over the replica's socket."""

import msgspec

from headrace.observe.feature_counts import FeatureBins, FeatureCounts


class DriftPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replica shall count of requests and answers.

    `key` names the plan; empty for nothing. `bins`: of features that have a reference. `sample`: of
    all others the values themselves are kept, of so many rows at most until they are taken.
    `rows_per_request`: at most so many rows of one request count. `labels`: keep what requests with
    an id got, of `output`.
    """

    key: str = ""
    bins: list[FeatureBins] = []
    sample: int = 0
    rows_per_request: int = 32
    labels: bool = False
    output: str = ""


class FeatureValues(msgspec.Struct, frozen=True, kw_only=True):
    """Values of one feature as they came: null for NaN, `inf` and `-inf` as text.

    `is_text`: the feature's values are texts themselves.
    """

    name: str
    role: str
    is_text: bool = False
    values: list[float | str | None] = []


class SeenAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a request got for its first row: the name of a class, or a number."""

    request_id: str
    value: str | float


class DriftTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted since the last time somebody asked; then counting begins anew.

    `counts`: in the order of the plan's bins. `values`: of features without bins. `answers`: for
    labels, if the plan says so. `seen`: requests that were looked at. `skipped`: those that came
    while the time for looking was used up. `age_s`: seconds since the first of them was counted.
    """

    key: str = ""
    counts: list[FeatureCounts] = []
    values: list[FeatureValues] = []
    answers: list[SeenAnswer] = []
    seen: int = 0
    skipped: int = 0
    age_s: float = 0.0
