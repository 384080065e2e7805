"""How an endpoint's requests are watched for drift: the settings, with their defaults."""

import msgspec


class DriftSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as drift, and how sure one has to be.

    `alpha`: the chance of ever naming a feature of this endpoint that has not drifted. `margin`: by
    how much the share of values below any point, or of a category, may move. `violations_margin`:
    the same for missing, out-of-range and wrong values. `window_rows`: how many first rows are the
    reference where none was given. `rows_per_request`: at most so many of a request's rows count.
    `labels`: remember answers by request id, so that labels find them. `output`: which one is the
    answer; empty as in rollouts.
    """

    alpha: float = 0.01
    margin: float = 0.1
    violations_margin: float = 0.02
    window_rows: int = 2000
    rows_per_request: int = 32
    labels: bool = False
    output: str = ""
