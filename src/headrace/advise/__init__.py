"""What should be better about a system: audit it, take stock of its models."""

from headrace.advise.audit.check import Audit, Check, Finding, Hit, NotChecked, run_checks
from headrace.advise.audit.facts import Facts, Need, Severity

__all__ = [
    "Audit",
    "Check",
    "Facts",
    "Finding",
    "Hit",
    "Need",
    "NotChecked",
    "Severity",
    "run_checks",
]
