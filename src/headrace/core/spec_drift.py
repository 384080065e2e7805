"""What may stand under `drift` of an endpoint."""

from typing import Final

from pydantic import Field

from headrace.core.drift_settings import DriftSettings
from headrace.core.spec_base import SpecModel

_DEFAULTS: Final = DriftSettings()


class DriftSpec(SpecModel):
    """Watches inputs and answers for drift from a reference."""

    alpha: float = Field(
        default=_DEFAULTS.alpha,
        gt=0.0,
        le=0.5,
        description="The chance of ever naming a feature of the endpoint that has not drifted.",
    )
    margin: float = Field(
        default=_DEFAULTS.margin,
        gt=0.0,
        lt=1.0,
        description="By how much the share of values below any point, or of a category, may move.",
    )
    violations_margin: float = Field(
        default=_DEFAULTS.violations_margin,
        gt=0.0,
        lt=1.0,
        description="The same for the shares of missing, out-of-range and wrong values.",
    )
    window_rows: int = Field(
        default=_DEFAULTS.window_rows,
        ge=100,
        le=20_000,
        description="How many first rows are the reference where none was given. Unit: rows.",
    )
    rows_per_request: int = Field(
        default=_DEFAULTS.rows_per_request,
        ge=1,
        le=256,
        description="At most so many of a request's rows count; 1 where a request's rows are "
        "alike. Unit: rows.",
    )
    labels: bool = Field(
        default=_DEFAULTS.labels,
        description="Remembers answers by request id, so that labels which come later "
        "(`headrace feedback ID --label`) tell how right they were.",
    )
    output: str = Field(
        default=_DEFAULTS.output,
        max_length=255,
        description="The output that labels are about; empty takes the first that is a class, "
        "else the first.",
    )

    def settings(self) -> DriftSettings:
        """The same as the control plane keeps it."""
        return DriftSettings(**self.model_dump())
