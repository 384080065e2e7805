"""Reports of row independence: whether requests share batches, why, and what live checks found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from headrace.core import ModelSignature, RowIndependence


class RowOutcome(StrEnum):
    """Result of one check."""

    SAME = "same"
    DIFFERENT = "different"
    """The row has another answer alone than in its batch, and both answers are repeatable."""
    UNREPEATABLE = "unrepeatable"
    """The row alone, or the batch, gives a different answer on each run: inconclusive."""
    FAILED = "failed"
    """The row alone failed although it had an answer in its batch."""
    SKIPPED = "skipped"
    """Requests left no room for the check, or the model takes seconds for a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """Row whose answer in a batch differed from its answer alone."""

    output: str
    ratio: float | None
    """Largest difference over the output's largest value; None if the shapes differ, or one of the
    two is not finite."""
    requests: int
    """Requests that shared the batch."""
    rows: int
    padded: bool
    """Whether the row was padded to a longer one's length."""
    at: float = 0.0
    """Seconds since 1970."""

    @property
    def text(self) -> str:
        """Return the difference as text."""
        size = (
            "differs in shape or in finite values"
            if self.ratio is None
            else f"differs by {self.ratio * 100:.3g} % of its largest value"
        )
        padded = ", with the row padded to a longer row's length" if self.padded else ""
        return (
            f"output '{self.output}' {size} between a row alone and the same row in a batch of "
            f"{self.rows} rows{padded}"
        )


@dataclass(slots=True)
class RowCheckCounts:
    """Outcomes of a model's checks since its process started, and the newest difference."""

    outcomes: dict[RowOutcome, int] = field(default_factory=lambda: dict.fromkeys(RowOutcome, 0))
    difference: RowDifference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingReport:
    """Whether requests for a model version share batches, why, and what live checks found."""

    batched: bool
    independence: RowIndependence | None = None
    reason: str = ""
    """As `ModelSignature.row_reason`."""
    declared: bool = False
    """Whether the operator declares rows independent."""
    checks: Mapping[str, int] = field(default_factory=dict)
    """Rows that were run alone and compared, by `RowOutcome`; empty without checks."""
    difference: RowDifference | None = None
    """Newest difference."""

    @property
    def text(self) -> str:
        """Return the report as text, with a remedy if there is one."""
        if self.difference is not None:
            return f"answers depend on other requests' rows: {self.difference.text}; {self.remedy}"
        reason = f": {self.reason}" if self.reason else ""
        match self.independence:
            case RowIndependence.DECLARED:
                return f"batched, not proven{reason}; {self._checks_text}"
            case _ if self.declared and not self.batched:
                return f"one request at a time although `rows_independent` is declared{reason}"
            case RowIndependence.UNPROVEN | RowIndependence.REFUTED:
                return f"one request at a time{reason}. {_HOW_TO_DECLARE}"
            case _:
                return f"{'batched' if self.batched else 'one request at a time'}{reason}"

    @property
    def remedy(self) -> str:
        """Return the remedy for the difference."""
        if self.declared:
            return "remove `rows_independent` from the endpoint's `batching`"
        if self.independence is RowIndependence.DECLARED:
            return "set `batched = False` in the model, or `batching: {max_batch_size: 1}`"
        return "set `batching: {padding: {max_ratio: 1.0}}`, which batches only equal lengths"

    @property
    def _checks_text(self) -> str:
        checked = self.checks.get(RowOutcome.SAME, 0)
        text = f"{checked} rows checked in production, none differs"
        if unrepeatable := self.checks.get(RowOutcome.UNREPEATABLE, 0):
            text += f"; {unrepeatable} more gave a different answer on each run"
        if failed := self.checks.get(RowOutcome.FAILED, 0):
            text += f"; {failed} more failed when run alone"
        if not any(self.checks.values()):
            return "no rows checked yet" if self.checks else "rows are not checked in production"
        return text


_HOW_TO_DECLARE = (
    "If rows are independent of each other, declare `batching: {rows_independent: true}`"
)


def report_of(signature: ModelSignature) -> BatchingReport:
    """Return the report of a signature, before anything is served."""
    return BatchingReport(
        batched=signature.batched,
        independence=signature.row_independence,
        reason=signature.row_reason,
    )
