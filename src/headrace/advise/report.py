"""What is reported, whatever the form: an audit, of what, when, by which version."""

from dataclasses import dataclass
from datetime import datetime

from headrace.advise.check import Audit
from headrace.advise.severity import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One audit with its circumstances. `target`: the spec file, or where the system runs."""

    audit: Audit
    target: str
    at: datetime
    version: str
    fail_on: Severity | None = None

    @property
    def fails(self) -> bool:
        """Whether a finding is as bad as was asked for."""
        return self.fail_on is not None and self.audit.reaches(self.fail_on)
