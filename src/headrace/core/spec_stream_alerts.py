"""What may stand under `alerts` of a stream: when somebody is told how it is."""

from typing import Final

from pydantic import Field

from headrace.core.spec_base import SpecModel

USUAL_LAG_S: Final = 60.0
_DAY_S: Final = 86_400.0


class StreamAlertsSpec(SpecModel):
    """What a stream may do before an alert fires; that it does not run at all always does."""

    lag_s: float | None = Field(
        default=USUAL_LAG_S,
        gt=0.0,
        le=366 * _DAY_S,
        description="How old the oldest record that waits may be for five minutes; null for any "
        "age. Where it is left out, `workers.target_lag_s` counts if that is given. Unit: seconds.",
    )
    dead_letters: int | None = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="How many dead letters of five minutes are no news, if that goes on for ten; "
        "null for any number. Unit: records.",
    )
